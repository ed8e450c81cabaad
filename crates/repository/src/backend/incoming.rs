//! An object that arrives piece by piece and is never in memory as a whole: what a server does with an upload.
//!
//! It counts from [`Incoming::keep`] on; dropped before that, or after a crash, nothing of it does. In a directory it is a file under a
//! one-time name until then; an S3 store holds its parts apart.

use std::fmt::Debug;
use std::io::Write;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{ErrorKind, IoResultExt, Result, ResultExt};
use tempfile::NamedTempFile;

use super::watch::{FileChange, Watch};
use super::{Backend, ObjectName};

/// Keeps objects that arrive piece by piece: what a server has its repositories in.
#[async_trait]
pub trait Receive: Backend {
    /// Begins an object.
    ///
    /// # Errors
    /// `Unavailable` if there is no room, or the store cannot be reached now.
    async fn receive(&self, name: ObjectName) -> Result<Box<dyn Incoming>>;
}

/// An object that is not there yet.
#[async_trait]
pub trait Incoming: Send + Debug {
    /// Appends a piece.
    ///
    /// # Errors
    /// `Unavailable` if there is no room, or the store cannot be reached now; then nothing is left of the object.
    async fn append(self: Box<Self>, piece: Bytes) -> Result<Box<dyn Incoming>>;

    /// Makes it an object, durably and at once.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    async fn keep(self: Box<Self>) -> Result<()>;
}

/// An object that becomes a file.
#[derive(Debug)]
pub(super) struct IncomingFile {
    pub(super) name: ObjectName,
    pub(super) file: NamedTempFile,
    pub(super) path: PathBuf,
    pub(super) watch: Watch,
}

#[async_trait]
impl Incoming for IncomingFile {
    async fn append(self: Box<Self>, piece: Bytes) -> Result<Box<dyn Incoming>> {
        self.blocking(move |mut this| {
            this.append_now(&piece)?;
            Ok(this as Box<dyn Incoming>)
        })
        .await
    }

    async fn keep(self: Box<Self>) -> Result<()> {
        self.blocking(|this| this.keep_now()).await
    }
}

impl IncomingFile {
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
        self: Box<Self>,
        work: impl FnOnce(Box<Self>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        tokio::task::spawn_blocking(move || work(self))
            .await
            .or_error(ErrorKind::Internal, || "file work was broken off".to_owned())?
    }
}
