//! Puts a version together: what stays of the base, what is new, and the packs and frames that both need. Pure.

use std::collections::HashMap;

use collective_model::{BlockRange, Digest};

use crate::frame::FrameRef;
use crate::index::{Index, IndexExtent};
use crate::manifest::PackEntry;

/// A run of blocks of the disk and where in which frame it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlacedRun {
    pub start: u64,
    pub count: u32,
    pub frame: FrameRef,
    pub first: u32,
}

impl PlacedRun {
    pub fn range(&self) -> BlockRange {
        BlockRange::new(self.start, u64::from(self.count))
    }

    /// Returns the part between two blocks of the disk, if there is one.
    fn part(&self, start: u64, end: u64) -> Option<Self> {
        let range = self.range().intersection(BlockRange::new(start, end.saturating_sub(start)));
        let first = self.first + range.start.saturating_sub(self.start) as u32;
        let count = range.count as u32;
        (!range.is_empty()).then_some(Self { start: range.start, count, first, ..*self })
    }
}

/// Returns what of the base shows through: not covered, and not beyond the disk's end.
pub(super) fn uncovered(base: &Index, covered: &[BlockRange], blocks: u64) -> Vec<PlacedRun> {
    let mut runs = Vec::new();
    let mut next = 0;
    for extent in &base.extents {
        let frame = base.frames[extent.frame as usize];
        let run =
            PlacedRun { start: extent.start, count: extent.count, frame, first: extent.first };
        let end = run.range().end().min(blocks);
        // Extents and what is covered are both in the order of the disk.
        while covered.get(next).is_some_and(|range| range.end() <= run.start) {
            next += 1;
        }
        let mut at = run.start;
        for cover in covered[next..].iter().take_while(|cover| cover.start < end) {
            runs.extend(run.part(at, cover.start.min(end)));
            at = cover.end();
        }
        runs.extend(run.part(at, end));
    }
    runs
}

/// Makes the index of a disk from its runs, in any order.
pub(super) fn index_of(mut runs: Vec<PlacedRun>, packs: &[PackEntry]) -> Index {
    runs.sort_unstable_by_key(|run| run.start);
    let ranks: HashMap<Digest, usize> =
        packs.iter().enumerate().map(|(rank, pack)| (pack.id, rank)).collect();
    let mut frames: Vec<FrameRef> = runs.iter().map(|run| run.frame).collect();
    frames.sort_unstable_by_key(|frame| (ranks[&frame.pack], frame.offset));
    frames.dedup();
    let numbers: HashMap<(Digest, u64), u32> = frames
        .iter()
        .enumerate()
        .map(|(number, frame)| ((frame.pack, frame.offset), number as u32))
        .collect();
    let mut extents: Vec<IndexExtent> = Vec::new();
    for run in runs {
        let frame = numbers[&(run.frame.pack, run.frame.offset)];
        match extents.last_mut() {
            Some(last)
                if last.range().end() == run.start
                    && last.frame == frame
                    && last.first + last.count == run.first =>
            {
                last.count += run.count;
            }
            _ => extents.push(IndexExtent {
                start: run.start,
                count: run.count,
                frame,
                first: run.first,
            }),
        }
    }
    Index { extents, frames }
}

/// Returns those of the packs that runs need, in the order given; each once.
pub(super) fn needed_packs<'a>(
    candidates: impl Iterator<Item = &'a PackEntry>,
    runs: impl Iterator<Item = &'a PlacedRun>,
) -> Vec<PackEntry> {
    let mut wanted: std::collections::HashSet<Digest> = runs.map(|run| run.frame.pack).collect();
    candidates.filter(|pack| wanted.remove(&pack.id)).copied().collect()
}

#[cfg(test)]
mod tests {
    use collective_model::{BlockRange, Digest};

    use super::{PlacedRun, index_of, needed_packs, uncovered};
    use crate::frame::{Codec, FrameRef};
    use crate::manifest::PackEntry;

    fn frame(pack: u8, offset: u64) -> FrameRef {
        let (hash, pack) = (Digest([offset as u8; 32]), Digest([pack; 32]));
        FrameRef { hash, pack, offset, stored_bytes: 10, blocks: 64, codec: Codec::Zstd }
    }

    fn run(start: u64, count: u32, frame: FrameRef, first: u32) -> PlacedRun {
        PlacedRun { start, count, frame, first }
    }

    fn pack(id: u8) -> PackEntry {
        let id = Digest([id; 32]);
        PackEntry { id, bytes: 100, table_bytes: 64, table_hash: id }
    }

    #[test]
    fn runs_that_go_on_are_joined_and_frames_are_numbered_by_pack_and_place() {
        let (new, old) = (frame(2, 64), frame(1, 500));
        let runs = vec![run(9, 1, new, 5), run(0, 4, old, 0), run(4, 4, old, 4), run(8, 1, new, 9)];
        let index = index_of(runs, &[pack(1), pack(2)]);
        assert_eq!(index.frames, [old, new]);
        let shape: Vec<_> =
            index.extents.iter().map(|it| (it.start, it.count, it.frame, it.first)).collect();
        assert_eq!(shape, [(0, 8, 0, 0), (8, 1, 1, 9), (9, 1, 1, 5)]);
    }

    #[test]
    fn the_base_shows_through_where_nothing_covers_it() {
        let base =
            index_of(vec![run(0, 10, frame(1, 64), 0), run(20, 10, frame(1, 80), 3)], &[pack(1)]);
        let shown = |covered: &[(u64, u64)], blocks| {
            let covered: Vec<_> =
                covered.iter().map(|(start, count)| BlockRange::new(*start, *count)).collect();
            uncovered(&base, &covered, blocks)
                .iter()
                .map(|run| (run.start, run.count, run.first))
                .collect::<Vec<_>>()
        };
        assert_eq!(shown(&[], 100), [(0, 10, 0), (20, 10, 3)]);
        assert_eq!(shown(&[(2, 1), (5, 1)], 100), [(0, 2, 0), (3, 2, 3), (6, 4, 6), (20, 10, 3)]);
        assert_eq!(shown(&[(8, 15)], 100), [(0, 8, 0), (23, 7, 6)]);
        assert_eq!(shown(&[(0, 100)], 100), []);
        assert_eq!(shown(&[(0, 1)], 25), [(1, 9, 1), (20, 5, 3)]);
    }

    #[test]
    fn only_packs_that_are_needed_are_named_and_once() {
        let runs = [run(0, 1, frame(3, 64), 0), run(1, 1, frame(1, 64), 0)];
        let candidates = [pack(1), pack(2), pack(3), pack(1)];
        let needed = needed_packs(candidates.iter(), runs.iter());
        assert_eq!(needed, [pack(1), pack(3)]);
    }
}
