//! A repository's small objects, kept on the host so that it can start without the server.
//!
//! [`Replica`] stands in front of the real backend: manifests, indexes and traces are read from the host's own copy once
//! there is one, and the head as last heard serves while the server is away. What is small is copied when it is read; of a
//! large index only what is asked for is read, and the copy is made behind everybody's back ([`Copies`]). Packs are not kept
//! here: their frames live in the cache. Copies are checked like everything else a backend gives; a damaged one is dropped by whoever finds
//! it ([`Backend::distrust`]), and read again. Copies of a user disk's old versions go when new ones are made.

mod copies;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{Error, ErrorKind, Result, Version};
use collective_repository::WHOLE_INDEX_BYTES;
use collective_repository::backend::{
    Backend, Commit, Exclusive, Listed, ObjectName, PartKind, Pieces, one_piece,
};

pub(crate) use self::copies::Copies;
use self::copies::{Wanted, part_of};
use crate::record;

/// Largest object that is copied unless somebody holds the version: of a huger index only the touched parts cross the network.
const COPIED_BYTES: u64 = 16 << 20;

/// Versions of a repository that is written from here whose copies stay: more than are listed, and than run.
const COPIED_VERSIONS: u64 = 200;

/// A backend with a copy of its small objects.
#[derive(Debug)]
pub(crate) struct Replica {
    real: Arc<dyn Backend>,
    directory: PathBuf,
    copies: Copies,
}

impl Replica {
    /// Stands in front of `real`, with copies below `directory`.
    pub(crate) fn new(real: Arc<dyn Backend>, directory: &Path, copies: Copies) -> Result<Self> {
        record::make_directory(directory)?;
        Ok(Self { real, directory: directory.to_owned(), copies })
    }

    /// Copies an object however large it is, unless there is a copy; for who will read it without the server.
    pub(crate) async fn keep_whole(&self, name: &ObjectName) -> Result<()> {
        self.copies.make(&self.wanted(name, name.limit_bytes())).await.map(drop)
    }

    fn copied(name: &ObjectName) -> bool {
        matches!(name, ObjectName::Descriptor | ObjectName::Manifest(_) | ObjectName::Part { .. })
    }

    /// The copy's file: one flat name, because there are few.
    fn path(&self, name: &ObjectName) -> PathBuf {
        self.directory.join(name.to_string().replace('/', "_"))
    }

    /// Reads of the copy, if there is one.
    fn copy(&self, name: &ObjectName, range: Option<&Range<u64>>) -> Option<Result<Bytes>> {
        let file = File::open(self.path(name)).ok()?;
        let size_bytes = file.metadata().ok()?.len();
        let range = range.cloned().unwrap_or(0..size_bytes);
        if range.end > size_bytes || range.start > range.end {
            let message = format!("{name} has {size_bytes} bytes, and {} are needed", range.end);
            return Some(Err(Error::new(ErrorKind::Corrupt, message)));
        }
        let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
        file.read_exact_at(&mut bytes, range.start).ok()?;
        Some(Ok(bytes.into()))
    }

    /// Reads of an object that is not copied yet, and copies it then or later.
    async fn fetch(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes> {
        let Some(range) = range else {
            let bytes = self.real.read(name, None).await?;
            self.keep(name, &bytes);
            return Ok(bytes);
        };
        let is_index = matches!(name, ObjectName::Part { kind: PartKind::Index, .. });
        let (at_once_bytes, wanted) = (
            if is_index { WHOLE_INDEX_BYTES } else { COPIED_BYTES },
            self.wanted(name, COPIED_BYTES),
        );
        // A range tells as well that the object is large, and saves the question.
        let is_large = range.end > at_once_bytes
            || self.copies.knows(&wanted.path)
            || self.real.size(name).await?.is_none_or(|size_bytes| size_bytes > at_once_bytes);
        if is_large {
            if is_index {
                self.copies.begin(wanted);
            }
            return self.real.read(name, Some(range)).await;
        }
        let whole = self.real.read(name, None).await?;
        self.keep(name, &whole);
        slice(name, &whole, range)
    }

    fn wanted(&self, name: &ObjectName, limit_bytes: u64) -> Wanted {
        let (real, path) = (Arc::clone(&self.real), self.path(name));
        Wanted { real, name: *name, path, limit_bytes }
    }

    /// A copy that cannot be written is no reason to fail: the object was read.
    fn keep(&self, name: &ObjectName, bytes: &[u8]) {
        if bytes.len() as u64 > COPIED_BYTES {
            return;
        }
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
        match self.copy(name, range.as_ref()) {
            Some(read) => read,
            None => self.fetch(name, range).await,
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
        if Self::copied(name) {
            self.keep(name, &bytes);
        }
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.real.list(prefix).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.real.delete(name).await?;
        let path = self.path(name);
        record::remove(&part_of(&path))?;
        record::remove(&path)
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
        let path = self.path(name);
        // What comes of a damaged beginning is no better.
        let _ = std::fs::remove_file(part_of(&path));
        std::fs::remove_file(path).is_ok()
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
mod tests;
