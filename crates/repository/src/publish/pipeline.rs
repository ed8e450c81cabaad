//! From blocks to packs: read and hash → look up → gather → compress → pack → store.
//!
//! ```text
//! batches ─▶ read, hash ─▶ in order: known? zero? new ─▶ frames ─▶ compress, seal ─▶ in order: pack ─▶ store
//!            (threads)       (this task)                           (threads)           (this task)    (tasks)
//! ```
//!
//! Work is spread over the cores but put together in order, so the same input gives the same packs. What is under way is
//! bounded at every stage: some batches, some frames, two packs.

use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use collective_model::{BLOCK_BYTES, ErrorKind, IoResultExt, Monitor, Progress, Result, ResultExt};
use futures::stream::{self, FuturesOrdered, StreamExt};
use tokio::task::{JoinHandle, JoinSet};

use super::assemble::PlacedRun;
use super::known::{FramePlace, Known};
use super::plan::Batch;
use super::{FrameSink, PublishStats};
use crate::backend::ObjectName;
use crate::frame::{Effort, EncodedFrame, FrameRef};
use crate::manifest::PackEntry;
use crate::pack::{FinishedPack, PackWriter, TableFrame};
use crate::repository::Repository;
use crate::sealer::{BlockHash, Sealer};

/// Packs that are hashed and stored while the next one fills: at 32 MiB each.
const PACKS_IN_FLIGHT: usize = 2;

/// Frames compressed, or waiting for it, for each core: enough that no core waits for the order.
const FRAMES_PER_CORE: usize = 4;

/// Batches read, or waiting to be looked up, for each core: at 1 MiB each.
const BATCHES_PER_CORE: usize = 2;

/// Frames of an update that get the most effort: a small one whole, at a fraction of a second.
const MOST_EFFORT_FRAMES: usize = 64;

const BLOCK: usize = BLOCK_BYTES as usize;

/// Takes the blocks of a publication and stores those that are new.
pub(super) struct Pipeline<'a> {
    repository: &'a Repository,
    watch: &'a dyn Monitor,
    sink: Option<Arc<dyn FrameSink>>,
    known: Known,
    gathering: Gathering,
    compressing: FuturesOrdered<JoinHandle<Result<CompressedFrame>>>,
    packing: PackWriter,
    /// Frames that are packed, and the number of the new pack that each is in.
    frames: Vec<(usize, TableFrame)>,
    storing: JoinSet<Result<(usize, PackEntry)>>,
    packs: Vec<Option<PackEntry>>,
    pub stats: PublishStats,
    pub total_bytes: u64,
    /// Whether there is a version before, of which hosts may have all that is not new.
    pub is_update: bool,
    /// Memory of batches that were taken, for those to come: clearing it anew would cost as much as reading.
    buffers: Arc<Mutex<Vec<Vec<u8>>>>,
    cores: usize,
}

/// The frame that new blocks are gathered into.
#[derive(Default)]
struct Gathering {
    plain: Vec<u8>,
    hashes: Vec<BlockHash>,
    /// The block of the disk after the last one gathered.
    next_block: Option<u64>,
    traced: bool,
    cut_frames: usize,
}

/// A run of the disk that was found or stored: the number of its first block among the known ones.
#[derive(Clone, Copy, Debug)]
struct NumberedRun {
    start: u64,
    count: u32,
    number: u32,
}

struct HashedBatch {
    batch: Batch,
    plain: Vec<u8>,
    /// For each block its hash; none for a block of zeros.
    hashes: Vec<Option<BlockHash>>,
}

struct CompressedFrame {
    frame: EncodedFrame,
    plain: Bytes,
    hashes: Vec<BlockHash>,
}

/// Where the runs of a disk are, to be resolved when all packs are stored.
pub(super) struct StoredRuns(Vec<NumberedRun>);

/// What a finished pipeline has stored.
pub(super) struct StoredPacks {
    pub packs: Vec<PackEntry>,
    pub stats: PublishStats,
    frames: Vec<FrameRef>,
    known: Known,
}

impl<'a> Pipeline<'a> {
    pub fn new(
        repository: &'a Repository,
        known: Known,
        sink: Option<Arc<dyn FrameSink>>,
        watch: &'a dyn Monitor,
    ) -> Self {
        Self {
            repository,
            watch,
            sink,
            known,
            gathering: Gathering::default(),
            compressing: FuturesOrdered::new(),
            packing: PackWriter::new(repository.descriptor()),
            frames: Vec::new(),
            storing: JoinSet::new(),
            packs: Vec::new(),
            stats: PublishStats::default(),
            total_bytes: 0,
            is_update: false,
            buffers: Arc::default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Takes all blocks of a disk, whose last block may be cut by `size_bytes`.
    pub async fn store(&mut self, batches: Vec<Batch>, size_bytes: u64) -> Result<StoredRuns> {
        let mut runs = Vec::new();
        let (sealer, buffers) = (self.repository.sealer().clone(), Arc::clone(&self.buffers));
        let mut hashed = stream::iter(batches)
            .map(|batch| {
                let (sealer, buffers) = (sealer.clone(), Arc::clone(&buffers));
                tokio::task::spawn_blocking(move || {
                    let plain = lock(&buffers).pop().unwrap_or_default();
                    read_and_hash(batch, plain, size_bytes, &sealer)
                })
            })
            .buffered(BATCHES_PER_CORE * self.cores);
        while let Some(batch) = hashed.next().await {
            let batch = batch.or_error(ErrorKind::Internal, broken_off)??;
            self.take(&batch, &mut runs);
            lock(&self.buffers).push(batch.plain);
            self.pack_until(FRAMES_PER_CORE * self.cores).await?;
            self.report();
        }
        self.cut();
        Ok(StoredRuns(runs))
    }

    /// Stores what is left and waits until everything is stored.
    pub async fn finish(mut self) -> Result<StoredPacks> {
        self.pack_until(0).await?;
        if !self.packing.is_empty() {
            self.close_pack().await?;
        }
        while self.wait_for_pack().await? {}
        self.report();
        let packs: Vec<PackEntry> = self.packs.into_iter().flatten().collect();
        let frames = self.frames.iter().map(|(pack, frame)| frame.in_pack(packs[*pack].id));
        let frames = frames.collect();
        Ok(StoredPacks { packs, frames, known: self.known, stats: self.stats })
    }

    /// Looks up the blocks of a batch and gathers those that are new.
    fn take(&mut self, batch: &HashedBatch, runs: &mut Vec<NumberedRun>) {
        let blocks = batch.plain.chunks_exact(BLOCK).zip(&batch.hashes);
        let places = batch
            .batch
            .runs
            .iter()
            .flat_map(|run| (run.range.start..run.range.end()).map(move |block| (block, run)));
        for ((plain, hash), (block, run)) in blocks.zip(places) {
            self.stats.read_bytes += if run.moved { 0 } else { BLOCK_BYTES };
            let Some(hash) = hash else { continue };
            let last = runs.last().filter(|run| run.start + u64::from(run.count) == block);
            let expected = last.map(|run| run.number + run.count);
            let number = match self.known.find(hash, expected) {
                Some(number) => {
                    self.stats.reused_bytes += if run.moved { 0 } else { BLOCK_BYTES };
                    number
                }
                None => {
                    let stats = &mut self.stats;
                    let stored =
                        if run.moved { &mut stats.moved_bytes } else { &mut stats.changed_bytes };
                    *stored += BLOCK_BYTES;
                    self.gather(block, plain, hash, run.traced)
                }
            };
            match runs.last_mut() {
                Some(run) if last_goes_on(run, block, number) => run.count += 1,
                _ => runs.push(NumberedRun { start: block, count: 1, number }),
            }
        }
    }

    /// Adds a new block to the frame being gathered; returns its number.
    fn gather(&mut self, block: u64, plain: &[u8], hash: &BlockHash, traced: bool) -> u32 {
        let most = self.repository.descriptor().frame_blocks() as usize;
        let gathered = self.gathering.hashes.len();
        // A run that ends late in a frame ends it: the next run is then less often in two.
        let run_ends = self.gathering.next_block != Some(block);
        let nearly_full = 4 * gathered >= 3 * most;
        if gathered == most || (run_ends && nearly_full) || self.gathering.traced != traced {
            self.cut();
        }
        let gathering = &mut self.gathering;
        if gathering.plain.capacity() == 0 {
            gathering.plain.reserve_exact(most * BLOCK);
        }
        gathering.plain.extend_from_slice(plain);
        gathering.hashes.push(*hash);
        gathering.next_block = Some(block + 1);
        gathering.traced = traced;
        self.known.add(hash)
    }

    /// Sends the gathered blocks off to be compressed.
    fn cut(&mut self) {
        let hashes = std::mem::take(&mut self.gathering.hashes);
        let plain = Bytes::from(std::mem::take(&mut self.gathering.plain));
        if hashes.is_empty() {
            return;
        }
        self.known.close_frame(hashes.len() as u32, self.gathering.cut_frames);
        self.gathering.cut_frames += 1;
        let encoder = self.repository.encoder().clone();
        let sealer = self.repository.sealer().clone();
        let effort = match (self.is_update, self.gathering.traced) {
            (true, _) if self.gathering.cut_frames <= MOST_EFFORT_FRAMES => Effort::Most,
            (true, _) | (false, true) => Effort::Much,
            (false, false) => Effort::Little,
        };
        self.compressing.push_back(tokio::task::spawn_blocking(move || {
            let frame = encoder.encode(&plain, effort, &sealer)?;
            Ok(CompressedFrame { frame, plain, hashes })
        }));
    }

    /// Packs compressed frames until no more than `left` are under way.
    async fn pack_until(&mut self, left: usize) -> Result<()> {
        while self.compressing.len() > left
            && let Some(compressed) = self.compressing.next().await
        {
            let compressed = compressed.or_error(ErrorKind::Internal, broken_off)??;
            let entry = self.packing.append(&compressed.frame, &compressed.hashes);
            self.frames.push((self.packs.len(), entry));
            self.stats.frames += 1;
            if let Some(sink) = &self.sink {
                sink.frame(entry.hash, &compressed.plain);
            }
            if self.packing.is_full() {
                self.close_pack().await?;
            }
        }
        Ok(())
    }

    /// Sends the pack off to be named and stored, and begins another.
    async fn close_pack(&mut self) -> Result<()> {
        while self.storing.len() >= PACKS_IN_FLIGHT {
            self.wait_for_pack().await?;
        }
        let next = PackWriter::new(self.repository.descriptor());
        let full = std::mem::replace(&mut self.packing, next);
        let number = self.packs.len();
        self.packs.push(None);
        let repository = self.repository.clone();
        self.storing.spawn(async move {
            let finished = tokio::task::spawn_blocking(move || full.finish());
            let pack = finished.await.or_error(ErrorKind::Internal, broken_off)?;
            let entry = store_pack(&repository, pack).await?;
            Ok((number, entry))
        });
        Ok(())
    }

    /// Waits until one more pack is stored; false if none is under way.
    async fn wait_for_pack(&mut self) -> Result<bool> {
        let Some(stored) = self.storing.join_next().await else { return Ok(false) };
        let (number, entry) = stored.or_error(ErrorKind::Internal, broken_off)??;
        self.repository
            .unfinished()
            .inspect(|unfinished| unfinished.note(&entry, SystemTime::now().into()));
        self.packs[number] = Some(entry);
        self.stats.packs += 1;
        self.stats.stored_bytes += entry.bytes;
        Ok(true)
    }

    fn report(&self) {
        self.watch.progress(Progress {
            done_bytes: self.stats.read_bytes,
            total_bytes: Some(self.total_bytes),
            moved_bytes: self.stats.stored_bytes,
        });
    }
}

impl StoredPacks {
    /// Turns the runs of a disk into places in frames.
    pub fn places(&self, runs: &StoredRuns) -> Vec<PlacedRun> {
        let mut placed = Vec::with_capacity(runs.0.len());
        for run in &runs.0 {
            let mut start = run.start;
            for found in self.known.resolve(run.number, run.count) {
                let frame = match found.place {
                    FramePlace::Stored(frame) => frame,
                    FramePlace::New(number) => self.frames[number],
                };
                placed.push(PlacedRun { start, count: found.count, frame, first: found.first });
                start += u64::from(found.count);
            }
        }
        placed
    }
}

async fn store_pack(repository: &Repository, pack: FinishedPack) -> Result<PackEntry> {
    repository.backend().write(&ObjectName::Pack(pack.entry.id), pack.bytes).await?;
    repository.tables().keep(pack.entry.id, Arc::new(pack.table));
    Ok(pack.entry)
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked left memory that may hold anything anyway.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn last_goes_on(run: &NumberedRun, block: u64, number: u32) -> bool {
    run.start + u64::from(run.count) == block && run.number + run.count == number
}

/// Reads a batch into memory that may hold anything.
fn read_and_hash(
    batch: Batch,
    mut plain: Vec<u8>,
    size_bytes: u64,
    sealer: &Sealer,
) -> Result<HashedBatch> {
    plain.resize(batch.blocks() as usize * BLOCK, 0);
    let mut at = 0;
    for run in &batch.runs {
        let length = run.range.length_bytes() as usize;
        let on_disk = size_bytes.saturating_sub(run.range.offset_bytes()) as usize;
        let (part, beyond) = plain[at..at + length].split_at_mut(length.min(on_disk));
        // What lies beyond the disk's end in its last block is zero.
        beyond.fill(0);
        run.file.read_exact_at(part, run.offset).or_io(|| {
            format!("cannot read the file of a disk at {} (did it change?)", run.offset)
        })?;
        at += length;
    }
    let hashes = plain
        .chunks_exact(BLOCK)
        .map(|block| (*block != ZEROS).then(|| sealer.block_hash(block)))
        .collect();
    Ok(HashedBatch { batch, plain, hashes })
}

static ZEROS: [u8; BLOCK] = [0; BLOCK];

fn broken_off() -> String {
    "publishing was broken off".to_owned()
}
