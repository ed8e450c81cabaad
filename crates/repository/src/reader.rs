//! A version open for reading.
use std::sync::Arc;

use bytes::Bytes;
use collective_model::{BlockRange, DiskRole, Result};

use crate::{FrameRef, Manifest, Trace};

/// A version that was opened; its manifest was checked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct VersionReader {
    manifest: Arc<Manifest>,
}

impl VersionReader {
    /// Returns the manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Opens a disk.
    ///
    /// # Errors
    /// `NotFound` if the version has no such disk; `Denied` without the secret of a private repository; `Corrupt`.
    pub async fn disk(&self, role: DiskRole) -> Result<DiskReader> {
        let _ = role;
        Err(crate::repository::coming())
    }

    /// Reads the trace of a disk; an empty one if none was recorded.
    ///
    /// # Errors
    /// As [`disk`](Self::disk).
    pub async fn trace(&self, role: DiskRole) -> Result<Trace> {
        let _ = role;
        Err(crate::repository::coming())
    }
}

/// One disk of a version: its map, and the door to its frames. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DiskReader {
    size_bytes: u64,
}

/// A run of blocks of the disk that is of one kind, or in one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where on the disk it is.
    pub range: BlockRange,
    /// What is there.
    pub what: ExtentData,
}

/// What is in an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentData {
    /// Zeros.
    Zero,
    /// Blocks of a frame.
    Frame {
        /// The frame.
        frame: FrameRef,
        /// The block of the frame that is the first of the extent.
        first: u32,
    },
}

impl DiskReader {
    /// Returns the size of the disk.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Says where the blocks of a range are: extents in the order of the disk, without a gap, none beyond its end.
    ///
    /// # Errors
    /// `Corrupt` or `Unavailable` if a page of the index cannot be had.
    pub async fn map(&self, range: BlockRange) -> Result<Vec<Extent>> {
        let _ = range;
        Err(crate::repository::coming())
    }

    /// Fetches frames, in the order asked for: plain bytes, checked. Neighbours in a pack come in one read.
    ///
    /// # Errors
    /// `Corrupt`, naming pack and place; `Unavailable`.
    pub async fn fetch(&self, frames: &[FrameRef]) -> Result<Vec<Bytes>> {
        let _ = frames;
        Err(crate::repository::coming())
    }

    /// Fetches one frame.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub async fn fetch_one(&self, frame: &FrameRef) -> Result<Bytes> {
        let _ = frame;
        Err(crate::repository::coming())
    }
}
