//! The names of objects: few shapes, so that no name can lead anywhere else.
//!
//! A name that was read (from a path of a request, from a directory) is parsed strictly: what is not exactly what [`ObjectName`]
//! writes is refused. So `..`, empty parts, leading zeros and upper case never reach a file system.

use std::fmt;
use std::str::FromStr;

use collective_model::{Digest, DiskRole, Error, ErrorKind, Result, Version};
use serde::{Deserialize, Serialize};

/// The name of one object of a repository; displays as its relative path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ObjectName {
    /// `repository.json`.
    Descriptor,
    /// `latest`: the head.
    Latest,
    /// `sweep.json`: what the last prune found unreached, and since when.
    Sweep,
    /// `versions/<n>/manifest.json`.
    Manifest(Version),
    /// `versions/<n>/<role>-<16 hex>.<index|trace>`.
    Part {
        /// The version that it is part of.
        version: Version,
        /// The disk that it is about.
        role: DiskRole,
        /// What it says about the disk.
        kind: PartKind,
        /// The first 8 bytes of the hash that the manifest has for it, so that a second attempt never overwrites a first.
        check: [u8; 8],
    },
    /// `packs/<aa>/<64 hex>`: named by the hash of its bytes.
    Pack(Digest),
}

/// The small objects that a version has for each disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PartKind {
    /// The map of its blocks.
    Index,
    /// The order in which a start touches it.
    Trace,
}

impl ObjectName {
    /// Names a part of a version by the hash that the manifest has for it.
    #[must_use]
    pub fn part(version: Version, role: DiskRole, kind: PartKind, hash: &Digest) -> Self {
        let check = hash.0[..8].try_into().expect("8 of 32 bytes are 8 bytes");
        Self::Part { version, role, kind, check }
    }

    /// Returns the version that the object belongs to, if it belongs to one.
    #[must_use]
    pub const fn version(&self) -> Option<Version> {
        match self {
            Self::Manifest(version) | Self::Part { version, .. } => Some(*version),
            _ => None,
        }
    }

    /// Returns the bytes that such an object may have at most; more is not read, and need not be taken in.
    #[must_use]
    pub const fn limit_bytes(&self) -> u64 {
        match self {
            Self::Descriptor => 4 << 10,
            Self::Latest => 64,
            // 280 signs for each of the 100,000 packs that a version may reach.
            Self::Manifest(_) => 32 << 20,
            Self::Sweep => 64 << 20,
            // 40 bytes for each of the 16 M frames that a disk may have.
            Self::Part { kind: PartKind::Index, .. } => 1 << 30,
            Self::Part { kind: PartKind::Trace, .. } => 24 << 20,
            // A full pack, its last frame, and its table of contents.
            Self::Pack(_) => 96 << 20,
        }
    }
}

impl PartKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Descriptor => f.write_str("repository.json"),
            Self::Latest => f.write_str("latest"),
            Self::Sweep => f.write_str("sweep.json"),
            Self::Manifest(version) => write!(f, "versions/{version}/manifest.json"),
            Self::Part { version, role, kind, check } => {
                let check = u64::from_be_bytes(*check);
                write!(f, "versions/{version}/{role}-{check:016x}.{}", kind.name())
            }
            Self::Pack(id) => write!(f, "packs/{:02x}/{id}", id.0[0]),
        }
    }
}

impl FromStr for ObjectName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // Parsed loosely, then compared with what the name would be written as: one spelling for each object.
        parse(text).filter(|name| name.to_string() == text).ok_or_else(|| {
            let shown: String = text.chars().take(120).collect();
            Error::new(ErrorKind::Invalid, format!("{shown:?} is not the name of an object"))
        })
    }
}

fn parse(text: &str) -> Option<ObjectName> {
    match text {
        "repository.json" => return Some(ObjectName::Descriptor),
        "latest" => return Some(ObjectName::Latest),
        "sweep.json" => return Some(ObjectName::Sweep),
        _ => {}
    }
    let mut parts = text.split('/');
    let (top, middle, last) = (parts.next()?, parts.next()?, parts.next()?);
    match top {
        "packs" => last.parse().ok().map(ObjectName::Pack),
        "versions" => parse_in_version(middle.parse().ok()?, last),
        _ => None,
    }
}

fn parse_in_version(version: Version, file: &str) -> Option<ObjectName> {
    if file == "manifest.json" {
        return Some(ObjectName::Manifest(version));
    }
    let (stem, extension) = file.split_once('.')?;
    let (role, check) = stem.split_once('-')?;
    let role = [DiskRole::System, DiskRole::User].into_iter().find(|known| known.name() == role)?;
    let kind =
        [PartKind::Index, PartKind::Trace].into_iter().find(|known| known.name() == extension)?;
    let check = u64::from_str_radix(check, 16).ok()?.to_be_bytes();
    Some(ObjectName::Part { version, role, kind, check })
}

impl TryFrom<String> for ObjectName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ObjectName> for String {
    fn from(name: ObjectName) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use collective_model::{Digest, DiskRole, Version};

    use super::{ObjectName, PartKind};

    #[test]
    fn every_shape_is_read_as_it_is_written() {
        let version = Version::new(12).unwrap();
        let hash = Digest([0xa5; 32]);
        for (name, text) in [
            (ObjectName::Descriptor, "repository.json".to_owned()),
            (ObjectName::Latest, "latest".to_owned()),
            (ObjectName::Sweep, "sweep.json".to_owned()),
            (ObjectName::Manifest(version), "versions/12/manifest.json".to_owned()),
            (
                ObjectName::part(version, DiskRole::System, PartKind::Index, &hash),
                "versions/12/system-a5a5a5a5a5a5a5a5.index".to_owned(),
            ),
            (
                ObjectName::part(version, DiskRole::User, PartKind::Trace, &Digest([0; 32])),
                "versions/12/user-0000000000000000.trace".to_owned(),
            ),
            (ObjectName::Pack(hash), format!("packs/a5/{hash}")),
        ] {
            assert_eq!(name.to_string(), text);
            assert_eq!(text.parse::<ObjectName>().unwrap(), name);
        }
    }

    #[test]
    fn every_other_spelling_is_refused() {
        let hash = Digest([0xa5; 32]);
        for text in [
            "".to_owned(),
            "/latest".to_owned(),
            "../latest".to_owned(),
            "versions/0/manifest.json".to_owned(),
            "versions/01/manifest.json".to_owned(),
            "versions/+1/manifest.json".to_owned(),
            "versions/1/manifest.json/".to_owned(),
            "versions/1/../manifest.json".to_owned(),
            "versions/1/ephemeral-a5a5a5a5a5a5a5a5.index".to_owned(),
            "versions/1/system-A5a5a5a5a5a5a5a5.index".to_owned(),
            "versions/1/system-a5.index".to_owned(),
            "versions/1/system-+5a5a5a5a5a5a5a5.index".to_owned(),
            format!("packs/00/{hash}"),
            format!("packs/{hash}"),
            format!("packs/a5/{hash}/x"),
        ] {
            assert!(text.parse::<ObjectName>().is_err(), "{text}");
        }
    }
}
