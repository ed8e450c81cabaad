//! Listens to a disk and remembers the order in which its blocks are first touched.
//!
//! What comes out is a trace: the boot that a publisher plays once, so that every later start can be read ahead.

use std::sync::{Mutex, MutexGuard, PoisonError};

use collective_model::BlockRange;
use collective_repository::Trace;

use crate::heard::Listener;

/// Runs of blocks in a trace, at most: what is touched later is not recorded.
const RANGES: usize = 1 << 20;

/// Remembers the order in which blocks are first touched.
#[derive(Debug, Default)]
pub struct Recorder {
    touches: Mutex<Touches>,
}

impl Recorder {
    /// Returns what was touched so far, in the order of first touch.
    #[must_use]
    pub fn trace(&self) -> Trace {
        Trace { ranges: self.touches().ranges.clone() }
    }

    fn touches(&self) -> MutexGuard<'_, Touches> {
        self.touches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for Recorder {
    fn heard(&self, range: BlockRange) {
        self.touches().add(range);
    }
}

#[derive(Debug, Default)]
struct Touches {
    ranges: Vec<BlockRange>,
    /// A bit for each block, as far as the disk was touched.
    seen: Vec<u64>,
}

impl Touches {
    fn add(&mut self, range: BlockRange) {
        for block in range.start..range.end() {
            if self.is_new(block) && self.ranges.len() < RANGES {
                match self.ranges.last_mut() {
                    Some(last) if last.end() == block => last.count += 1,
                    _ => self.ranges.push(BlockRange::new(block, 1)),
                }
            }
        }
    }

    fn is_new(&mut self, block: u64) -> bool {
        let word = usize::try_from(block / 64).expect("disks have fewer blocks than memory");
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        let bit = 1 << (block % 64);
        let new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        new
    }
}

#[cfg(test)]
mod tests {
    use collective_model::BlockRange;

    use super::Touches;

    #[test]
    fn blocks_are_listed_once_in_the_order_of_first_touch() {
        let mut touches = Touches::default();
        for (start, count) in [(10, 4), (14, 2), (0, 1), (8, 10), (0, 20)] {
            touches.add(BlockRange::new(start, count));
        }
        let ranges: Vec<_> =
            touches.ranges.iter().map(|range| (range.start, range.count)).collect();
        assert_eq!(ranges, [(10, 6), (0, 1), (8, 2), (16, 2), (1, 7), (18, 2)]);
    }
}
