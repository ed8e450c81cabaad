//! Objects as files of a directory, the form in which a repository can be copied, served and inspected.
//!
//! A file appears whole: written under a one-time name (`.tmp-…`, never listed) in its own directory, synced, renamed, and the directory
//! synced, as POSIX asks for; so are directories made on the way. Commits and prunes take an exclusive `flock` on `.lock`; readers and
//! packs need none. The directory is its owner's alone (0700), unless it is made for a web server to show.

use std::fs::{self, File};
use std::io::ErrorKind as IoKind;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{
    Epoch, Error, ErrorKind, IoResultExt, Result, ResultExt, Timestamp, Version,
};
use futures::stream::{self, StreamExt};

use super::incoming::{Incoming, IncomingFile};
use super::memory::missing;
use super::watch::{FileChange, Watch};
use super::{
    Backend, Commit, Exclusive, Listed, ObjectName, Pieces, Receive, check_commit, check_limit,
    decode_latest, encode_latest, not_found, too_short,
};
use crate::manifest::Manifest;

/// How one-time names start; no object has such a name.
const TEMPORARY_PREFIX: &str = ".tmp-";

/// Bytes that are read and passed on at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Directories below the root at most (`packs/ab/…`): what `list` walks into.
const MAX_DEPTH: usize = 3;

/// Keeps objects as files. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Directory {
    root: Arc<PathBuf>,
    watch: Watch,
    /// Whether anybody on this computer may read it.
    is_shown: bool,
}

impl Directory {
    /// Makes the directory, unless it is there already, and opens it.
    ///
    /// # Errors
    /// As the file system says.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        Self::create_watched(path, Watch::default())
    }

    /// As [`create`](Self::create), with somebody who hears of each change before it is made.
    ///
    /// # Errors
    /// As [`create`](Self::create), and what the watch refuses.
    pub fn create_watched(path: impl Into<PathBuf>, watch: Watch) -> Result<Self> {
        Self { root: Arc::new(path.into()), watch, is_shown: false }.made()
    }

    /// As [`create`](Self::create), for a web server to show: everybody on this computer may read what is put there.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_shown(path: impl Into<PathBuf>) -> Result<Self> {
        Self { root: Arc::new(path.into()), watch: Watch::default(), is_shown: true }.made()
    }

    fn made(self) -> Result<Self> {
        self.make_directory(&self.root)?;
        // What is there already may be the work of a process that died before it was durable.
        for path in [parent_of(&self.root), &self.root] {
            let failed = || format!("cannot sync {}", path.display());
            self.watch.sync_directory(path).or_io(failed)?;
        }
        Ok(self)
    }

    /// Opens a directory that exists.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` if it is no directory.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let root = path.into();
        let shown = root.display();
        let metadata = fs::metadata(&root).or_io(|| format!("cannot open repository {shown}"))?;
        if !metadata.is_dir() {
            let message = format!("cannot open repository {shown}: it is not a directory");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(Self { root: Arc::new(root), watch: Watch::default(), is_shown: false })
    }

    /// Returns where the files are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    fn receive_now(&self, name: ObjectName) -> Result<IncomingFile> {
        let path = self.file(&name);
        let parent = path.parent().expect("a name joined to the root has a parent");
        self.make_directory(parent)?;
        let failed = || format!("cannot store {name} in {}", self.root.display());
        let mode = if self.is_shown { 0o644 } else { 0o600 };
        let file = tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(parent)
            .or_io(failed)?;
        self.watch.hear(|| FileChange::Create(file.path().to_owned())).or_io(failed)?;
        Ok(IncomingFile { name, file, path, watch: self.watch.clone() })
    }

    fn file(&self, name: &ObjectName) -> PathBuf {
        self.root.join(name.to_string())
    }

    fn read_now(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes> {
        let file = match File::open(self.file(name)) {
            Err(error) if error.kind() == IoKind::NotFound => return Err(not_found(name)),
            opened => opened.or_io(|| format!("cannot open {name}"))?,
        };
        let size_bytes = file.metadata().or_io(|| format!("cannot read {name}"))?.len();
        let range = match range {
            Some(range) => range,
            None => check_limit(name, size_bytes).map(|()| 0..size_bytes)?,
        };
        if range.end > size_bytes {
            return Err(too_short(name, size_bytes, range.end));
        }
        let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
        file.read_exact_at(&mut bytes, range.start).or_io(|| format!("cannot read {name}"))?;
        Ok(bytes.into())
    }

    fn write_now(&self, name: &ObjectName, bytes: &[u8]) -> Result<()> {
        let mut incoming = self.receive_now(*name)?;
        incoming.append_now(bytes)?;
        incoming.keep_now()
    }

    /// Makes a directory and those above it as far as they are missing, each durable in its parent. Below the root that is seen to even
    /// where one is there already: who made it may have died before, or may not be done yet.
    fn make_directory(&self, path: &Path) -> Result<()> {
        let is_there = path.is_dir();
        if is_there && (path == *self.root || !path.starts_with(&*self.root)) {
            return Ok(());
        }
        let failed = || format!("cannot make directory {}", path.display());
        let parent = parent_of(path);
        self.make_directory(parent)?;
        if !is_there {
            self.watch.hear(|| FileChange::MakeDirectory(path.to_owned())).or_io(failed)?;
            let mode = if self.is_shown { 0o755 } else { 0o700 };
            match fs::DirBuilder::new().mode(mode).create(path) {
                Err(error) if error.kind() == IoKind::AlreadyExists => {}
                made => made.or_io(failed)?,
            }
        }
        self.watch.sync_directory(parent).or_io(failed)
    }

    fn size_now(&self, name: &ObjectName) -> Result<Option<u64>> {
        match fs::metadata(self.file(name)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == IoKind::NotFound => Ok(None),
            Err(error) => Err(error).or_io(|| format!("cannot look at {name}")),
        }
    }

    fn delete_now(&self, name: &ObjectName) -> Result<()> {
        let path = self.file(name);
        let parent = path.parent().expect("a name joined to the root has a parent");
        let failed = || format!("cannot remove {name}");
        self.watch.hear(|| FileChange::Remove(path.clone())).or_io(failed)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() == IoKind::NotFound => return Ok(()),
            removed => removed.or_io(failed)?,
        }
        self.watch.sync_directory(parent).or_io(failed)?;
        if name.version().is_some() {
            // The directory of a version goes with its last object; any other answer means that it is still in use.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }

    fn head_now(&self) -> Result<Option<Version>> {
        match self.read_now(&ObjectName::Latest, None) {
            Ok(bytes) => decode_latest(&bytes).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn commit_now(&self, commit: &Commit) -> Result<()> {
        let _lock = self.lock_now()?;
        let head = self.head_now()?;
        let epoch = match head {
            Some(head) => {
                let manifest = self.read_now(&ObjectName::Manifest(head), None)?;
                if head == commit.version && manifest == commit.manifest {
                    return self
                        .watch
                        .sync_directory(&self.root)
                        .or_io(|| format!("cannot sync {}", self.root.display()));
                }
                Manifest::peek(&manifest)?.epoch
            }
            None => Epoch::default(),
        };
        check_commit(head, epoch, commit)?;
        for object in Manifest::peek(&commit.manifest)?.objects() {
            self.size_now(&object.name)?.ok_or_else(|| missing(&object.name))?;
        }
        self.write_now(&ObjectName::Manifest(commit.version), &commit.manifest)?;
        self.write_now(&ObjectName::Latest, encode_latest(commit.version).as_bytes())
    }

    /// Takes the lock that commits and prunes share; it is released when the file is closed.
    fn lock_now(&self) -> Result<File> {
        let path = self.root.join(".lock");
        let failed = || format!("cannot lock repository {}", self.root.display());
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .or_io(failed)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .map_err(std::io::Error::from)
            .or_io(failed)?;
        Ok(file)
    }

    /// Visits every file below a directory, given by its path relative to the root.
    fn walk(
        &self,
        below: &str,
        depth: usize,
        visit: &mut dyn FnMut(&str, &fs::Metadata),
    ) -> Result<()> {
        let path = self.root.join(below);
        let failed = || format!("cannot list {}", path.display());
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == IoKind::NotFound => return Ok(()),
            entries => entries.or_io(failed)?,
        };
        for entry in entries {
            let entry = entry.or_io(failed)?;
            let Ok(file_name) = entry.file_name().into_string() else { continue };
            let relative =
                if below.is_empty() { file_name } else { format!("{below}/{file_name}") };
            let metadata = match entry.metadata() {
                // Removed or renamed since the directory was read.
                Err(error) if error.kind() == IoKind::NotFound => continue,
                metadata => metadata.or_io(failed)?,
            };
            if metadata.is_file() {
                visit(&relative, &metadata);
            } else if metadata.is_dir() && depth > 1 {
                self.walk(&relative, depth - 1, visit)?;
            }
        }
        Ok(())
    }

    fn list_now(&self, prefix: &str) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        // Only the part of the prefix that is whole directories leads; the rest filters.
        let below = prefix.rsplit_once('/').map_or("", |(directories, _)| directories);
        let known_shape = below.is_empty() || below == "packs" || below.starts_with("versions");
        if !known_shape || below.split('/').any(|part| part == "..") {
            return Ok(listed);
        }
        self.walk(below, MAX_DEPTH, &mut |relative, metadata| {
            if let (true, Ok(name)) = (relative.starts_with(prefix), relative.parse()) {
                let modified = metadata.modified().map(Timestamp::from).unwrap_or_default();
                listed.push(Listed { name, size_bytes: metadata.len(), modified });
            }
        })?;
        listed.sort_by_cached_key(|listed: &Listed| listed.name.to_string());
        Ok(listed)
    }

    fn remove_leftovers_now(&self, before: Timestamp) -> Result<u64> {
        let mut leftovers = Vec::new();
        self.walk("", MAX_DEPTH, &mut |relative, metadata| {
            let file_name = relative.rsplit('/').next().unwrap_or(relative);
            let old = metadata.modified().is_ok_and(|time| Timestamp::from(time) < before);
            if old && file_name.starts_with(TEMPORARY_PREFIX) {
                leftovers.push((self.root.join(relative), metadata.len()));
            }
        })?;
        let mut freed_bytes = 0;
        for (path, size_bytes) in leftovers {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == IoKind::NotFound => {}
                removed => {
                    removed.or_io(|| format!("cannot remove {}", path.display()))?;
                    freed_bytes += size_bytes;
                }
            }
        }
        Ok(freed_bytes)
    }

    /// Runs blocking file work where it holds up nobody.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || work(&this))
            .await
            .or_error(ErrorKind::Internal, || "file work was broken off".to_owned())?
    }
}

fn parent_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

#[async_trait]
impl Backend for Directory {
    async fn read(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes> {
        let name = *name;
        self.blocking(move |this| this.read_now(&name, range)).await
    }

    async fn stream(&self, name: &ObjectName, range: Range<u64>) -> Result<Pieces> {
        let (this, name, end) = (self.clone(), *name, range.end);
        let starts = stream::iter(range.step_by(PIECE_BYTES));
        let pieces = starts.then(move |start| {
            let this = this.clone();
            let piece = start..end.min(start + PIECE_BYTES as u64);
            async move { this.read(&name, Some(piece)).await }
        });
        Ok(pieces.boxed())
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        let name = *name;
        self.blocking(move |this| this.size_now(&name)).await
    }

    async fn write(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        let name = *name;
        self.blocking(move |this| this.write_now(&name, &bytes)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let prefix = prefix.to_owned();
        self.blocking(move |this| this.list_now(&prefix)).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        let name = *name;
        self.blocking(move |this| this.delete_now(&name)).await
    }

    async fn head(&self) -> Result<Option<Version>> {
        self.blocking(Self::head_now).await
    }

    async fn commit(&self, commit: Commit) -> Result<()> {
        self.blocking(move |this| this.commit_now(&commit)).await
    }

    async fn exclusive(&self) -> Result<Exclusive> {
        self.blocking(Self::lock_now).await.map(Exclusive::of)
    }

    async fn remove_leftovers(&self, before: Timestamp) -> Result<u64> {
        self.blocking(move |this| this.remove_leftovers_now(before)).await
    }
}

#[async_trait]
impl Receive for Directory {
    async fn receive(&self, name: ObjectName) -> Result<Box<dyn Incoming>> {
        self.blocking(move |this| Ok(Box::new(this.receive_now(name)?) as Box<dyn Incoming>)).await
    }
}
