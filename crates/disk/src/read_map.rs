//! Which blocks of a disk were read: a bit for each, kept beside the reads without a lock.
//!
//! A [`ReadMap`] listens to a source; what was read before costs a look at one word. A [`BlockSet`] is the map at one moment, to
//! compare with others. Memory is taken for what is read only.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use collective_model::{BlockRange, Regions};

use crate::heard::Listener;

/// Words of 64 blocks in a chunk, which is 128 MiB of the disk and 4 KiB of memory.
const CHUNK_WORDS: u64 = 512;
const CHUNK_BLOCKS: u64 = 64 * CHUNK_WORDS;
/// Chunks of a map, at most: 1 TiB of the disk, and 32 MiB of memory if all of it is read. What lies beyond is not noted.
const CHUNKS: u64 = 1 << 13;

type Chunk<T> = Box<[T; CHUNK_WORDS as usize]>;

/// The blocks of a disk that were read. Noting needs no lock and never waits.
#[derive(Debug)]
pub struct ReadMap {
    chunks: Vec<OnceLock<Chunk<AtomicU64>>>,
}

impl ReadMap {
    /// Makes the map of a disk of which nothing was read.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        let blocks = BlockRange::covering(0, size_bytes).count;
        let chunks = blocks.div_ceil(CHUNK_BLOCKS).min(CHUNKS);
        Self { chunks: (0..chunks).map(|_| OnceLock::new()).collect() }
    }

    /// Returns what was read so far.
    #[must_use]
    pub fn snapshot(&self) -> BlockSet {
        let known = self.chunks.iter().enumerate();
        let known = known.filter_map(|(number, chunk)| Some((number as u64, chunk.get()?)));
        let copied = known.map(|(number, chunk)| {
            let words = std::array::from_fn(|word| chunk[word].load(Ordering::Relaxed));
            (number, Box::new(words))
        });
        BlockSet { chunks: copied.collect() }
    }
}

impl Listener for ReadMap {
    fn heard(&self, range: BlockRange) {
        let mapped = BlockRange::new(0, self.chunks.len() as u64 * CHUNK_BLOCKS);
        for part in Parts::of(range.intersection(mapped)) {
            let chunk = self.chunks[part.chunk as usize].get_or_init(empty_chunk);
            let word = &chunk[part.word];
            if word.load(Ordering::Relaxed) & part.mask != part.mask {
                word.fetch_or(part.mask, Ordering::Relaxed);
            }
        }
    }
}

fn empty_chunk() -> Chunk<AtomicU64> {
    Box::new([const { AtomicU64::new(0) }; CHUNK_WORDS as usize])
}

/// Some blocks of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSet {
    /// Chunks in which there are some.
    chunks: BTreeMap<u64, Chunk<u64>>,
}

impl BlockSet {
    /// Returns how many blocks there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        let words = self.chunks.values().flat_map(|chunk| chunk.iter());
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Returns those that lie in none of `ranges`.
    #[must_use]
    pub fn outside(mut self, ranges: &[BlockRange]) -> Self {
        let end = self.chunks.keys().next_back().map_or(0, |last| (last + 1) * CHUNK_BLOCKS);
        for range in ranges.iter().filter(|range| range.start < end) {
            let count = range.count.min(end - range.start);
            for part in Parts::of(BlockRange::new(range.start, count)) {
                if let Some(chunk) = self.chunks.get_mut(&part.chunk) {
                    chunk[part.word] &= !part.mask;
                }
            }
        }
        self
    }

    /// Returns those that are not in `others`.
    #[must_use]
    pub fn without(mut self, others: &Self) -> Self {
        for (number, chunk) in &mut self.chunks {
            let Some(other) = others.chunks.get(number) else { continue };
            for (word, gone) in chunk.iter_mut().zip(other.iter()) {
                *word &= !gone;
            }
        }
        self
    }

    /// Returns the regions in which some of the blocks lie, in order and each once.
    pub fn regions(&self, regions: Regions) -> impl Iterator<Item = u64> {
        let words = self.chunks.iter().flat_map(|(number, chunk)| {
            let numbered = (number * CHUNK_WORDS..).zip(chunk.iter());
            numbered.filter(|(_, word)| **word != 0).map(|(word, _)| word)
        });
        let mut last = None;
        words.filter_map(move |word| {
            // A region has whole words.
            let region = regions.of_block(word * 64);
            (last.replace(region) != Some(region)).then_some(region)
        })
    }
}

/// The part of a range that lies in one word of a map.
struct Part {
    chunk: u64,
    word: usize,
    mask: u64,
}

/// The parts of a range, word by word.
struct Parts(BlockRange);

impl Parts {
    fn of(range: BlockRange) -> Self {
        Self(range)
    }
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        let Self(BlockRange { start, count }) = *self;
        if count == 0 {
            return None;
        }
        let bit = start % 64;
        let taken = count.min(64 - bit);
        self.0 = BlockRange::new(start + taken, count - taken);
        let mask = (u64::MAX >> (64 - taken)) << bit;
        let word = (start % CHUNK_BLOCKS / 64) as usize;
        Some(Part { chunk: start / CHUNK_BLOCKS, word, mask })
    }
}

#[cfg(test)]
mod tests {
    use collective_model::{BLOCK_BYTES, BlockRange, Regions};

    use super::{CHUNK_BLOCKS, CHUNKS, ReadMap};
    use crate::heard::Listener;

    const SIZE_BYTES: u64 = 3 * CHUNK_BLOCKS * BLOCK_BYTES;

    fn map(ranges: &[(u64, u64)]) -> ReadMap {
        let map = ReadMap::new(SIZE_BYTES);
        ranges.iter().for_each(|(start, count)| map.heard(BlockRange::new(*start, *count)));
        map
    }

    fn regions(map: &ReadMap) -> Vec<u64> {
        map.snapshot().regions(Regions::of_disk(SIZE_BYTES)).collect()
    }

    #[test]
    fn a_block_counts_once_however_often_and_with_what_else_it_is_read() {
        let map = map(&[(0, 1), (0, 1), (63, 2), (60, 10), (CHUNK_BLOCKS - 1, 2)]);
        assert_eq!(map.snapshot().count(), 1 + 10 + 2);
        assert_eq!(regions(&map), [0, 1, CHUNK_BLOCKS / 64 - 1, CHUNK_BLOCKS / 64]);
    }

    #[test]
    fn what_was_foretold_or_read_before_is_taken_out_to_the_block() {
        let map = map(&[(10, 100)]);
        let before = map.snapshot();
        map.heard(BlockRange::new(100, 20));
        map.heard(BlockRange::new(5000, 1));
        let later = map.snapshot().without(&before);
        assert_eq!(later.count(), 10 + 1);
        let foretold = [BlockRange::new(110, 9), BlockRange::new(5001, u64::MAX / 2)];
        let beyond = later.outside(&foretold);
        assert_eq!(beyond.count(), 2);
        assert_eq!(beyond.regions(Regions::of_disk(SIZE_BYTES)).collect::<Vec<_>>(), [1, 78]);
    }

    #[test]
    fn memory_is_taken_for_what_is_read_and_nothing_is_noted_beyond_the_bound() {
        let map = ReadMap::new(u64::MAX / 2);
        assert_eq!(map.chunks.len() as u64, CHUNKS);
        map.heard(BlockRange::new(CHUNKS * CHUNK_BLOCKS - 1, 2));
        map.heard(BlockRange::new(CHUNKS * CHUNK_BLOCKS + 7, 1));
        assert_eq!(map.snapshot().count(), 1);
        assert_eq!(map.chunks.iter().filter(|chunk| chunk.get().is_some()).count(), 1);
    }
}
