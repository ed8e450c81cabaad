//! A repository's small objects, kept on the host so that it can start without the server.
//!
//! [`Replica`] stands in front of the real backend: manifests, indexes and traces are read from the host's own copy once
//! they were read whole, and the head as last heard serves while the server is away. Packs are not kept here: their
//! frames live in the cache. Copies are checked like everything else a backend gives; a damaged one is dropped and read again
//! by whoever finds it, through [`Replica::forget`].

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

    /// Drops the copies, because one of them does not read well.
    pub(crate) fn forget(&self) {
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = record::make_directory(&self.directory);
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
        Ok(())
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
    use std::sync::Arc;

    use bytes::Bytes;
    use collective_repository::backend::{Backend, Memory, ObjectName};

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
        away.forget();
        assert!(away.read(&ObjectName::Descriptor, None).await.is_err());
    }
}
