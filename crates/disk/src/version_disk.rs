//! A disk of a published version, read through the cache.
//!
//! A read looks up where its blocks lie (`map`), takes what the cache has, demands what it lacks, and waits as long as that
//! takes. What a guest reads now and again is answered by [`Source::read_now`] from the map in memory and the cache's
//! files, without a task or a copy. A trace is replayed into the cache beside that.
//!
//! The repository is met through [`DiskReader`] only, and that may be exchanged while the disk is in use.

mod map;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{BLOCK_BYTES, BlockRange, Digest, Result};
use collective_repository::backend::Backend;
use collective_repository::{DiskReader, Extent, ExtentData, FrameRef, Trace};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::map::{FramePart, Map};
use crate::cache::CacheRead;
use crate::fetcher::{Fetcher, Late, Origin, ReadWait, Waits, Why};
use crate::source::{Source, StatusExtent, push_extent};

/// Blocks of the map that are looked up at once for block status and replay: 256 MiB of the disk.
const LOOK_BLOCKS: u64 = 64 * 1024;
/// Frames that are brought ahead at once, at most: 256 GiB of the largest usual frames, and 64 MiB of memory for their names.
const AHEAD_FRAMES: usize = 1 << 20;
/// Frames in one fetch ahead, at most, however small they are.
const AHEAD_BATCH: usize = 64;

/// What came and went through a disk since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Bytes that were read of the disk.
    pub read_bytes: u64,
    /// Stored bytes that were fetched for it.
    pub fetched_bytes: u64,
    /// What those are decompressed.
    pub fetched_plain_bytes: u64,
}

/// A disk of a published version. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct VersionDisk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    size_bytes: u64,
    origin: Arc<Origin>,
    fetcher: Fetcher,
    map: Map,
    waits: Waits,
    read_bytes: AtomicU64,
}

impl VersionDisk {
    /// Makes a disk of what `reader` reads, through the fetcher's cache.
    #[must_use]
    pub fn new(reader: DiskReader, fetcher: Fetcher) -> Self {
        Self::with_mirrors(reader, Vec::new(), fetcher)
    }

    /// As [`new`](Self::new), with mirrors that show the same packs, in the order of the fetcher's
    /// ([`Fetcher::with_mirrors`]); more than it has are left out.
    #[must_use]
    pub fn with_mirrors(
        reader: DiskReader,
        mut mirrors: Vec<Arc<dyn Backend>>,
        fetcher: Fetcher,
    ) -> Self {
        mirrors.truncate(fetcher.mirrors());
        Self {
            inner: Arc::new(Inner {
                size_bytes: reader.size_bytes(),
                origin: Arc::new(Origin::new(reader, mirrors)),
                fetcher,
                map: Map::default(),
                waits: Waits::default(),
                read_bytes: AtomicU64::new(0),
            }),
        }
    }

    /// Puts another reader of the same disk in the place of the present one, and tries again what failed.
    pub fn exchange(&self, reader: DiskReader) {
        self.inner.origin.exchange(reader);
        self.inner.fetcher.retry_now();
    }

    /// Returns what tells of the oldest read of this disk that waits longer than the limit.
    #[must_use]
    pub fn late(&self) -> watch::Receiver<Option<Late>> {
        self.inner.waits.late()
    }

    /// Returns what came and went so far.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskStats {
            read_bytes: get(&self.inner.read_bytes),
            fetched_bytes: get(&self.inner.origin.fetched_bytes),
            fetched_plain_bytes: get(&self.inner.origin.fetched_plain_bytes),
        }
    }

    /// Returns the share of the disk, decompressed, that was fetched since it was opened: 0 to 1.
    #[must_use]
    pub fn fetched_share(&self) -> f64 {
        let share = self.stats().fetched_plain_bytes as f64 / self.inner.size_bytes.max(1) as f64;
        share.min(1.0)
    }

    /// Brings what a trace foretells into the cache, in its order; returns the frames that it needs, for pinning.
    ///
    /// Returns when all is there, or was given up because it is damaged. Dropping the future ends the replay.
    pub async fn replay(&self, trace: &Trace) -> Vec<Digest> {
        self.bring(&trace.ranges, Why::Replay, |_| ()).await
    }

    /// Brings what a trace foretells, as [`replay`](Self::replay) does, but after everything that is more urgent: for a start
    /// that nobody asked for yet.
    pub async fn prefetch(&self, trace: &Trace) -> Vec<Digest> {
        self.bring(&trace.ranges, Why::Prefetch, |_| ()).await
    }

    /// How many blocks the disk has.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.inner.blocks().count
    }

    /// Brings all of the disk into the cache, after everything that is more urgent; returns its frames, for pinning. What
    /// is here already is not fetched again, so this goes on where it was cut short. `progress` hears how many blocks of
    /// the disk were gone through.
    pub async fn complete(&self, progress: impl Fn(u64) + Send) -> Vec<Digest> {
        self.bring(&[self.inner.blocks()], Why::Prefetch, progress).await
    }

    async fn bring(
        &self,
        ranges: &[BlockRange],
        why: Why,
        progress: impl Fn(u64) + Send,
    ) -> Vec<Digest> {
        let (mut known, mut frames, mut batch) = (HashSet::new(), Vec::new(), Vec::new());
        let (fetcher, origin) = (&self.inner.fetcher, &self.inner.origin);
        let mut flights = JoinSet::new();
        let mut blocks = 0;
        for range in self.looks(ranges) {
            for frame in self.frames_of(range).await {
                if known.len() < AHEAD_FRAMES && known.insert(frame.hash) {
                    frames.push(frame.hash);
                    batch.push(frame);
                }
                if self.is_full(&batch) {
                    fetcher.ahead(origin, &std::mem::take(&mut batch), why, &mut flights).await;
                }
                while flights.try_join_next().is_some() {}
            }
            blocks += range.count;
            progress(blocks);
        }
        fetcher.ahead(origin, &batch, why, &mut flights).await;
        while flights.join_next().await.is_some() {}
        frames
    }

    /// Ranges as far as they lie on the disk, in parts that are looked up at once.
    fn looks(&self, ranges: &[BlockRange]) -> impl Iterator<Item = BlockRange> {
        let disk = self.inner.blocks();
        ranges.iter().flat_map(move |range| {
            let range = range.intersection(disk);
            (range.start..range.end())
                .step_by(LOOK_BLOCKS as usize)
                .map(move |start| BlockRange::new(start, LOOK_BLOCKS).intersection(range))
        })
    }

    async fn frames_of(&self, range: BlockRange) -> Vec<FrameRef> {
        // Nobody waits for this: it is late for nobody.
        let mut wait = ReadWait::new(&[], Duration::MAX / 4);
        let extents = self.inner.extents(range, &mut wait).await;
        let frames = extents.iter().filter_map(|extent| match extent.what {
            ExtentData::Frame { frame, .. } => Some(frame),
            ExtentData::Zero => None,
        });
        frames.collect()
    }

    fn is_full(&self, batch: &[FrameRef]) -> bool {
        let bytes: u64 = batch.iter().map(|frame| u64::from(frame.stored_bytes)).sum();
        bytes >= self.inner.fetcher.request_bytes() || batch.len() >= AHEAD_BATCH
    }
}

impl Inner {
    fn blocks(&self) -> BlockRange {
        BlockRange::new(0, self.size_bytes.div_ceil(BLOCK_BYTES))
    }

    /// Asks the index where blocks lie, until it answers.
    async fn extents(&self, range: BlockRange, wait: &mut ReadWait) -> Vec<Extent> {
        let look = || {
            let reader = self.origin.reader();
            async move {
                let extents = reader.map(range).await?;
                map::check(&extents, range)?;
                Ok(extents)
            }
        };
        self.fetcher.insist(wait, look).await
    }

    /// Makes a buffer with what the cache has of the parts of a read; returns those that it lacks.
    async fn read_stored(&self, length: usize, parts: Vec<FramePart>) -> (Vec<u8>, Vec<FramePart>) {
        let cache = self.fetcher.cache().clone();
        let mut data = vec![0; length];
        if !parts.iter().any(|part| cache.contains(&part.frame.hash)) {
            return (data, parts);
        }
        // The data is not in memory, or this would not have come here: reading may take its time.
        let reading = self.fetcher.runtime().spawn_blocking(move || {
            let missing = parts.into_iter().filter(|part| {
                !cache.read(&part.frame.hash, part.start, &mut data[part.buffer.clone()])
            });
            let missing = missing.collect();
            (data, missing)
        });
        match reading.await {
            Ok(read) => read,
            // The runtime is shutting down, and with it all who could ask.
            Err(_) => std::future::pending().await,
        }
    }

    fn demand(&self, parts: &[FramePart]) {
        let mut frames: Vec<_> = parts.iter().map(|part| part.frame).collect();
        frames.retain(|frame| !self.fetcher.has_at_hand(&frame.hash));
        frames.dedup_by_key(|frame| frame.hash);
        self.fetcher.demand(&self.origin, &frames);
    }
}

#[async_trait]
impl Source for VersionDisk {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let length = buffer.len();
        let cache = self.inner.fetcher.cache();
        let read = self.inner.map.parts(offset, length, |part| {
            let buffer = &mut buffer[part.buffer];
            match part.frame {
                Some((frame, start)) => cache.read_now(&frame, start, buffer) == CacheRead::Hit,
                None => {
                    buffer.fill(0);
                    true
                }
            }
        });
        if read {
            self.inner.read_bytes.fetch_add(length as u64, Ordering::Relaxed);
        }
        read
    }

    async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        let mut wait = self.inner.fetcher.begin_wait(&self.inner.waits);
        let range = BlockRange::covering(offset, length as u64);
        let around = Map::around(range).intersection(self.inner.blocks());
        let extents = self.inner.extents(around, &mut wait).await;
        self.inner.map.learn(&extents);
        let parts = map::frame_parts(&extents, offset, length).collect();
        let (mut data, missing) = self.inner.read_stored(length, parts).await;
        self.inner.demand(&missing);
        for part in missing {
            let origin = &self.inner.origin;
            let plain = self.inner.fetcher.arrival(origin, &part.frame, &mut wait).await;
            let end = part.start + part.buffer.len();
            data[part.buffer].copy_from_slice(&plain[part.start..end]);
        }
        self.inner.read_bytes.fetch_add(length as u64, Ordering::Relaxed);
        Ok(data.into())
    }

    async fn status(&self, offset: u64, length: u64) -> Result<Vec<StatusExtent>> {
        let mut wait = self.inner.fetcher.begin_wait(&self.inner.waits);
        let end = offset + length;
        let range = BlockRange::covering(offset, length);
        let range = BlockRange::new(range.start, range.count.min(LOOK_BLOCKS));
        let mut extents = Vec::new();
        for extent in self.inner.extents(range, &mut wait).await {
            let start = extent.range.offset_bytes().max(offset);
            let length = (extent.range.end() * BLOCK_BYTES).min(end).saturating_sub(start);
            let zero = matches!(extent.what, ExtentData::Zero);
            push_extent(&mut extents, StatusExtent { length, zero });
        }
        Ok(extents)
    }
}

#[cfg(test)]
#[path = "version_disk/storm/tests.rs"]
mod storm;
