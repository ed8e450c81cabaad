//! Appliances in a registry of containers: each version is a tag, each object a blob (`docs/formats/oci.md`).
//!
//! Packs are read by ranges where they are, so a version can be started from a registry without being copied. A whole blob is
//! checked by its SHA-256; of a range only our own hashes above can say whether it is right. A registry has no
//! compare-and-swap: of two who push the same version at the same moment the later one's tag stays, and whoever
//! publishes there must be one. It cannot list or remove objects.

mod artifact;
mod reference;
mod registry;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{Epoch, Error, ErrorKind, Result, ResultExt, Version};
use futures::stream::{self, StreamExt, TryStreamExt};
use reqwest::{Client, StatusCode};

pub use reference::RegistryReference;
pub use registry::Credentials;

use super::memory::missing;
use super::{
    Backend, Commit, Listed, ObjectName, Pieces, check_commit, check_limit, encode_latest,
    gather_range, not_found, too_short,
};
use crate::manifest::Manifest;
use artifact::{Blob, Sha256};
use registry::Registry;

/// Objects of which it is known where they are, at most: 100 bytes each, and room for 10 TB of packs.
const OBJECTS_MAX: usize = 200_000;

/// The tag beside the numbers that other tools take if they are not told which.
const NEWEST: &str = "latest";

/// Reads appliances from a registry, and pushes them there.
#[derive(Debug)]
pub struct Oci {
    registry: Registry,
    /// The one version that was asked for; all without one.
    only: Option<Version>,
    known: Mutex<Known>,
}

/// What tags have told so far.
#[derive(Debug, Default)]
struct Known {
    blobs: BTreeMap<ObjectName, Blob>,
    versions: BTreeSet<Version>,
    /// Whether the newest version was looked for.
    is_looked_up: bool,
}

impl Oci {
    /// Opens a place in a registry, which need not exist yet; asks nobody. Registries on this computer are spoken to in plain HTTP, others
    /// only if it is said.
    ///
    /// # Errors
    /// `Invalid` if it is no place.
    pub fn open(
        reference: &RegistryReference,
        plain_http: bool,
        credentials: Option<Credentials>,
    ) -> Result<Self> {
        let client = Client::builder().build();
        let client = client.or_error(ErrorKind::Internal, || "cannot set up HTTP".to_owned())?;
        let registry = Registry::new(client, reference, plain_http, credentials)?;
        Ok(Self { registry, only: reference.version, known: Mutex::default() })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what the tag of a version says, unless it was read before; tells whether there is one.
    async fn load(&self, version: Version) -> Result<bool> {
        if self.known().versions.contains(&version) {
            return Ok(true);
        }
        let Some(bytes) = self.registry.manifest(&version.to_string()).await? else {
            return Ok(false);
        };
        let objects = artifact::decode(version, &bytes)?;
        self.note(&objects)?;
        self.known().versions.insert(version);
        Ok(true)
    }

    fn note(&self, objects: &[(ObjectName, Blob)]) -> Result<()> {
        let mut known = self.known();
        if known.blobs.len() + objects.len() > OBJECTS_MAX {
            let message = format!("{} has too many objects", self.registry.transfer.place);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        known.blobs.extend(objects.iter().copied());
        Ok(())
    }

    /// Finds where an object is. Packs are found once the version that needs them was looked at, or are the newest version's.
    async fn find(&self, name: &ObjectName) -> Result<Option<Blob>> {
        let known = |this: &Self| this.known().blobs.get(name).copied();
        if let Some(blob) = known(self) {
            return Ok(Some(blob));
        }
        let version = match (name, name.version()) {
            (ObjectName::Latest | ObjectName::Sweep, _) => None,
            (_, Some(version)) => Some(version),
            _ if std::mem::replace(&mut self.known().is_looked_up, true) => None,
            _ => self.head().await?,
        };
        if let Some(version) = version {
            self.load(version).await?;
        }
        Ok(known(self))
    }

    /// Checks a range against what the tag says, and asks for it.
    async fn pieces(&self, name: &ObjectName, blob: Blob, range: Range<u64>) -> Result<Pieces> {
        if range.end > blob.size_bytes {
            return Err(too_short(name, blob.size_bytes, range.end));
        }
        let what = format!("read {name}");
        let asked = Some((range.start, range.end - 1));
        let response = self.registry.blob(&what, &blob, asked).await?;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let length = (range.end - range.start) as usize;
            return Ok(self.registry.transfer.pieces(response, length, what));
        }
        // A registry that knows no ranges sends it all; what comes before is passed over, what comes behind is not waited for.
        let all = self.registry.transfer.pieces(response, blob.size_bytes as usize, what);
        let cut = all.scan(0_u64, move |at, piece| {
            let part = piece.map(|piece| {
                let length = piece.len() as u64;
                let within = |place: u64| place.saturating_sub(*at).min(length) as usize;
                let part = piece.slice(within(range.start)..within(range.end));
                *at += length;
                part
            });
            let is_over = *at >= range.end && part.as_ref().is_ok_and(Bytes::is_empty);
            std::future::ready((!is_over).then_some(part))
        });
        Ok(cut.try_filter(|part| std::future::ready(!part.is_empty())).boxed())
    }

    async fn check_commit(&self, commit: &Commit) -> Result<()> {
        let head = self.head().await?;
        let epoch = match head {
            Some(head) => {
                Manifest::peek(&self.read(&ObjectName::Manifest(head), None).await?)?.epoch
            }
            None => Epoch::default(),
        };
        check_commit(head, epoch, commit)
    }
}

fn read_only(name: &ObjectName) -> Error {
    Error::new(ErrorKind::Invalid, format!("{name} cannot be changed in a registry"))
}

#[async_trait]
impl Backend for Oci {
    async fn read(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes> {
        if *name == ObjectName::Latest {
            let head = self.head().await?.ok_or_else(|| not_found(name))?;
            return Ok(encode_latest(head).into());
        }
        if let Some(range) = range {
            return gather_range(name, range.clone(), self.stream(name, range).await?).await;
        }
        let blob = self.find(name).await?.ok_or_else(|| not_found(name))?;
        check_limit(name, blob.size_bytes)?;
        let what = format!("read {name}");
        let response = self.registry.blob(&what, &blob, None).await?;
        let limit = blob.size_bytes as usize;
        let bytes = self.registry.transfer.body(response, limit, &what).await?;
        if Sha256::of(&bytes) == blob.digest {
            return Ok(bytes);
        }
        let message = format!("{name} is not what its tag says: the SHA-256 differs");
        Err(Error::new(ErrorKind::Corrupt, message))
    }

    async fn stream(&self, name: &ObjectName, range: Range<u64>) -> Result<Pieces> {
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let blob = self.find(name).await?.ok_or_else(|| not_found(name))?;
        self.pieces(name, blob, range).await
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        Ok(self.find(name).await?.map(|blob| blob.size_bytes))
    }

    async fn write(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        let is_taken = match name {
            ObjectName::Latest | ObjectName::Sweep => true,
            ObjectName::Descriptor => self.find(name).await?.is_some(),
            _ => false,
        };
        if is_taken {
            return Err(read_only(name));
        }
        let blob = self.registry.put_blob(&format!("write {name}"), bytes).await?;
        self.note(&[(*name, blob)])
    }

    async fn list(&self, _prefix: &str) -> Result<Vec<Listed>> {
        let message = format!("{} lists no objects", self.registry.transfer.place);
        Err(Error::new(ErrorKind::Invalid, message))
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        Err(read_only(name).with_hint("remove tags with the registry's own tools"))
    }

    async fn head(&self) -> Result<Option<Version>> {
        if let Some(only) = self.only {
            return Ok(self.load(only).await?.then_some(only));
        }
        let tags = self.registry.tags().await?;
        Ok(tags.iter().filter_map(|tag| tag.parse::<Version>().ok()).max())
    }

    async fn commit(&self, commit: Commit) -> Result<()> {
        self.check_commit(&commit).await?;
        let name = ObjectName::Manifest(commit.version);
        let manifest = Manifest::peek(&commit.manifest)?;
        self.write(&name, commit.manifest).await?;
        let needed = manifest.objects().into_iter().map(|object| object.name);
        let mut objects = Vec::new();
        for name in [ObjectName::Descriptor, name].into_iter().chain(needed) {
            let blob = self.find(&name).await?.ok_or_else(|| missing(&name))?;
            objects.push((name, blob));
        }
        let tag = Bytes::from(artifact::encode(commit.version, &objects)?);
        self.registry.put_manifest(&commit.version.to_string(), tag.clone()).await?;
        self.known().versions.insert(commit.version);
        self.registry.put_manifest(NEWEST, tag).await
    }
}
