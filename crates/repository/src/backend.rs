//! Where objects are at rest: a small seam with a directory, S3, HTTP, a registry and memory behind it.
//!
//! A backend keeps whole objects under [`ObjectName`]s, gives ranges of them back, and moves the head by compare-and-swap. It
//! does not interpret bytes beyond what a commit needs, and it is not trusted: a reader checks all it gets. Writes are
//! atomic: an object is there whole or not at all.

mod directory;
mod faulty;
mod head;
mod http;
mod incoming;
mod line;
mod memory;
mod name;
mod oci;
mod s3;
mod transfer;
mod watch;

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use collective_model::{Epoch, Error, ErrorKind, Result, Timestamp, Version};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

pub use directory::Directory;
pub use faulty::{Call, CallKind, Fault, Faulty};
pub use head::{check_commit, decode_latest, encode_latest};
pub use http::Http;
#[cfg(feature = "fuzzing")]
pub(crate) use http::fuzzing;
pub use incoming::{Incoming, Receive};
pub use line::Line;
pub use memory::Memory;
pub use name::{ObjectName, PartKind};
pub use oci::{Credentials, Oci, RegistryReference};
pub use s3::{Bucket, S3};
pub use watch::{FileChange, Watch};

/// The bytes of a range, as they come.
pub type Pieces = BoxStream<'static, Result<Bytes>>;

/// Keeps the objects of one repository.
#[async_trait]
pub trait Backend: Send + Sync + Debug {
    /// Reads a range of an object, or all of it up to [`ObjectName::limit_bytes`].
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if the object ends before the range does or passes its limit; `Unavailable` if it cannot be reached now.
    async fn read(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes>;

    /// Reads a range of an object piece by piece, for who can use its beginning before its end is there. It may end early; who
    /// reads it notices. What has all bytes at hand gives [`one_piece`]; what stands in front of another passes its pieces on.
    ///
    /// # Errors
    /// As [`read`](Self::read), before the first piece or between any two.
    async fn stream(&self, name: &ObjectName, range: Range<u64>) -> Result<Pieces>;

    /// Returns the size of an object in bytes, none if there is no such object.
    async fn size(&self, name: &ObjectName) -> Result<Option<u64>>;

    /// Stores an object durably and at once; replaces what was there under the name.
    async fn write(&self, name: &ObjectName, bytes: Bytes) -> Result<()>;

    /// Lists the objects whose name starts with `prefix`, in the order of their names. Things that are no objects of a repository are left out.
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>>;

    /// Removes an object; it is no error if it is not there.
    async fn delete(&self, name: &ObjectName) -> Result<()>;

    /// Returns the highest version; none before the first.
    async fn head(&self) -> Result<Option<Version>>;

    /// Publishes a version: writes its manifest and moves the head from the version before to it, at once. Said again of the version at the
    /// head, with the same manifest, it makes sure that it is durable, or is refused as any other.
    ///
    /// # Errors
    /// `Conflict` if the head is not the version before, the epoch is stale, or an object that the manifest names is missing.
    async fn commit(&self, commit: Commit) -> Result<()>;

    /// Keeps commits and prunes of others away until the guard is dropped. Backends with one user need no guard.
    async fn exclusive(&self) -> Result<Exclusive> {
        Ok(Exclusive::none())
    }

    /// Drops a copy of an object that did not read well; false if there was none, and another read would give the same.
    async fn distrust(&self, name: &ObjectName) -> bool {
        let _ = name;
        false
    }

    /// Removes what interrupted writes left before `before`; returns how many bytes that freed.
    async fn remove_leftovers(&self, before: Timestamp) -> Result<u64> {
        let _ = before;
        Ok(0)
    }
}

/// A version about to be published.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Its number: the one after the head's.
    pub version: Version,
    /// The bytes of its `manifest.json`.
    pub manifest: Bytes,
    /// The fencing number of the writer's lock.
    pub epoch: Epoch,
}

/// One object of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub name: ObjectName,
    /// Its size.
    pub size_bytes: u64,
    /// When it was last written.
    pub modified: Timestamp,
}

/// Holds a backend for one writer until it is dropped.
pub struct Exclusive(
    #[expect(dead_code, reason = "held for its drop")] Option<Box<dyn Any + Send>>,
);

impl Exclusive {
    /// Makes a guard that guards nothing.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Makes a guard of what unlocks when it is dropped.
    #[must_use]
    pub fn of(guard: impl Any + Send) -> Self {
        Self(Some(Box::new(guard)))
    }
}

/// Reads what is checked while it is read, and once more if only a copy of the object was damaged.
pub(crate) async fn read_checked<T, F>(
    backend: &dyn Backend,
    name: &ObjectName,
    read: impl Fn() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    match read().await {
        Err(error) if error.kind() == ErrorKind::Corrupt && backend.distrust(name).await => {
            read().await
        }
        done => done,
    }
}

/// The pieces of bytes that are all there.
#[must_use]
pub fn one_piece(bytes: Bytes) -> Pieces {
    stream::once(std::future::ready(Ok(bytes))).boxed()
}

/// Puts pieces together that were bounded as they came.
pub(crate) async fn gather(mut pieces: Pieces) -> Result<Bytes> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = pieces.try_next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

/// Puts the pieces of a range together; it is an error if some are missing.
pub(crate) async fn gather_range(
    name: &ObjectName,
    range: Range<u64>,
    pieces: Pieces,
) -> Result<Bytes> {
    let bytes = gather(pieces).await?;
    let end = range.start + bytes.len() as u64;
    if end < range.end {
        return Err(too_short(name, end, range.end));
    }
    Ok(bytes)
}

/// The error for an object that is not there.
pub(crate) fn not_found(name: &ObjectName) -> Error {
    Error::new(ErrorKind::NotFound, format!("{name} does not exist"))
}

/// The error for an object that is shorter than what must be in it.
pub(crate) fn too_short(name: &ObjectName, size_bytes: u64, needed: u64) -> Error {
    let message =
        format!("{name} is cut short: it has {size_bytes} bytes, and {needed} are needed");
    Error::new(ErrorKind::Corrupt, message)
}

/// Checks that an object that is read whole keeps its limit.
pub(crate) fn check_limit(name: &ObjectName, size_bytes: u64) -> Result<()> {
    let limit = name.limit_bytes();
    if size_bytes <= limit {
        return Ok(());
    }
    let message = format!("{name} has {size_bytes} bytes, and may have {limit} at most");
    Err(Error::new(ErrorKind::Corrupt, message))
}
