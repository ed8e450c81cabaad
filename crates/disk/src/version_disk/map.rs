//! Where the blocks of a disk lie, as far as it was asked before: kept small, and found without waiting.
//!
//! The disk is cut into granules of 64 blocks. A granule that was read once is known until the memory for it is full; then
//! all are forgotten and learned again, which costs a look into the index for each. Nothing here ever changes
//! for a version, so there is nothing to keep in step.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use collective_model::{BLOCK_BYTES, BlockRange, Digest, Error, ErrorKind, Result};
use collective_repository::{Extent, ExtentData, FrameRef};

/// Blocks in a granule.
const GRANULE_BLOCKS: u64 = 64;
/// Granules that are known at once, at most: 4 GiB of the disk, and 48 MiB of memory if every block lies elsewhere.
const GRANULES: usize = 1 << 14;

/// The part of a map that is known.
#[derive(Debug, Default)]
pub(super) struct Map {
    granules: RwLock<HashMap<u64, Arc<[Spot]>>>,
}

/// A run of blocks within a granule.
#[derive(Debug)]
struct Spot {
    range: BlockRange,
    /// The frame and its block that is the first of the run; zeros if there is none.
    frame: Option<(Digest, u32)>,
}

/// A part of a read that comes from one place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<F> {
    /// Where in the buffer it goes.
    pub buffer: Range<usize>,
    /// The frame and the byte of it that comes first; zeros if there is none.
    pub frame: Option<(F, usize)>,
}

/// A part of a read that lies in a frame.
#[derive(Debug)]
pub(super) struct FramePart {
    pub frame: FrameRef,
    /// The byte of the frame that comes first.
    pub start: usize,
    /// Where in the buffer it goes.
    pub buffer: Range<usize>,
}

impl Map {
    /// Returns the granules around a range.
    pub fn around(range: BlockRange) -> BlockRange {
        let start = range.start / GRANULE_BLOCKS * GRANULE_BLOCKS;
        BlockRange::new(start, range.end().next_multiple_of(GRANULE_BLOCKS) - start)
    }

    /// Takes in what the index says of whole granules (the last may end with the disk).
    pub fn learn(&self, extents: &[Extent]) {
        let mut granules: HashMap<u64, Vec<Spot>> = HashMap::new();
        for extent in extents {
            let mut start = extent.range.start;
            while start < extent.range.end() {
                let granule = start / GRANULE_BLOCKS;
                let end = extent.range.end().min((granule + 1) * GRANULE_BLOCKS);
                let range = BlockRange::new(start, end - start);
                let frame = match extent.what {
                    ExtentData::Zero => None,
                    ExtentData::Frame { frame, first } => {
                        let skipped = u32::try_from(start - extent.range.start);
                        Some((frame.hash, first + skipped.expect("frames have few blocks")))
                    }
                };
                granules.entry(granule).or_default().push(Spot { range, frame });
                start = end;
            }
        }
        let mut known = self.granules.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() + granules.len() > GRANULES {
            known.clear();
        }
        known.extend(granules.into_iter().map(|(granule, spots)| (granule, spots.into())));
    }

    /// Shows the parts of a read one by one, until `visit` says no; false if it did or the map is not known.
    pub fn parts(
        &self,
        offset: u64,
        length: usize,
        mut visit: impl FnMut(Part<Digest>) -> bool,
    ) -> bool {
        let blocks = BlockRange::covering(offset, length as u64);
        let granules = blocks.start / GRANULE_BLOCKS..blocks.end().div_ceil(GRANULE_BLOCKS);
        granules.into_iter().all(|granule| {
            let known = self.granules.read().unwrap_or_else(PoisonError::into_inner);
            let Some(spots) = known.get(&granule).cloned() else { return false };
            drop(known);
            let first = spots.partition_point(|spot| spot.range.end() <= blocks.start);
            let touched = spots[first..].iter().take_while(|spot| spot.range.start < blocks.end());
            touched
                .into_iter()
                .all(|spot| part(spot.range, spot.frame, offset, length).is_none_or(&mut visit))
        })
    }
}

/// Returns the parts of a read that lie in frames.
pub(super) fn frame_parts(
    extents: &[Extent],
    offset: u64,
    length: usize,
) -> impl Iterator<Item = FramePart> {
    extents.iter().filter_map(move |extent| match extent.what {
        ExtentData::Frame { frame, first } => {
            let Part { buffer, frame } = part(extent.range, Some((frame, first)), offset, length)?;
            frame.map(|(frame, start)| FramePart { frame, start, buffer })
        }
        ExtentData::Zero => None,
    })
}

/// Cuts a run of blocks to a read.
fn part<F>(
    range: BlockRange,
    frame: Option<(F, u32)>,
    offset: u64,
    length: usize,
) -> Option<Part<F>> {
    let start = range.offset_bytes().max(offset);
    let end = (range.end() * BLOCK_BYTES).min(offset + length as u64);
    let skipped = start - range.offset_bytes();
    (start < end).then(|| Part {
        buffer: (start - offset) as usize..(end - offset) as usize,
        frame: frame
            .map(|(frame, first)| (frame, (u64::from(first) * BLOCK_BYTES + skipped) as usize)),
    })
}

/// Checks that extents cover a range without a gap, and lie in their frames.
pub(super) fn check(extents: &[Extent], range: BlockRange) -> Result<()> {
    let mut next = range.start;
    for extent in extents {
        let fits = match extent.what {
            ExtentData::Zero => true,
            ExtentData::Frame { frame, first } => {
                u64::from(first) + extent.range.count <= u64::from(frame.blocks)
            }
        };
        if extent.range.start != next || extent.range.is_empty() || !fits {
            break;
        }
        next = extent.range.end();
    }
    if next == range.end() {
        return Ok(());
    }
    let message = format!("the index says nothing sound about block {next}");
    Err(Error::new(ErrorKind::Corrupt, message))
}

#[cfg(test)]
mod tests {
    use collective_model::{BlockRange, Digest};
    use collective_repository::{Codec, Extent, ExtentData, FrameRef};

    use super::{Map, Part, check};

    fn extent(start: u64, count: u64, frame: Option<(u8, u32)>) -> Extent {
        let what = match frame {
            None => ExtentData::Zero,
            Some((name, first)) => ExtentData::Frame {
                frame: FrameRef {
                    hash: Digest([name; 32]),
                    pack: Digest([0; 32]),
                    offset: 0,
                    stored_bytes: 1,
                    blocks: 64,
                    codec: Codec::Raw,
                },
                first,
            },
        };
        Extent { range: BlockRange::new(start, count), what }
    }

    fn parts(map: &Map, offset: u64, length: usize) -> Option<Vec<(usize, usize, u8, usize)>> {
        let mut parts = Vec::new();
        let known = map.parts(offset, length, |Part { buffer, frame }| {
            let (name, start) = frame.map_or((0, 0), |(frame, start)| (frame.0[0], start));
            parts.push((buffer.start, buffer.end, name, start));
            true
        });
        known.then_some(parts)
    }

    #[test]
    fn a_read_is_cut_where_its_blocks_lie_apart() {
        let map = Map::default();
        map.learn(&[
            extent(0, 60, None),
            extent(60, 10, Some((1, 5))),
            extent(70, 58, Some((2, 0))),
        ]);
        assert_eq!(parts(&map, 4096, 4096), Some(vec![(0, 4096, 0, 0)]));
        assert_eq!(
            parts(&map, 60 * 4096 - 1, 3 + 10 * 4096),
            Some(vec![
                (0, 1, 0, 0),
                (1, 1 + 4 * 4096, 1, 5 * 4096),
                (1 + 4 * 4096, 1 + 10 * 4096, 1, 9 * 4096),
                (1 + 10 * 4096, 3 + 10 * 4096, 2, 0),
            ])
        );
        assert_eq!(parts(&map, 128 * 4096 - 1, 2), None);
    }

    #[test]
    fn a_gap_or_a_place_outside_of_its_frame_is_not_believed() {
        let range = BlockRange::new(0, 64);
        assert!(check(&[extent(0, 4, None), extent(4, 60, Some((1, 4)))], range).is_ok());
        for extents in [
            vec![],
            vec![extent(0, 63, None)],
            vec![extent(1, 63, None)],
            vec![extent(0, 4, None), extent(5, 59, None)],
            vec![extent(0, 64, Some((1, 1)))],
            vec![extent(0, 65, None)],
        ] {
            assert!(check(&extents, range).is_err(), "{extents:?}");
        }
    }
}
