//! What to read for a disk, and in which order. Pure, but for asking files where their holes are.
//!
//! Pieces are laid over each other, holes become zeros, and what is left is put into the order in which it will lie in packs: first as the
//! recorded start touches it, then what is read most, then as the disk has it. Small runs are put together into batches, the unit of work of a reader.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use collective_model::{BLOCK_BYTES, BlockRange, Error, ErrorKind, Result, ResultExt};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::{DiskSource, Piece, PieceData};

/// Blocks read and hashed in one go: 1 MiB, large against the cost of handing it to a thread.
const BATCH_BLOCKS: u64 = 256;

/// What to do for one disk.
#[derive(Debug)]
pub(super) struct DiskPlan {
    /// What the pieces cover, data or zeros: in the order of the disk, no two touch the same block.
    pub covered: Vec<BlockRange>,
    /// What must be read, in the order of packs.
    pub batches: Vec<Batch>,
    /// Bytes in all batches.
    pub read_bytes: u64,
}

/// Some runs to be read together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub runs: Vec<Run>,
}

/// A run of blocks that lie in a file one after another.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub range: BlockRange,
    pub file: Arc<File>,
    pub offset: u64,
    /// Whether the recorded start touches it.
    pub traced: bool,
    /// Whether it was stored before and only moves to another pack.
    pub moved: bool,
}

impl Batch {
    pub fn blocks(&self) -> u64 {
        self.runs.iter().map(|run| run.range.count).sum()
    }
}

/// Plans one disk.
///
/// # Errors
/// `Invalid` if a piece is off the disk or its file too short.
pub(super) fn plan_disk(source: &DiskSource, trace: &[BlockRange]) -> Result<DiskPlan> {
    let blocks = source.size_bytes.div_ceil(BLOCK_BYTES);
    let mut layout = BTreeMap::new();
    for piece in &source.pieces {
        check_piece(source, piece, blocks)?;
        lay_over(&mut layout, piece.clone());
    }
    let covered = layout.values().map(|piece: &Piece| piece.range).collect();
    let mut data = BTreeMap::new();
    for piece in layout.values() {
        for run in data_runs(piece, source)? {
            data.insert(run.range.start, run);
        }
    }
    let read_bytes = data.values().map(|run: &Run| run.range.length_bytes()).sum();
    let batches = ordered_batches(data, Order { trace, popular: &source.popular });
    Ok(DiskPlan { covered, batches, read_bytes })
}

/// What comes first in packs.
#[derive(Clone, Copy)]
pub(super) struct Order<'a> {
    /// What a recorded start touches.
    pub trace: &'a [BlockRange],
    /// What is read most besides.
    pub popular: &'a [BlockRange],
}

/// Puts runs, given by where they start, into the order of packs and into batches.
pub(super) fn ordered_batches(data: BTreeMap<u64, Run>, order: Order<'_>) -> Vec<Batch> {
    batches(in_order(data, order))
}

fn check_piece(source: &DiskSource, piece: &Piece, blocks: u64) -> Result<()> {
    let range = piece.range;
    if range.start.checked_add(range.count).is_none_or(|end| end > blocks) {
        let message = format!(
            "a piece of the {} disk has {} blocks from block {}, and the disk only {blocks} in all",
            source.role, range.count, range.start
        );
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let PieceData::File { file, offset } = &piece.what else { return Ok(()) };
    let metadata = file
        .metadata()
        .or_error(ErrorKind::Invalid, || format!("cannot read the {} disk", source.role))?;
    // The disk itself may end within its last block.
    let end_bytes = (range.end() * BLOCK_BYTES).min(source.size_bytes);
    let needed = offset.saturating_add(end_bytes.saturating_sub(range.offset_bytes()));
    if metadata.is_file() && !range.is_empty() && metadata.len() < needed {
        let message = format!(
            "the file of the {} disk is cut short: it has {} bytes, and {needed} are needed",
            source.role,
            metadata.len()
        );
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(())
}

/// Lays a piece over those that are there.
fn lay_over(layout: &mut BTreeMap<u64, Piece>, piece: Piece) {
    if piece.range.is_empty() {
        return;
    }
    let (start, end) = (piece.range.start, piece.range.end());
    let before = layout.range(..start).next_back().map(|(at, _)| *at);
    let within: Vec<u64> =
        before.into_iter().chain(layout.range(start..end).map(|(at, _)| *at)).collect();
    for at in within {
        let old = layout.remove(&at).expect("the key was just found");
        for rest in [cut(&old, at, start), cut(&old, end, old.range.end())].into_iter().flatten() {
            layout.insert(rest.range.start, rest);
        }
    }
    layout.insert(start, piece);
}

/// Returns the part of a piece between two blocks, if there is one.
fn cut(piece: &Piece, start: u64, end: u64) -> Option<Piece> {
    let range = piece.range.intersection(BlockRange::new(start, end.saturating_sub(start)));
    if range.is_empty() {
        return None;
    }
    let what = match &piece.what {
        PieceData::Zero => PieceData::Zero,
        PieceData::File { file, offset } => PieceData::File {
            file: file.clone(),
            offset: offset + (range.start - piece.range.start) * BLOCK_BYTES,
        },
    };
    Some(Piece { range, what })
}

/// Returns the runs of a piece that are not holes of its file.
fn data_runs(piece: &Piece, source: &DiskSource) -> Result<Vec<Run>> {
    let PieceData::File { file, offset } = &piece.what else { return Ok(Vec::new()) };
    let end = offset + piece.range.length_bytes();
    let mut runs: Vec<Run> = Vec::new();
    let mut at = *offset;
    while let Some(data) = next_data(file, at..end)
        .or_error(ErrorKind::Invalid, || format!("cannot read the {} disk", source.role))?
    {
        at = data.end;
        // Counted from the beginning of the piece, in whole blocks; two runs of data may share one.
        let covering = BlockRange::covering(data.start - offset, data.end - data.start);
        let first = runs.last().map_or(0, |run| run.range.end() - piece.range.start);
        let start = covering.start.max(first);
        let range =
            BlockRange::new(piece.range.start + start, covering.end().saturating_sub(start));
        if !range.is_empty() {
            let offset = offset + start * BLOCK_BYTES;
            let file = file.clone();
            runs.push(Run { range, file, offset, traced: false, moved: false });
        }
    }
    Ok(runs)
}

/// Finds the first run of data in a part of a file.
fn next_data(file: &File, part: Range<u64>) -> Result<Option<Range<u64>>, Errno> {
    if part.is_empty() {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(part.start)) {
        Err(Errno::NXIO) => return Ok(None),
        // A file system that knows no holes: all of it is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(part)),
        found => found?,
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok((start < part.end).then(|| start..end.min(part.end)))
}

/// Puts runs into the order of packs: as the trace has them, then by popularity, then as the disk has them.
fn in_order(mut data: BTreeMap<u64, Run>, order: Order<'_>) -> Vec<Run> {
    let mut ordered = Vec::new();
    let traced = order.trace.iter().map(|wanted| (wanted, true));
    let popular = order.popular.iter().map(|wanted| (wanted, false));
    for (wanted, traced) in traced.chain(popular).filter(|(wanted, _)| !wanted.is_empty()) {
        let before = data.range(..wanted.start).next_back().map(|(at, _)| *at);
        let end = wanted.start.saturating_add(wanted.count);
        let within: Vec<u64> = before
            .into_iter()
            .chain(data.range(wanted.start..end.max(wanted.start)).map(|(at, _)| *at))
            .collect();
        for at in within {
            let run = data.remove(&at).expect("the key was just found");
            let taken = part_of(&run, wanted.start, end);
            let rests = [part_of(&run, at, wanted.start), part_of(&run, end, run.range.end())];
            for rest in rests.into_iter().flatten() {
                data.insert(rest.range.start, rest);
            }
            ordered.extend(taken.map(|taken| Run { traced, ..taken }));
        }
    }
    ordered.extend(data.into_values());
    ordered
}

/// Returns the part of a run between two blocks, if there is one.
fn part_of(run: &Run, start: u64, end: u64) -> Option<Run> {
    let range = run.range.intersection(BlockRange::new(start, end.saturating_sub(start)));
    // Only a part that exists begins within the run.
    let skipped = || (range.start - run.range.start) * BLOCK_BYTES;
    (!range.is_empty()).then(|| Run { range, offset: run.offset + skipped(), ..run.clone() })
}

/// Puts runs together, and long ones apart, into batches.
fn batches(runs: Vec<Run>) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut batch = Batch::default();
    let mut room = BATCH_BLOCKS;
    for run in runs {
        let (mut start, end) = (run.range.start, run.range.end());
        while let Some(part) = part_of(&run, start, end.min(start + room)) {
            start = part.range.end();
            room -= part.range.count;
            batch.runs.push(part);
            if room == 0 {
                batches.push(std::mem::take(&mut batch));
                room = BATCH_BLOCKS;
            }
        }
    }
    batches.extend((!batch.runs.is_empty()).then_some(batch));
    batches
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use collective_model::{BlockRange, DiskRole, ErrorKind};

    use super::{BATCH_BLOCKS, DiskPlan, plan_disk};
    use crate::publish::{DiskSource, Piece, PieceData};

    /// A file of some blocks, of which those given hold data.
    fn file(blocks: u64, data: &[u64]) -> PieceData {
        let file = tempfile::tempfile().unwrap();
        file.set_len(blocks * 4096).unwrap();
        data.iter().for_each(|block| file.write_all_at(&[1; 4096], block * 4096).unwrap());
        PieceData::File { file: Arc::new(file), offset: 0 }
    }

    fn plan(blocks: u64, pieces: &[(u64, u64, &PieceData)], trace: &[(u64, u64)]) -> DiskPlan {
        let ranges: Vec<_> = trace.iter().map(|(at, count)| BlockRange::new(*at, *count)).collect();
        plan_disk(&source(blocks, pieces), &ranges).unwrap()
    }

    fn source(blocks: u64, pieces: &[(u64, u64, &PieceData)]) -> DiskSource {
        let piece = |(start, count, what): &(u64, u64, &PieceData)| Piece {
            range: BlockRange::new(*start, *count),
            what: (*what).clone(),
        };
        DiskSource::new(DiskRole::System, blocks * 4096, pieces.iter().map(piece).collect())
    }

    /// Disk block, count, block of the file, whether traced; in the order of reading.
    fn reads(plan: &DiskPlan) -> Vec<(u64, u64, u64, bool)> {
        let runs = plan.batches.iter().flat_map(|batch| &batch.runs);
        runs.map(|run| (run.range.start, run.range.count, run.offset / 4096, run.traced)).collect()
    }

    #[test]
    fn holes_are_not_read() {
        let image = file(100, &[3, 4, 50]);
        let plan = plan(100, &[(0, 100, &image)], &[]);
        assert_eq!(reads(&plan), [(3, 2, 3, false), (50, 1, 50, false)]);
        assert_eq!(plan.covered, [BlockRange::new(0, 100)]);
        assert_eq!(plan.read_bytes, 3 * 4096);
    }

    #[test]
    fn the_last_piece_wins_where_pieces_overlap() {
        let (low, high) = (file(10, &[0, 1, 2, 3, 4, 5]), file(2, &[0, 1]));
        let pieces = [(0, 6, &low), (2, 2, &high), (3, 1, &PieceData::Zero)];
        let plan = plan(10, &pieces, &[]);
        assert_eq!(reads(&plan), [(0, 2, 0, false), (2, 1, 0, false), (4, 2, 4, false)]);
        let covered = [(0, 2), (2, 1), (3, 1), (4, 2)].map(|(at, n)| BlockRange::new(at, n));
        assert_eq!(plan.covered, covered);
    }

    #[test]
    fn what_a_start_touches_comes_first_in_its_order_and_once() {
        let image = file(20, &(0..20).collect::<Vec<_>>());
        let trace = [(12, 2), (4, 2), (13, 3), (100, 5), (u64::MAX, 1)];
        let plan = plan(20, &[(0, 20, &image)], &trace);
        assert_eq!(
            reads(&plan),
            [
                (12, 2, 12, true),
                (4, 2, 4, true),
                (14, 2, 14, true),
                (0, 4, 0, false),
                (6, 6, 6, false),
                (16, 4, 16, false)
            ]
        );
    }

    #[test]
    fn what_is_read_most_comes_behind_what_a_start_touches_and_before_the_rest() {
        let image = file(30, &(0..30).collect::<Vec<_>>());
        let popular = vec![BlockRange::new(20, 4), BlockRange::new(8, 4), BlockRange::new(90, 1)];
        let source = DiskSource { popular, ..source(30, &[(0, 30, &image)]) };
        let trace = [BlockRange::new(10, 1), BlockRange::new(11, 0)];
        assert_eq!(
            reads(&plan_disk(&source, &trace).unwrap()),
            [
                (10, 1, 10, true),
                (20, 4, 20, false),
                (8, 2, 8, false),
                (11, 1, 11, false),
                (0, 8, 0, false),
                (12, 8, 12, false),
                (24, 6, 24, false)
            ]
        );
    }

    #[test]
    fn long_runs_are_read_in_batches() {
        let image = file(1000, &(0..1000).collect::<Vec<_>>());
        let plan = plan(1000, &[(0, 1000, &image)], &[(999, 1)]);
        assert_eq!(plan.batches.len(), 4);
        assert!(plan.batches.iter().all(|batch| batch.blocks() <= BATCH_BLOCKS));
        assert_eq!(plan.batches[0].blocks(), BATCH_BLOCKS);
    }

    #[test]
    fn pieces_off_the_disk_and_files_cut_short_are_refused() {
        let image = file(10, &[1]);
        for (blocks, piece) in
            [(9, (0, 10, &image)), (20, (0, 11, &image)), (9, (u64::MAX, 2, &image))]
        {
            let error = plan_disk(&source(blocks, &[piece]), &[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains("system"), "{error}");
        }
    }

    #[test]
    fn a_disk_may_end_within_a_block() {
        let image = tempfile::tempfile().unwrap();
        image.write_all_at(&[1; 4096 + 512], 0).unwrap();
        let image = PieceData::File { file: Arc::new(image), offset: 0 };
        let source = DiskSource { size_bytes: 4096 + 512, ..source(2, &[(0, 2, &image)]) };
        assert_eq!(reads(&plan_disk(&source, &[]).unwrap()), [(0, 2, 0, false)]);
    }
}
