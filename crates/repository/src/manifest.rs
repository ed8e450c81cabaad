//! `versions/<n>/manifest.json`: what a version is, signed.
//!
//! The file is a DSSE envelope (github.com/secure-systems-lab/dsse, version 1) with one ed25519 signature over the payload and its
//! type. The payload names the repository and the version, so an old manifest cannot be served as a newer one, nor one
//! repository's as another's; and it names the hash of every object that is needed to read the version.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use collective_model::{
    BLOCK_BYTES, Digest, DiskRole, Epoch, Error, ErrorKind, Hardware, RepositoryId, Result,
    Timestamp, Version,
};
use serde::{Deserialize, Serialize};

use crate::backend::{ObjectName, PartKind};
use crate::descriptor::Descriptor;
use crate::keys::SigningKey;

/// The type of the payload, which is signed with it.
pub const PAYLOAD_TYPE: &str = "application/vnd.collective.manifest+json";

/// The format of versions that are published. Since 2 frames may be filtered; what is read may be older.
pub const FORMAT: u32 = 2;

/// Packs that a version may reach: what keeps a manifest within 32 MiB. At 32 MiB a pack that is 3 TiB of compressed data.
pub const MAX_PACKS: usize = 100_000;

/// The largest disk.
pub const MAX_DISK_BYTES: u64 = 1 << 46;

/// Notes and publication ids are short texts.
const MAX_NOTES_BYTES: usize = 64 << 10;
const MAX_ID_BYTES: usize = 256;

/// What a version is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format of the version: up to [`FORMAT`].
    pub format: u32,
    /// The repository that it belongs to.
    pub repository: RepositoryId,
    /// Its number.
    pub version: Version,
    /// The version that it was published after; none for the first.
    pub parent: Option<Version>,
    /// When it was published.
    pub time: Timestamp,
    /// What the publisher says about it.
    pub notes: String,
    /// Drawn by the publisher, who recognises its own version by it after a crash.
    pub id: String,
    /// The fencing number of the publisher's lock.
    pub epoch: Epoch,
    /// The machine that it is made for; none for a user disk alone.
    pub hardware: Option<Hardware>,
    /// Its disks, one of a role at most.
    pub disks: Vec<DiskManifest>,
    /// Every pack that its disks reach, oldest first. Indexes name packs by their place in this list.
    pub packs: Vec<PackEntry>,
}

/// What a version says of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskManifest {
    /// What the disk is for.
    pub role: DiskRole,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes in blocks that are not all zero.
    pub data_bytes: u64,
    /// Where its map is.
    pub index: IndexEntry,
    /// The order in which a start touches it, if one was recorded.
    pub trace: Option<TraceEntry>,
}

/// Where a disk's index is and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexEntry {
    /// Size of the object. The directory is its end.
    pub bytes: u64,
    /// Size of the directory.
    pub directory_bytes: u32,
    /// Hash of the directory, which has those of all pages; also in the object's name.
    pub hash: Digest,
}

/// Where a disk's trace is and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceEntry {
    /// Size of the object.
    pub bytes: u64,
    /// Hash of the object; also in its name.
    pub hash: Digest,
}

/// A pack that a version reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackEntry {
    /// Its id: the hash of its bytes.
    pub id: Digest,
    /// Its size.
    pub bytes: u64,
    /// The size of its table of contents with the footer: the end of it that a publisher reads.
    pub table_bytes: u32,
    /// The hash of these bytes, so that nobody can make a publisher believe that a block is where it is not.
    pub table_hash: Digest,
}

/// An object that a version needs, as its manifest says it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeededObject {
    /// Its name.
    pub name: ObjectName,
    /// Its size.
    pub size_bytes: u64,
}

impl DiskManifest {
    /// Returns the name of the index.
    #[must_use]
    pub fn index_name(&self, version: Version) -> ObjectName {
        ObjectName::part(version, self.role, PartKind::Index, &self.index.hash)
    }

    /// Returns the name of the trace, if there is one.
    #[must_use]
    pub fn trace_name(&self, version: Version) -> Option<ObjectName> {
        let trace = self.trace.as_ref()?;
        Some(ObjectName::part(version, self.role, PartKind::Trace, &trace.hash))
    }

    /// Returns the blocks of the disk; the last may be cut by its size.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_BYTES)
    }
}

impl Manifest {
    /// Returns the disk of a role.
    ///
    /// # Errors
    /// `NotFound`, naming role and version.
    pub fn disk(&self, role: DiskRole) -> Result<&DiskManifest> {
        self.disks.iter().find(|disk| disk.role == role).ok_or_else(|| {
            let message = format!("version {} has no {role} disk", self.version);
            Error::new(ErrorKind::NotFound, message)
        })
    }

    /// Returns every object that is needed to read the version, packs last.
    #[must_use]
    pub fn objects(&self) -> Vec<NeededObject> {
        let mut objects = Vec::with_capacity(2 * self.disks.len() + self.packs.len());
        for disk in &self.disks {
            let name = disk.index_name(self.version);
            objects.push(NeededObject { name, size_bytes: disk.index.bytes });
            if let (Some(name), Some(trace)) = (disk.trace_name(self.version), &disk.trace) {
                objects.push(NeededObject { name, size_bytes: trace.bytes });
            }
        }
        objects.extend(
            self.packs.iter().map(|pack| NeededObject {
                name: ObjectName::Pack(pack.id),
                size_bytes: pack.bytes,
            }),
        );
        objects
    }

    /// Reads a manifest *without* checking its signature: for who keeps it, never for who believes it.
    ///
    /// # Errors
    /// `Corrupt` if it cannot be read.
    pub fn peek(bytes: &[u8]) -> Result<Self> {
        let payload = Envelope::decode(bytes)?.payload()?;
        serde_json::from_slice(&payload).map_err(|error| damaged().with_source(error))
    }

    /// Reads a manifest and checks that the repository's publisher signed it, as this version of this repository.
    ///
    /// # Errors
    /// `Corrupt`, saying what does not fit; `Invalid` for a format of a later time.
    pub fn open(bytes: &[u8], descriptor: &Descriptor, version: Version) -> Result<Self> {
        let manifest = Self::authenticate(bytes, descriptor, version);
        manifest.map_err(|error| error.context(ObjectName::Manifest(version).to_string()))
    }

    fn authenticate(bytes: &[u8], descriptor: &Descriptor, version: Version) -> Result<Self> {
        let payload = Envelope::decode(bytes)?.verified_payload(descriptor)?;
        let manifest: Self =
            serde_json::from_slice(&payload).map_err(|error| damaged().with_source(error))?;
        if manifest.repository != descriptor.id || manifest.version != version {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "it was signed as version {} of repository {}",
                    manifest.version, manifest.repository
                ),
            ));
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// Signs the manifest; returns the bytes of the file.
    pub(crate) fn sign(&self, key: &SigningKey) -> Bytes {
        let payload = serde_json::to_vec(self).expect("plain structs always become JSON");
        let signature = key.sign(&pre_authentication(&payload));
        let envelope = Envelope {
            payload_type: PAYLOAD_TYPE.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![SignatureEntry {
                keyid: key.publisher().to_string(),
                sig: STANDARD.encode(signature),
            }],
        };
        envelope.encode().into()
    }

    /// Checks the bounds of every field.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
        if !(1..=FORMAT).contains(&self.format) {
            let format = self.format;
            return invalid(format!(
                "it has format {format}, and this program reads formats up to {FORMAT}"
            ));
        }
        if self.notes.len() > MAX_NOTES_BYTES || self.id.len() > MAX_ID_BYTES {
            return invalid(format!(
                "notes may have {MAX_NOTES_BYTES} bytes and a publication id {MAX_ID_BYTES}"
            ));
        }
        if self.packs.len() > MAX_PACKS {
            return invalid(format!("a version may reach {MAX_PACKS} packs"));
        }
        if let Some(hardware) = &self.hardware {
            hardware.check()?;
        }
        self.disks.iter().enumerate().try_for_each(|(at, disk)| {
            let twice = self.disks[..at].iter().any(|other| other.role == disk.role);
            if twice || disk.role == DiskRole::Ephemeral {
                return invalid(format!("it may not have this {} disk", disk.role));
            }
            check_disk_size(disk.role, disk.size_bytes)
        })
    }
}

/// Checks that a disk has a size that virtual machines and this format can have.
pub(crate) fn check_disk_size(role: DiskRole, size_bytes: u64) -> Result<()> {
    if size_bytes > 0 && size_bytes <= MAX_DISK_BYTES && size_bytes.is_multiple_of(512) {
        return Ok(());
    }
    let message = format!(
        "the {role} disk has {size_bytes} bytes, and must have a multiple of 512 from 512 to {MAX_DISK_BYTES}"
    );
    Err(Error::new(ErrorKind::Invalid, message))
}

/// The DSSE envelope.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    #[serde(rename = "payloadType")]
    payload_type: String,
    payload: String,
    signatures: Vec<SignatureEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureEntry {
    keyid: String,
    sig: String,
}

impl Envelope {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("plain structs always become JSON");
        bytes.push(b'\n');
        bytes
    }

    /// Reads an envelope that has exactly the bytes that [`encode`](Self::encode) writes.
    fn decode(bytes: &[u8]) -> Result<Self> {
        let envelope: Self =
            serde_json::from_slice(bytes).map_err(|error| damaged().with_source(error))?;
        let ours = envelope.payload_type == PAYLOAD_TYPE && envelope.encode() == bytes;
        if ours { Ok(envelope) } else { Err(damaged()) }
    }

    fn payload(&self) -> Result<Vec<u8>> {
        STANDARD.decode(&self.payload).map_err(|error| damaged().with_source(error))
    }

    fn verified_payload(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let payload = self.payload()?;
        let [entry] = self.signatures.as_slice() else { return Err(damaged()) };
        let signature =
            STANDARD.decode(&entry.sig).map_err(|error| damaged().with_source(error))?;
        let publisher = descriptor.publisher;
        if entry.keyid != publisher.to_string()
            || !publisher.verifies(&pre_authentication(&payload), &signature)
        {
            let message = format!("it is not signed by the publisher {publisher}");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(payload)
    }
}

fn damaged() -> Error {
    Error::new(ErrorKind::Corrupt, "the manifest is damaged")
}

/// What DSSE signs: the payload and its type, with their lengths.
fn pre_authentication(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len());
    [head.as_bytes(), payload].concat()
}
