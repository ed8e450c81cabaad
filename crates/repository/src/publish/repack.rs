//! Re-packing: what shows of the base leaves small and mostly dead packs, and is stored again with what is new.
//!
//! A disk that is saved every few minutes would gain a pack each time, and its old packs would hold ever fewer blocks that still show.
//! So every publication moves some blocks along, the worst packs first, within a budget that keeps it quick:
//!
//! - small packs are sorted into classes by the blocks that still show; a class that is full moves as one, with all smaller ones,
//!   and makes a pack of the next class. A block so moves once per class, and twice more in the first.
//! - packs of which less than half is needed move next, those first that free most for least.
//!
//! Blocks are fetched, checked and opened as for a reader, and go through the pipeline as new ones do; on the way they are in memory
//! only. What cannot be read stays where it is: re-packing is no reason for a publication to fail. The choice is pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use collective_model::{BLOCK_BYTES, Digest, IoResultExt, Result};
use futures::StreamExt;
use rustix::fs::{MemfdFlags, memfd_create};

use super::PlannedDisk;
use super::assemble::PlacedRun;
use super::plan::{Order, Run, ordered_batches};
use crate::frame::FrameRef;
use crate::manifest::PackEntry;
use crate::pack::HEADER_BYTES;
use crate::repository::Repository;

/// Classes of small packs: fewer blocks than this still show. 64 KiB, 512 KiB, 4 MiB of disk; a pack with more is left alone
/// while it is alive.
const CLASS_BLOCKS: [u64; 3] = [16, 128, 1024];

/// Packs of one class that a version may reach.
const CLASS_PACKS: usize = 8;

/// Bytes of a pack that may be dead in any case: not worth the move.
const DEAD_BYTES: u64 = 256 << 10;

/// Blocks that move with any publication at most: 8 MiB, so that no backup of a few blocks becomes slow.
const MOVED_BLOCKS: u64 = 2 << 10;

/// Blocks that move with a large publication at most: 64 MiB, which are in memory meanwhile.
const MOVED_BLOCKS_MAX: u64 = 16 << 10;

/// Of the blocks that a publication reads, the part that may move along with it.
const MOVED_SHARE: u64 = 2;

/// Bytes of frames that are fetched for it at most, for each block that may move: four times what a full frame has.
const FETCHED_BYTES_PER_BLOCK: u64 = 4 * BLOCK_BYTES;

/// Plain bytes of frames that are fetched at a time.
const FETCH_BYTES: usize = 8 << 20;

/// What a version needs of one pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PackUse {
    pack: Digest,
    /// Blocks of disks that it shows at.
    shown_blocks: u64,
    /// Bytes of its frames.
    held_bytes: u64,
    /// Those of them that are needed, a frame by the share of its blocks.
    live_bytes: u64,
}

/// A run that moves, and the disk that it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moving {
    disk: usize,
    run: PlacedRun,
}

impl Repository {
    /// Moves blocks that show of the base into the batches that are stored; returns the packs that they leave.
    pub(super) async fn repack(
        &self,
        plans: &mut [PlannedDisk],
        packs: &[PackEntry],
    ) -> Result<HashSet<Digest>> {
        let read_blocks = plans.iter().map(|plan| plan.read_bytes).sum::<u64>() / BLOCK_BYTES;
        if read_blocks == 0 {
            // An undo stays an index and a manifest.
            return Ok(HashSet::new());
        }
        let shown: Vec<&[PlacedRun]> = plans.iter().map(|plan| &*plan.shown).collect();
        let worst = worst(&uses(packs, shown.iter().copied().flatten()));
        let moving = select(&shown, &worst, read_blocks);
        if moving.is_empty() {
            return Ok(HashSet::new());
        }
        let (file, moved) = self.fetch_moving(&moving).await?;
        for (number, plan) in plans.iter_mut().enumerate() {
            let own = moved.iter().filter(|(moving, _)| moving.disk == number);
            let runs: BTreeMap<u64, Run> = own
                .map(|(moving, offset)| {
                    let (range, offset) = (moving.run.range(), *offset);
                    let file = Arc::clone(&file);
                    (range.start, Run { range, file, offset, traced: false, moved: true })
                })
                .collect();
            plan.shown.retain(|run| !runs.contains_key(&run.start));
            let order = Order { trace: &plan.trace.ranges, popular: &[] };
            plan.batches.extend(ordered_batches(runs, order));
        }
        Ok(moved.iter().map(|(moving, _)| moving.run.frame.pack).collect())
    }

    /// Fetches what moves into memory; returns where each run is there.
    async fn fetch_moving(&self, moving: &[Moving]) -> Result<(Arc<File>, Vec<(Moving, u64)>)> {
        let failed = || "no memory for blocks that move".to_owned();
        // A file without a name that is never on a disk: the blocks may be somebody's secret.
        let memory = memfd_create("repack", MemfdFlags::CLOEXEC).map_err(std::io::Error::from);
        let memory = File::from(memory.or_io(failed)?);
        let mut moved = Vec::new();
        let mut end = 0;
        for groups in fetches(moving) {
            let frames: Vec<FrameRef> = groups.iter().map(|group| group[0].run.frame).collect();
            let mut arriving = self.fetch_each_frame(&frames);
            while let Some(arrived) = arriving.next().await {
                let (place, plain) = match arrived {
                    // Whatever it is: if the repository is away altogether, the next step says so.
                    Err(error) => {
                        tracing::warn!(error = error.chain(), "blocks stay in their pack");
                        continue;
                    }
                    Ok(arrived) => arrived,
                };
                for moving in groups[place] {
                    let start = moving.run.first as usize * BLOCK_BYTES as usize;
                    let bytes = &plain[start..][..moving.run.range().length_bytes() as usize];
                    memory.write_all_at(bytes, end).or_io(failed)?;
                    moved.push((*moving, end));
                    end += bytes.len() as u64;
                }
            }
        }
        Ok((Arc::new(memory), moved))
    }
}

/// Sums up what is needed of each pack, in the order of packs; those of which nothing shows are left out.
fn uses<'a>(packs: &[PackEntry], shown: impl Iterator<Item = &'a PlacedRun>) -> Vec<PackUse> {
    let mut frames: HashMap<FrameRef, u64> = HashMap::new();
    for run in shown {
        *frames.entry(run.frame).or_default() += u64::from(run.count);
    }
    let mut used: HashMap<Digest, (u64, u64)> = HashMap::new();
    for (frame, shown_blocks) in frames {
        let (shown, live_bytes) = used.entry(frame.pack).or_default();
        let blocks = u64::from(frame.blocks);
        *shown += shown_blocks;
        *live_bytes += u64::from(frame.stored_bytes) * shown_blocks.min(blocks) / blocks;
    }
    packs
        .iter()
        .filter_map(|pack| {
            let (shown_blocks, live_bytes) = used.remove(&pack.id)?;
            let other_bytes = u64::from(pack.table_bytes) + HEADER_BYTES as u64;
            let held_bytes = pack.bytes.saturating_sub(other_bytes);
            Some(PackUse { pack: pack.id, shown_blocks, held_bytes, live_bytes })
        })
        .collect()
}

/// Names the packs that should go, the most urgent first.
fn worst(uses: &[PackUse]) -> Vec<Digest> {
    let mut small: Vec<&PackUse> = uses.iter().collect();
    small.sort_by_key(|pack| pack.shown_blocks);
    let (mut start, mut full) = (0, 0);
    for limit in CLASS_BLOCKS {
        let end = small.partition_point(|pack| pack.shown_blocks < limit);
        if end - start >= CLASS_PACKS {
            full = end;
        }
        start = end;
    }
    let mut dead: Vec<&PackUse> = small.split_off(full);
    dead.retain(|pack| {
        let dead_bytes = pack.held_bytes.saturating_sub(pack.live_bytes);
        dead_bytes > DEAD_BYTES.max(pack.live_bytes)
    });
    let freed = |pack: &PackUse| pack.held_bytes / pack.shown_blocks.max(1);
    dead.sort_by_key(|pack| std::cmp::Reverse(freed(pack)));
    small.into_iter().chain(dead).map(|pack| pack.pack).collect()
}

/// Takes the runs in these packs, in this order, until the budget of a publication that reads `read_blocks` is spent.
fn select(shown: &[&[PlacedRun]], worst: &[Digest], read_blocks: u64) -> Vec<Moving> {
    let ranks: HashMap<Digest, usize> =
        worst.iter().enumerate().map(|(rank, pack)| (*pack, rank)).collect();
    let runs = shown
        .iter()
        .enumerate()
        .flat_map(|(disk, runs)| runs.iter().map(move |run| Moving { disk, run: *run }));
    let mut runs: Vec<Moving> =
        runs.filter(|moving| ranks.contains_key(&moving.run.frame.pack)).collect();
    runs.sort_by_key(|moving| {
        let Moving { disk, run } = moving;
        (ranks[&run.frame.pack], run.frame.offset, *disk, run.start)
    });
    let mut blocks = (read_blocks / MOVED_SHARE).clamp(MOVED_BLOCKS, MOVED_BLOCKS_MAX);
    let mut fetched_bytes = blocks * FETCHED_BYTES_PER_BLOCK;
    let mut last = None;
    let affordable = runs.iter().take_while(|moving| {
        let place = (moving.run.frame.pack, moving.run.frame.offset);
        let cost = u64::from(moving.run.frame.stored_bytes);
        let cost = if last.replace(place) == Some(place) { 0 } else { cost };
        let (Some(blocks_left), Some(bytes_left)) =
            (blocks.checked_sub(u64::from(moving.run.count)), fetched_bytes.checked_sub(cost))
        else {
            return false;
        };
        (blocks, fetched_bytes) = (blocks_left, bytes_left);
        true
    });
    let count = affordable.count();
    runs.truncate(count);
    runs
}

/// Puts the runs of each frame together, and cuts frames into what is fetched at a time.
fn fetches(moving: &[Moving]) -> Vec<Vec<&[Moving]>> {
    let mut fetches = Vec::new();
    let mut now = Vec::new();
    let mut room_bytes = FETCH_BYTES;
    for group in moving.chunk_by(|one, next| one.run.frame == next.run.frame) {
        let plain_bytes = group[0].run.frame.plain_bytes();
        if plain_bytes > room_bytes {
            fetches.push(std::mem::take(&mut now));
            room_bytes = FETCH_BYTES;
        }
        room_bytes = room_bytes.saturating_sub(plain_bytes);
        now.push(group);
    }
    fetches.push(now);
    fetches
}

#[cfg(test)]
mod tests;
