//! Trim: which blocks of an image hold nothing, by the account of the file systems in it.
//!
//! A file system never overwrites what it deletes, so an image carries every file that was ever removed from it. Publishers leave
//! out the blocks that are found here. The scan only reads, and is timid: what it does not understand counts as used. It looks at
//! file systems that fill the image, and at those in partitions (GPT, or primary ones of an MBR).

mod extended;
mod partition;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use collective_model::{BLOCK_BYTES, BlockRange, IoResultExt, Result};

/// Finds the blocks that the ext2, ext3 and ext4 file systems of an image say are free, in the order of the disk.
///
/// File systems with a journal to replay, with errors, or with features not known here are left alone; so are groups of blocks whose
/// bitmap does not agree with its descriptor. A damaged image gives fewer ranges, never an error.
///
/// # Errors
/// If the image cannot be read.
pub fn free_ranges(image: &File, size_bytes: u64) -> Result<Vec<BlockRange>> {
    let image = Image { file: image, size_bytes };
    let mut free = Vec::new();
    for volume in partition::volumes(&image)? {
        free.extend(extended::free_bytes(&image, volume)?);
    }
    free.sort_unstable_by_key(|range| range.start);
    Ok(whole_blocks(&free))
}

/// An image of which parts beyond the end are just not there.
struct Image<'a> {
    file: &'a File,
    size_bytes: u64,
}

impl Image<'_> {
    /// Reads some bytes; none if they are not all on the disk.
    fn read(&self, offset: u64, length: usize) -> Result<Option<Vec<u8>>> {
        if offset.checked_add(length as u64).is_none_or(|end| end > self.size_bytes) {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        match self.file.read_exact_at(&mut bytes, offset) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            read => {
                read.or_io(|| format!("cannot read the image at {offset}")).map(|()| Some(bytes))
            }
        }
    }
}

/// Returns the whole blocks within ranges of bytes, joined where they touch.
fn whole_blocks(free: &[Range<u64>]) -> Vec<BlockRange> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in free {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range.clone()),
        }
    }
    let blocks = joined.into_iter().filter_map(|range| {
        let start = range.start.div_ceil(BLOCK_BYTES);
        let end = range.end / BLOCK_BYTES;
        (start < end).then(|| BlockRange::new(start, end - start))
    });
    blocks.collect()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use collective_model::BlockRange;

    use super::whole_blocks;

    #[test]
    fn only_whole_blocks_count_and_neighbours_are_joined() {
        let block = 4096;
        for (free, expected) in [
            (vec![1..block, block..block + 1], vec![]),
            (vec![1..3 * block, 3 * block..3 * block + 5], vec![(1, 2)]),
            (vec![0..1024, 1024..block, block..block + 7], vec![(0, 1)]),
            (vec![0..2 * block, 5 * block..6 * block], vec![(0, 2), (5, 1)]),
            (vec![0..2 * block, block..block + 1], vec![(0, 2)]),
        ] {
            let expected: Vec<_> =
                expected.into_iter().map(|(start, count)| BlockRange::new(start, count)).collect();
            assert_eq!(whole_blocks(&free), expected, "{free:?}");
        }
    }
}
