//! One version as an OCI image manifest: `docs/formats/oci.md`.
//!
//! The config is the repository's descriptor, the layers are its objects, each with the name of the object in the annotation
//! that other tools show as a file name. What a registry says is believed only as far as that: bytes are checked by their
//! SHA-256, and what they mean by the publisher's signature, as everywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use collective_model::{Digest, Error, ErrorKind, Result, Version};
use serde::{Deserialize, Serialize};

use crate::backend::{ObjectName, PartKind};

/// The media type of the manifest itself.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// What the artifact is.
const ARTIFACT_TYPE: &str = "application/vnd.collective.appliance.v1";
/// The annotation that says an object's name.
const TITLE: &str = "org.opencontainers.image.title";
/// The annotation that says a version's number.
const VERSION: &str = "org.opencontainers.image.version";

/// Bytes of a manifest; what registries take at most. It is room for some 12,000 packs.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// A SHA-256 hash, written as registries do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// Hashes bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
        Self(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", Digest(self.0))
    }
}

impl FromStr for Sha256 {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digest = text.strip_prefix("sha256:").unwrap_or_default();
        digest.parse::<Digest>().map(|digest| Self(digest.0))
    }
}

impl TryFrom<String> for Sha256 {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(hash: Sha256) -> Self {
        hash.to_string()
    }
}

/// Where the bytes of an object are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    pub digest: Sha256,
    pub size_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: String,
    artifact_type: Option<String>,
    config: Described,
    layers: Vec<Described>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    media_type: String,
    digest: Sha256,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Writes the manifest of a version from its objects, the descriptor first.
///
/// # Errors
/// `Invalid` if it has more objects than a registry takes.
pub fn encode(version: Version, objects: &[(ObjectName, Blob)]) -> Result<Vec<u8>> {
    let mut described = objects.iter().map(|(name, blob)| Described {
        media_type: media_type(name).to_owned(),
        digest: blob.digest,
        size: blob.size_bytes,
        annotations: [(TITLE.to_owned(), name.to_string())].into(),
    });
    let config = described.next().expect("the descriptor is the first of the objects");
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.to_owned(),
        artifact_type: Some(ARTIFACT_TYPE.to_owned()),
        config,
        layers: described.collect(),
        annotations: [(VERSION.to_owned(), version.to_string())].into(),
    };
    let bytes = serde_json::to_vec(&manifest).expect("plain structs always become JSON");
    if bytes.len() <= MANIFEST_BYTES_MAX {
        return Ok(bytes);
    }
    let message = format!("version {version} has too many objects for a registry");
    Err(Error::new(ErrorKind::Invalid, message)
        .with_hint("publish the whole image again: that gathers what is scattered over many packs"))
}

/// Reads the manifest of a version: its objects, the descriptor first. What is no object of ours is left out.
///
/// # Errors
/// `Invalid` for what is no artifact of ours; `Corrupt` if its numbers differ from the tag's.
pub fn decode(version: Version, bytes: &[u8]) -> Result<Vec<(ObjectName, Blob)>> {
    let foreign = || Error::new(ErrorKind::Invalid, format!("tag {version} is no appliance"));
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|error| foreign().with_source(error))?;
    if manifest.config.media_type != media_type(&ObjectName::Descriptor) {
        return Err(foreign());
    }
    let named = manifest.layers.iter().filter_map(|layer| {
        let name: ObjectName = layer.annotations.get(TITLE)?.parse().ok()?;
        let is_ours = layer.media_type == media_type(&name) && name != ObjectName::Descriptor;
        is_ours.then_some((name, layer))
    });
    let all = [(ObjectName::Descriptor, &manifest.config)].into_iter().chain(named);
    let objects = all.map(|(name, described)| {
        if described.size > name.limit_bytes()
            || name.version().is_some_and(|of_object| of_object != version)
        {
            let message = format!("tag {version} names {name}, which cannot be part of it");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok((name, Blob { digest: described.digest, size_bytes: described.size }))
    });
    objects.collect()
}

fn media_type(name: &ObjectName) -> &'static str {
    match name {
        ObjectName::Descriptor => "application/vnd.collective.repository.v1+json",
        ObjectName::Manifest(_) => "application/vnd.collective.manifest.v1+json",
        ObjectName::Part { kind: PartKind::Index, .. } => "application/vnd.collective.index.v1",
        ObjectName::Part { kind: PartKind::Trace, .. } => "application/vnd.collective.trace.v1",
        ObjectName::Pack(_) => "application/vnd.collective.pack.v1",
        // What a registry has tags for, and what only a prune needs.
        ObjectName::Latest | ObjectName::Sweep => "application/vnd.collective.none",
    }
}
