//! The index: a version's complete, flattened map from runs of blocks to places in frames, and its table of frames.
//!
//! An index object is a row of pages and a directory at its end. Pages hold columns (a run's start, its length, …) of small
//! differences, compressed, and sealed in a private repository; the directory has the hash of each, and the manifest that of the
//! directory. A small index comes in one read; of a huge one only the pages that are asked for. What the map does not cover is zero.

mod directory;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod page;
mod reader;

use collective_model::{BLOCK_BYTES, BlockRange, Digest, Result, Version};

use crate::frame::FrameRef;
use crate::manifest::{DiskManifest, IndexEntry, PackEntry};
use crate::sealer::{Purpose, Sealer};

pub(crate) use reader::IndexReader;
pub use reader::WHOLE_INDEX_BYTES;

/// The format of indexes that are written.
const FORMAT: u32 = 2;
/// Frames in a page: some 10 KiB, because a first byte waits for it on a slow line.
const FRAMES_PER_PAGE: usize = 256;
/// Frames in a page of format 1.
const FRAMES_PER_OLD_PAGE: usize = 1024;
/// Extents in a page: some 20 KiB.
const EXTENTS_PER_PAGE: usize = 4096;
/// Frames that a disk may have: 4 TiB of data at 256 KiB a frame.
const MAX_FRAMES: usize = 1 << 24;
/// Extents that a disk may have.
const MAX_EXTENTS: usize = 1 << 26;

/// A run of blocks of the disk that lie one after another in one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexExtent {
    pub start: u64,
    pub count: u32,
    /// The frame's place in the table of frames.
    pub frame: u32,
    /// The block of the frame that is the first of the run.
    pub first: u32,
}

impl IndexExtent {
    pub const fn range(&self) -> BlockRange {
        BlockRange::new(self.start, self.count as u64)
    }
}

/// One frame of the table: as [`FrameRef`], with the pack by its place in the manifest's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexFrame {
    pub pack: u32,
    pub frame: FrameRef,
}

/// A whole index in memory: what publishing makes and verification reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    /// In the order of the disk; no two touch the same block.
    pub extents: Vec<IndexExtent>,
    /// In the order of packs, and in them of offsets.
    pub frames: Vec<FrameRef>,
}

/// An index made ready to be stored.
pub(crate) struct EncodedIndex {
    pub bytes: Vec<u8>,
    pub entry: IndexEntry,
}

impl Index {
    /// Returns how many bytes of the disk are not zero.
    pub fn data_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| u64::from(extent.count) * BLOCK_BYTES).sum()
    }

    /// Writes the index object of a disk of `blocks` blocks whose frames are in `packs`.
    pub fn encode(
        &self,
        blocks: u64,
        packs: &[PackEntry],
        sealer: &Sealer,
    ) -> Result<EncodedIndex> {
        directory::encode(self, blocks, packs, |page| sealer.seal_small(Purpose::IndexPage, page))
    }
}

/// Which index is read: what the manifest says of it.
#[derive(Clone, Debug)]
pub(crate) struct IndexSource {
    pub version: Version,
    pub disk: DiskManifest,
    pub packs: Vec<Digest>,
}

#[cfg(test)]
mod tests;
