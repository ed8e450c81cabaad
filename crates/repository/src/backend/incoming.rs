//! An object that arrives piece by piece and is never in memory as a whole: what a server does with an upload.
//!
//! It is a file under a one-time name until [`Incoming::keep`]; dropped before that, or after a crash, nothing of it counts.

use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use collective_model::{ErrorKind, IoResultExt, Result, ResultExt};
use tempfile::NamedTempFile;

use super::ObjectName;
use super::watch::{FileChange, Watch};

/// An object that is not there yet.
#[derive(Debug)]
pub struct Incoming {
    pub(super) name: ObjectName,
    pub(super) file: NamedTempFile,
    pub(super) path: PathBuf,
    pub(super) watch: Watch,
}

impl Incoming {
    /// Appends a piece.
    ///
    /// # Errors
    /// `Unavailable` if the disk is full; then nothing is left of the object.
    pub async fn append(self, piece: Bytes) -> Result<Self> {
        self.blocking(move |mut this| this.append_now(&piece).map(|()| this)).await
    }

    /// Makes it an object, durably and at once.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub async fn keep(self) -> Result<()> {
        self.blocking(Self::keep_now).await
    }

    pub(super) fn append_now(&mut self, piece: &[u8]) -> Result<()> {
        let name = self.name;
        self.file.as_file_mut().write_all(piece).or_io(|| format!("cannot store {name}"))
    }

    pub(super) fn keep_now(self) -> Result<()> {
        let Self { name, file, path, watch } = self;
        let failed = || format!("cannot store {name}");
        watch.hear(|| FileChange::Sync(file.path().to_owned())).or_io(failed)?;
        file.as_file().sync_all().or_io(failed)?;
        let renamed = || FileChange::Rename { from: file.path().to_owned(), to: path.clone() };
        watch.hear(renamed).or_io(failed)?;
        file.persist(&path).map_err(|error| error.error).or_io(failed)?;
        path.parent().map_or(Ok(()), |parent| watch.sync_directory(parent)).or_io(failed)
    }

    async fn blocking<T: Send + 'static>(
        self,
        work: impl FnOnce(Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        tokio::task::spawn_blocking(move || work(self))
            .await
            .or_error(ErrorKind::Internal, || "file work was broken off".to_owned())?
    }
}
