//! Blocks: the unit of change, of sameness and of the map (DESIGN 4.3).

use serde::{Deserialize, Serialize};

/// Bytes in one block of a disk.
pub const BLOCK_BYTES: u64 = 4096;

/// A run of blocks of one disk, counted in blocks from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockRange {
    /// The first block.
    pub start: u64,
    /// How many blocks; may be zero.
    pub count: u64,
}

impl BlockRange {
    /// Makes the range of `count` blocks from `start`.
    #[must_use]
    pub const fn new(start: u64, count: u64) -> Self {
        Self { start, count }
    }

    /// Returns the smallest range of whole blocks that covers `length` bytes from `offset`.
    #[must_use]
    pub const fn covering(offset: u64, length: u64) -> Self {
        let start = offset / BLOCK_BYTES;
        let end = (offset + length).div_ceil(BLOCK_BYTES);
        Self { start, count: end - start }
    }

    /// Returns the first block after the range.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start + self.count
    }

    /// Tells whether the range holds no block.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.count == 0
    }

    /// Returns the part that both ranges share; empty when they do not touch.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        Self { start, count: end.saturating_sub(start) }
    }

    /// Returns the offset of the first byte on the disk.
    #[must_use]
    pub const fn offset_bytes(self) -> u64 {
        self.start * BLOCK_BYTES
    }

    /// Returns the length in bytes.
    #[must_use]
    pub const fn length_bytes(self) -> u64 {
        self.count * BLOCK_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::BlockRange;

    #[test]
    fn a_covering_range_takes_whole_blocks() {
        assert_eq!(BlockRange::covering(4095, 2), BlockRange::new(0, 2));
        assert_eq!(BlockRange::covering(4096, 4096), BlockRange::new(1, 1));
        assert_eq!(BlockRange::covering(100, 0), BlockRange::new(0, 1));
    }

    #[test]
    fn ranges_that_do_not_touch_share_nothing() {
        assert!(BlockRange::new(0, 4).intersection(BlockRange::new(4, 4)).is_empty());
        assert_eq!(
            BlockRange::new(0, 6).intersection(BlockRange::new(4, 4)),
            BlockRange::new(4, 2)
        );
    }
}
