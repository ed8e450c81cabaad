//! The changes that a directory makes to its files, told before they are made: what tests of power cuts hang on.
//!
//! Whoever watches can keep a record from which to work out what a power cut may leave, and can refuse a change: the caller then fails as
//! if the disk had, which is also how a process is made to die in between. Without a watch nothing is recorded.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One change to the files of a directory. The bytes of a file are appended without notice between its creation and its sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileChange {
    /// A directory is made.
    MakeDirectory(PathBuf),
    /// A file is there, empty.
    Create(PathBuf),
    /// The bytes of a file become durable.
    Sync(PathBuf),
    /// A file gets another name in its directory, in the place of what had it.
    Rename {
        /// Its name before.
        from: PathBuf,
        /// Its name from now on.
        to: PathBuf,
    },
    /// A file is removed.
    Remove(PathBuf),
    /// The names in a directory become durable.
    SyncDirectory(PathBuf),
}

type Ear = dyn Fn(&FileChange) -> io::Result<()> + Send + Sync;

/// Hears of changes to files; by default nobody does.
#[derive(Clone, Default)]
pub struct Watch(Option<Arc<Ear>>);

impl Watch {
    /// Makes a watch that calls `ear` before each change, which is not made if that fails.
    pub fn new(ear: impl Fn(&FileChange) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(ear)))
    }

    pub(super) fn hear(&self, change: impl FnOnce() -> FileChange) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |ear| ear(&change()))
    }

    pub(super) fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.hear(|| FileChange::SyncDirectory(path.to_owned()))?;
        File::open(path)?.sync_all()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "watched" } else { "unwatched" })
    }
}
