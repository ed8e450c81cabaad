//! Regions: the coarse pieces of a disk in which it is counted what is read.
//!
//! A region is 256 KiB, or larger on a disk that would have too many of them. How large follows from the disk's size
//! alone, so whoever counts and whoever uses the counts need not agree on anything.

use crate::block::{BLOCK_BYTES, BlockRange};

/// Blocks of the smallest region: 256 KiB, as a frame has them. Less would cost more and tell more of what people do.
pub const REGION_BLOCKS_MIN: u64 = 64;

/// Regions of a disk, at most: those of a larger disk than 16 GiB are larger, so that counts stay small.
pub const REGIONS_MAX: u64 = 1 << 16;

/// How a disk is cut into regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regions {
    region_blocks: u64,
    disk_blocks: u64,
}

impl Regions {
    /// Cuts a disk of `size_bytes`.
    #[must_use]
    pub const fn of_disk(size_bytes: u64) -> Self {
        let disk_blocks = size_bytes.div_ceil(BLOCK_BYTES);
        let mut region_blocks = REGION_BLOCKS_MIN;
        while disk_blocks.div_ceil(region_blocks) > REGIONS_MAX {
            region_blocks *= 2;
        }
        Self { region_blocks, disk_blocks }
    }

    /// Returns how many there are.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.disk_blocks.div_ceil(self.region_blocks)
    }

    /// Returns how many blocks each has; the last may end with the disk.
    #[must_use]
    pub const fn region_blocks(self) -> u64 {
        self.region_blocks
    }

    /// Returns the region in which a block lies.
    #[must_use]
    pub const fn of_block(self, block: u64) -> u64 {
        block / self.region_blocks
    }

    /// Returns the blocks of the disk in a run of regions.
    #[must_use]
    pub fn blocks(self, first: u64, count: u64) -> BlockRange {
        let start = first.saturating_mul(self.region_blocks).min(self.disk_blocks);
        let end = first.saturating_add(count).saturating_mul(self.region_blocks);
        BlockRange::new(start, end.min(self.disk_blocks) - start)
    }
}

#[cfg(test)]
mod tests {
    use super::{REGIONS_MAX, Regions};
    use crate::block::BlockRange;

    #[test]
    fn a_large_disk_has_larger_regions_and_never_too_many() {
        for (size_bytes, region_blocks, count) in [
            (0, 64, 0),
            (1, 64, 1),
            (2 << 30, 64, 8192),
            (16 << 30, 64, REGIONS_MAX),
            ((16 << 30) + 1, 128, REGIONS_MAX / 2 + 1),
            (100 << 30, 512, 51_200),
            (1 << 46, 1 << 18, REGIONS_MAX),
        ] {
            let regions = Regions::of_disk(size_bytes);
            assert_eq!((regions.region_blocks(), regions.count()), (region_blocks, count));
        }
    }

    #[test]
    fn regions_end_with_the_disk_whatever_is_asked_for() {
        let regions = Regions::of_disk(100 * 4096);
        assert_eq!(regions.blocks(0, 1), BlockRange::new(0, 64));
        assert_eq!(regions.blocks(1, 9), BlockRange::new(64, 36));
        assert_eq!(regions.blocks(u64::MAX, u64::MAX), BlockRange::new(100, 0));
        assert_eq!(regions.of_block(99), 1);
    }
}
