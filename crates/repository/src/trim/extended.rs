//! Free blocks of ext2, ext3 and ext4, from their block bitmaps.
//!
//! Layout after the kernel's documentation (Documentation/filesystems/ext4, "super block", "group descriptors", "bitmaps").

use std::ops::Range;

use collective_model::Result;

use super::{Image, u16_at, u32_at};

const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const MAGIC: u16 = 0xef53;

/// `s_state`: unmounted in order, and no errors.
const STATE_VALID: u16 = 1;

/// Features that change nothing about bitmaps: file types, extents, 64 bits, MMP, flexible groups, attributes in inodes,
/// checksum seed, large directories, inline data, encryption, case folding. Not: a journal to replay, a journal device, META_BG.
const KNOWN_INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x3_e000;
const INCOMPATIBLE_64BIT: u32 = 0x80;

/// Not: snapshots, bigalloc (bitmaps of clusters), replicas.
const KNOWN_READ_ONLY: u32 = 0x7f | 0x100 | 0x400 | 0x1000 | 0x2000 | 0x8000 | 0x1_0000;

/// `bg_flags`: the bitmap was never written.
const BLOCK_UNINIT: u16 = 2;

/// Groups that are looked at: 128 TiB of 4 KiB blocks.
const MAX_GROUPS: u64 = 1 << 20;

/// What is needed of a superblock.
struct FileSystem {
    start: u64,
    block_bytes: u64,
    blocks: u64,
    first_block: u64,
    blocks_per_group: u64,
    descriptor_bytes: usize,
}

/// Returns the ranges of the image that the file system in a part of it says are free; none if there is no such file system.
pub(super) fn free_bytes(image: &Image<'_>, volume: Range<u64>) -> Result<Vec<Range<u64>>> {
    let mut free = Vec::new();
    let superblock = image.read(volume.start + SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES)?;
    let Some(system) = superblock.and_then(|superblock| FileSystem::of(&superblock, &volume))
    else {
        return Ok(free);
    };
    let groups = system.groups();
    let table = system.start + (system.first_block + 1) * system.block_bytes;
    let table = image.read(table, groups as usize * system.descriptor_bytes)?.unwrap_or_default();
    for (group, descriptor) in table.chunks_exact(system.descriptor_bytes).enumerate() {
        let descriptor = Descriptor::of(descriptor);
        let bitmap = system.start + descriptor.bitmap.saturating_mul(system.block_bytes);
        let in_bounds = descriptor.bitmap < system.blocks && descriptor.flags & BLOCK_UNINIT == 0;
        let bitmap =
            if in_bounds { image.read(bitmap, system.block_bytes as usize)? } else { None };
        if let Some(bitmap) = bitmap {
            free.extend(system.free_in_group(group as u64, &descriptor, &bitmap));
        }
    }
    Ok(free)
}

impl FileSystem {
    fn of(superblock: &[u8], volume: &Range<u64>) -> Option<Self> {
        let incompatible = u32_at(superblock, 0x60);
        let understood = u16_at(superblock, 0x38) == MAGIC
            && u16_at(superblock, 0x3a) == STATE_VALID
            && incompatible & !KNOWN_INCOMPATIBLE == 0
            && u32_at(superblock, 0x64) & !KNOWN_READ_ONLY == 0;
        let log_block_bytes = u32_at(superblock, 0x18);
        if !understood || log_block_bytes > 6 {
            return None;
        }
        let wide = incompatible & INCOMPATIBLE_64BIT != 0;
        let high = if wide { u64::from(u32_at(superblock, 0x150)) << 32 } else { 0 };
        let descriptor_bytes = if wide { u16_at(superblock, 0xfe) as usize } else { 32 };
        let system = Self {
            start: volume.start,
            block_bytes: 1024 << log_block_bytes,
            blocks: high | u64::from(u32_at(superblock, 0x04)),
            first_block: u64::from(u32_at(superblock, 0x14)),
            blocks_per_group: u64::from(u32_at(superblock, 0x20)),
            descriptor_bytes,
        };
        let bits = 8 * system.block_bytes;
        let sound = (1..=bits).contains(&system.blocks_per_group)
            && system.first_block < system.blocks
            && (if wide { 64..=1024 } else { 32..=32 }).contains(&descriptor_bytes)
            && system.blocks.checked_mul(system.block_bytes)? <= volume.end - volume.start
            && system.groups() <= MAX_GROUPS;
        sound.then_some(system)
    }

    fn groups(&self) -> u64 {
        (self.blocks - self.first_block).div_ceil(self.blocks_per_group)
    }

    /// Returns the free ranges of a group, if its bitmap has as many free blocks as its descriptor says.
    fn free_in_group(&self, group: u64, descriptor: &Descriptor, bitmap: &[u8]) -> Vec<Range<u64>> {
        let first = self.first_block + group * self.blocks_per_group;
        let count = self.blocks_per_group.min(self.blocks - first);
        let is_free = |block: u64| bitmap[(block / 8) as usize] >> (block % 8) & 1 == 0;
        let free_blocks = (0..count).filter(|block| is_free(*block));
        if free_blocks.clone().count() as u64 != descriptor.free_blocks {
            return Vec::new();
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for block in free_blocks {
            let start = self.start + (first + block) * self.block_bytes;
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end += self.block_bytes,
                _ => ranges.push(start..start + self.block_bytes),
            }
        }
        ranges
    }
}

/// What is needed of a group's descriptor.
struct Descriptor {
    bitmap: u64,
    free_blocks: u64,
    flags: u16,
}

impl Descriptor {
    fn of(bytes: &[u8]) -> Self {
        let wide = bytes.len() >= 64;
        let bitmap_high = if wide { u64::from(u32_at(bytes, 0x20)) << 32 } else { 0 };
        let free_high = if wide { u64::from(u16_at(bytes, 0x2c)) << 16 } else { 0 };
        Self {
            bitmap: bitmap_high | u64::from(u32_at(bytes, 0x00)),
            free_blocks: free_high | u64::from(u16_at(bytes, 0x0c)),
            flags: u16_at(bytes, 0x12),
        }
    }
}
