//! A repository's small objects, kept on the host so that it can start without the server.
//!
//! [`Replica`] stands in front of the real backend: manifests, indexes and traces are read from the host's own copy once
//! they were read whole, and the head as last heard serves while the server is away. Packs are not kept here: their
//! frames live in the cache. Copies are checked like everything else a backend gives; a damaged one is dropped by whoever finds
//! it ([`Backend::distrust`]), and read again. Copies of a user disk's old versions go when new ones are made.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{Error, ErrorKind, Result, Version};
use collective_repository::backend::{
    Backend, Commit, Exclusive, Listed, ObjectName, Pieces, one_piece,
};

use crate::record;

/// Largest object that is copied; a huge index is read by pages, and only its touched parts cross the network.
const COPIED_BYTES: u64 = 16 << 20;

/// Versions of a repository that is written from here whose copies stay: more than are listed, and than run.
const COPIED_VERSIONS: u64 = 200;

/// A backend with a copy of its small objects.
#[derive(Debug)]
pub(crate) struct Replica {
    real: Arc<dyn Backend>,
    directory: PathBuf,
}

impl Replica {
    /// Stands in front of `real`, with copies below `directory`.
    pub(crate) fn new(real: Arc<dyn Backend>, directory: &Path) -> Result<Self> {
        record::make_directory(directory)?;
        Ok(Self { real, directory: directory.to_owned() })
    }

    fn copied(name: &ObjectName) -> bool {
        matches!(name, ObjectName::Descriptor | ObjectName::Manifest(_) | ObjectName::Part { .. })
    }

    /// The copy's file: one flat name, because there are few.
    fn path(&self, name: &ObjectName) -> PathBuf {
        self.directory.join(name.to_string().replace('/', "_"))
    }

    fn copy(&self, name: &ObjectName) -> Option<Bytes> {
        std::fs::read(self.path(name)).ok().map(Bytes::from)
    }

    async fn fetch_copy(&self, name: &ObjectName) -> Result<Option<Bytes>> {
        match self.real.size(name).await? {
            Some(size) if size <= COPIED_BYTES => {}
            _ => return Ok(None),
        }
        let bytes = self.real.read(name, None).await?;
        self.keep(name, &bytes);
        Ok(Some(bytes))
    }

    /// A copy that cannot be written is no reason to fail: the object was read.
    fn keep(&self, name: &ObjectName, bytes: &[u8]) {
        if let Err(error) = record::store_bytes(&self.path(name), bytes) {
            tracing::warn!("cannot keep a copy of {name}: {}", error.chain());
        }
    }

    fn keep_head(&self, head: Option<Version>) {
        let path = self.directory.join("head.json");
        if record::load::<Option<Version>>(&path).ok().flatten() == Some(head) {
            return;
        }
        if let Err(error) = record::store(&path, &head) {
            tracing::warn!("cannot keep the head: {}", error.chain());
        }
    }

    /// Drops the copies of versions that nobody here asks for any more.
    fn drop_older(&self, head: Version) {
        let Some(oldest) = Version::new(head.number().saturating_sub(COPIED_VERSIONS)) else {
            return;
        };
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("versions_"));
            let number = number.and_then(|name| name.split('_').next()?.parse().ok());
            if number.and_then(Version::new).is_some_and(|version| version < oldest) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

#[async_trait]
impl Backend for Replica {
    async fn read(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes> {
        if !Self::copied(name) {
            return self.real.read(name, range).await;
        }
        let whole = match self.copy(name) {
            Some(bytes) => Some(bytes),
            None => self.fetch_copy(name).await?,
        };
        match (whole, range) {
            (Some(bytes), None) => Ok(bytes),
            (Some(bytes), Some(range)) => slice(name, &bytes, range),
            (None, range) => self.real.read(name, range).await,
        }
    }

    async fn stream(&self, name: &ObjectName, range: Range<u64>) -> Result<Pieces> {
        if !Self::copied(name) {
            return self.real.stream(name, range).await;
        }
        self.read(name, Some(range)).await.map(one_piece)
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        if Self::copied(name)
            && let Ok(metadata) = std::fs::metadata(self.path(name))
        {
            return Ok(Some(metadata.len()));
        }
        self.real.size(name).await
    }

    async fn write(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        self.real.write(name, bytes.clone()).await?;
        if Self::copied(name) && bytes.len() as u64 <= COPIED_BYTES {
            self.keep(name, &bytes);
        }
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.real.list(prefix).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.real.delete(name).await?;
        record::remove(&self.path(name))
    }

    async fn head(&self) -> Result<Option<Version>> {
        match self.real.head().await {
            Ok(head) => {
                self.keep_head(head);
                Ok(head)
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                let kept = record::load(&self.directory.join("head.json")).ok().flatten();
                kept.ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn commit(&self, commit: Commit) -> Result<()> {
        let (name, manifest) = (ObjectName::Manifest(commit.version), commit.manifest.clone());
        let version = commit.version;
        self.real.commit(commit).await?;
        self.keep(&name, &manifest);
        self.keep_head(Some(version));
        self.drop_older(version);
        Ok(())
    }

    async fn distrust(&self, name: &ObjectName) -> bool {
        std::fs::remove_file(self.path(name)).is_ok()
    }

    async fn exclusive(&self) -> Result<Exclusive> {
        self.real.exclusive().await
    }
}

fn slice(name: &ObjectName, bytes: &Bytes, range: Range<u64>) -> Result<Bytes> {
    if range.end > bytes.len() as u64 || range.start > range.end {
        let message = format!("{name} has {} bytes, and {} are needed", bytes.len(), range.end);
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    let start = usize::try_from(range.start).expect("it is not beyond the end of bytes in memory");
    let end = usize::try_from(range.end).expect("it is not beyond the end of bytes in memory");
    Ok(bytes.slice(start..end))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use collective_model::{BlockRange, DiskRole, Version};
    use collective_repository::backend::{Backend, Directory, Memory, ObjectName};
    use collective_repository::{Descriptor, Repository, Trust};

    use super::Replica;

    #[tokio::test]
    async fn what_was_read_once_is_there_without_the_server() {
        let directory = tempfile::tempdir().unwrap();
        let real = Arc::new(Memory::default());
        real.write(&ObjectName::Descriptor, Bytes::from_static(b"repository")).await.unwrap();
        let near = Replica::new(real, directory.path()).unwrap();
        near.read(&ObjectName::Descriptor, None).await.unwrap();
        assert_eq!(near.head().await.unwrap(), None);

        let away = Replica::new(Arc::new(Memory::default()), directory.path()).unwrap();
        let bytes = away.read(&ObjectName::Descriptor, Some(2..4)).await.unwrap();
        assert_eq!(&bytes[..], b"po");
        assert!(away.read(&ObjectName::Descriptor, Some(2..40)).await.is_err());
        assert!(away.distrust(&ObjectName::Descriptor).await);
        assert!(!away.distrust(&ObjectName::Descriptor).await);
        assert!(away.read(&ObjectName::Descriptor, None).await.is_err());
    }

    #[tokio::test]
    async fn a_damaged_copy_is_read_again_and_no_damage_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (real, trust) = one_version().await;
        let near = || Arc::new(Replica::new(Arc::clone(&real) as _, directory.path()).unwrap());
        let read = async || {
            let repository = Repository::open(near(), trust.clone()).await?;
            let version = repository.version(Version::FIRST).await?;
            version.trace(DiskRole::System).await?;
            version.disk(DiskRole::System).await?.map(BlockRange::new(0, 1)).await
        };
        read().await.unwrap();
        let copies: Vec<_> = std::fs::read_dir(directory.path()).unwrap().flatten().collect();
        let copies = copies.iter().filter(|copy| copy.file_name() != "head.json");
        let copies: Vec<_> = copies.map(std::fs::DirEntry::path).collect();
        assert_eq!(copies.len(), 4, "{copies:?}");
        for copy in copies {
            let whole = std::fs::read(&copy).unwrap();
            std::fs::write(&copy, &whole[..whole.len() / 2]).unwrap();
            read().await.unwrap();
            assert_eq!(std::fs::read(&copy).unwrap(), whole);
        }
    }

    #[tokio::test]
    async fn copies_of_old_versions_go() {
        let directory = tempfile::tempdir().unwrap();
        let near = Replica::new(Arc::new(Memory::default()), directory.path()).unwrap();
        let version = |number| Version::new(number).unwrap();
        for number in [1, 99, 100, 101, 300] {
            near.keep(&ObjectName::Manifest(version(number)), b"manifest");
        }
        near.drop_older(version(300));
        let left = [1, 99, 100, 101, 300]
            .map(|number| near.copy(&ObjectName::Manifest(version(number))).is_some());
        assert_eq!(left, [false, false, true, true, true]);
    }

    /// A repository whose first version has an index and a trace.
    async fn one_version() -> (Arc<Directory>, Trust) {
        let sample = "../../testdata/repository-v1/public";
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join(sample);
        let real = Directory::open(sample).unwrap();
        let descriptor = real.read(&ObjectName::Descriptor, None).await.unwrap();
        let Descriptor { id, publisher, .. } = Descriptor::decode(&descriptor).unwrap();
        (Arc::new(real), Trust { id, publisher, secret: None })
    }
}
