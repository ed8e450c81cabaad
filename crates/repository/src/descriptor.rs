//! `repository.json`: what a repository is, and what a reader must already know to believe it.
//!
//! The descriptor is written once, when the repository is created, and never changes. It carries its own check, so that
//! damage is told from a foreign repository; what makes it *believed* is [`Trust`], which the reader has from an
//! authenticated place (the server's profile, a configuration file).

use collective_model::{BLOCK_BYTES, Digest, Error, ErrorKind, RepositoryId, Result};
use serde::{Deserialize, Serialize};

use crate::frame::MAX_FRAME_BLOCKS;
use crate::keys::{PublisherKey, RepositorySecret};

/// The format that this code writes, and the only one it reads.
pub const FORMAT: u32 = 1;

/// Plain bytes of a frame unless the creator chose otherwise: fewest bytes in all that were measured (DESIGN 4.3).
pub const DEFAULT_FRAME_BYTES: u32 = 256 << 10;

/// What a repository holds versions of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An appliance: hardware, a system disk, maybe the template of a user disk.
    Appliance,
    /// One subscription's user disk.
    UserDisk,
}

/// The content of `repository.json`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// The format of everything in the repository: [`FORMAT`].
    pub format: u32,
    /// Drawn when the repository is created; signed into every manifest.
    pub id: RepositoryId,
    /// What it holds versions of.
    pub kind: Kind,
    /// Who signs its versions.
    pub publisher: PublisherKey,
    /// Plain bytes in a frame at most: a power of two from 4 KiB to 1 MiB.
    pub frame_bytes: u32,
    /// Whether it is private: frames, indexes and traces encrypted, block hashes keyed.
    pub encrypted: bool,
}

/// The file: the descriptor and a check over its JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checked {
    repository: Descriptor,
    check: Digest,
}

impl Descriptor {
    /// Describes a new repository of anyone's reading with the default frame size.
    #[must_use]
    pub fn public(id: RepositoryId, kind: Kind, publisher: PublisherKey) -> Self {
        let frame_bytes = DEFAULT_FRAME_BYTES;
        Self { format: FORMAT, id, kind, publisher, frame_bytes, encrypted: false }
    }

    /// Describes a new private repository, whose publisher is whoever has the secret.
    #[must_use]
    pub fn private(id: RepositoryId, kind: Kind, secret: &RepositorySecret) -> Self {
        Self { encrypted: true, ..Self::public(id, kind, secret.signing_key().publisher()) }
    }

    /// Returns the bytes of `repository.json`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let checked = Checked { repository: self.clone(), check: self.check_sum() };
        let mut bytes = to_json(&checked);
        bytes.push(b'\n');
        bytes
    }

    /// Reads `repository.json`.
    ///
    /// # Errors
    /// `Corrupt` for bytes that [`encode`](Self::encode) did not write; `Invalid` for a format of a later time or parameters out of
    /// their bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::new(ErrorKind::Corrupt, "repository.json is damaged");
        let checked: Checked =
            serde_json::from_slice(bytes).map_err(|error| damaged().with_source(error))?;
        let descriptor = checked.repository;
        if descriptor.encode() != bytes {
            return Err(damaged());
        }
        descriptor.check()?;
        Ok(descriptor)
    }

    /// Checks the bounds of every field.
    ///
    /// # Errors
    /// `Invalid`, naming the field.
    pub fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
        if self.format != FORMAT {
            return invalid(format!(
                "repository {} has format {}, and this program reads format {FORMAT}",
                self.id, self.format
            ));
        }
        let most = u64::from(MAX_FRAME_BLOCKS) * BLOCK_BYTES;
        let frame_bytes = u64::from(self.frame_bytes);
        if !frame_bytes.is_power_of_two() || !(BLOCK_BYTES..=most).contains(&frame_bytes) {
            return invalid(format!(
                "frame_bytes is {frame_bytes}, and must be a power of two from {BLOCK_BYTES} to {most}"
            ));
        }
        Ok(())
    }

    /// Returns the blocks in a frame at most.
    pub(crate) fn frame_blocks(&self) -> u32 {
        self.frame_bytes / BLOCK_BYTES as u32
    }

    fn check_sum(&self) -> Digest {
        Digest(*blake3::hash(&to_json(self)).as_bytes())
    }
}

/// What a reader knows of a repository from an authenticated place, before it reads the first byte of it.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Which repository it must be.
    pub id: RepositoryId,
    /// Who must have signed its versions.
    pub publisher: PublisherKey,
    /// The secret of a private repository. Without it such a repository can be verified and pruned but not read.
    pub secret: Option<RepositorySecret>,
}

impl Trust {
    /// Checks that a descriptor is of the repository that this trust is in.
    ///
    /// # Errors
    /// `Corrupt` if it is another one or claims to be public though there is a secret; `Denied` if the secret is not its own.
    pub(crate) fn check(&self, descriptor: &Descriptor) -> Result<()> {
        let foreign = |what: String| {
            let message = format!("repository.json is not that of repository {}: {what}", self.id);
            Err(Error::new(ErrorKind::Corrupt, message))
        };
        if descriptor.id != self.id {
            return foreign(format!("it names {}", descriptor.id));
        }
        if descriptor.publisher != self.publisher {
            return foreign(format!("it names the publisher {}", descriptor.publisher));
        }
        let Some(secret) = &self.secret else { return Ok(()) };
        if !descriptor.encrypted {
            return foreign("it is not encrypted, and must be".to_owned());
        }
        check_secret(descriptor, secret)
    }
}

/// Checks that a secret belongs to a private repository: it must give the publisher's key.
pub(crate) fn check_secret(descriptor: &Descriptor, secret: &RepositorySecret) -> Result<()> {
    if secret.signing_key().publisher() == descriptor.publisher {
        return Ok(());
    }
    let message = format!("the secret is not that of repository {}", descriptor.id);
    Err(Error::new(ErrorKind::Denied, message))
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structs of texts and numbers always become JSON")
}

#[cfg(test)]
mod tests {
    use collective_model::{ErrorKind, RepositoryId};

    use super::{Descriptor, Kind, Trust};
    use crate::keys::RepositorySecret;

    fn private(seed: u8) -> (Descriptor, Trust) {
        let secret = RepositorySecret::new([seed; 32]);
        let descriptor = Descriptor::private(RepositoryId([3; 16]), Kind::UserDisk, &secret);
        let trust =
            Trust { id: descriptor.id, publisher: descriptor.publisher, secret: Some(secret) };
        (descriptor, trust)
    }

    #[test]
    fn every_flipped_byte_is_corrupt() {
        let (descriptor, _) = private(1);
        let bytes = descriptor.encode();
        assert_eq!(Descriptor::decode(&bytes).unwrap(), descriptor);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let error = Descriptor::decode(&damaged).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at} bit {bit}");
            }
        }
        for length in 0..bytes.len() {
            let error = Descriptor::decode(&bytes[..length]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "cut at {length}");
        }
    }

    #[test]
    fn another_repository_publisher_or_privacy_is_not_trusted() {
        let (descriptor, trust) = private(1);
        trust.check(&descriptor).unwrap();
        let id = RepositoryId([4; 16]);
        let publisher = private(2).0.publisher;
        for lie in [
            Descriptor { id, ..descriptor.clone() },
            Descriptor { publisher, ..descriptor.clone() },
            Descriptor { encrypted: false, ..descriptor.clone() },
        ] {
            assert_eq!(trust.check(&lie).unwrap_err().kind(), ErrorKind::Corrupt, "{lie:?}");
        }
    }

    #[test]
    fn a_wrong_secret_is_denied() {
        let (descriptor, trust) = private(1);
        let wrong = Trust { secret: Some(RepositorySecret::new([9; 32])), ..trust };
        assert_eq!(wrong.check(&descriptor).unwrap_err().kind(), ErrorKind::Denied);
    }

    #[test]
    fn frames_that_are_no_power_of_two_or_too_large_are_refused() {
        let (descriptor, _) = private(1);
        for frame_bytes in [0, 1, 2048, 5000, 12288, 2 << 20] {
            let error = Descriptor { frame_bytes, ..descriptor.clone() }.check().unwrap_err();
            assert!(error.to_string().contains("frame_bytes"), "{error}");
        }
    }
}
