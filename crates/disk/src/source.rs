//! What the export serves: a disk that can be read now and never changes.
//!
//! [`VersionDisk`](crate::VersionDisk) reads a published version through the cache, [`RawFile`](crate::RawFile) a
//! local image; a [`Listener`](crate::Listener) hears what is read of either. A source is asked twice: first [`Source::read_now`],
//! which answers at once or not at all, so that a warm read costs no task and no copy; then
//! [`Source::read`], which waits as long as it takes.

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::Result;

/// A disk that can be read and never changes.
#[async_trait]
pub trait Source: Send + Sync {
    /// Returns the size of the disk in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buffer` from `offset` if that needs no waiting; false, with `buffer` in any state, if it does.
    ///
    /// The range lies on the disk.
    fn read_now(&self, _offset: u64, _buffer: &mut [u8]) -> bool {
        false
    }

    /// Reads exactly `length` bytes from `offset`, waiting as long as it takes.
    ///
    /// The range lies on the disk.
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes>;

    /// Tells which parts of the range read as zeros without being stored.
    ///
    /// The answer starts at `offset` and has at least one extent that is not empty, but may end before the range does.
    async fn status(&self, offset: u64, length: u64) -> Result<Vec<StatusExtent>>;
}

/// A run of bytes of a disk that are stored, or are zeros that nobody stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Length in bytes.
    pub length: u64,
    /// Whether all of it is zeros that are not stored.
    pub zero: bool,
}

/// Appends an extent, or lengthens the last one if it is of the same kind.
pub(crate) fn push_extent(extents: &mut Vec<StatusExtent>, extent: StatusExtent) {
    match extents.last_mut() {
        Some(last) if last.zero == extent.zero => last.length += extent.length,
        _ => extents.push(extent),
    }
}
