//! The host's cache of frames: one for everything, keyed by hash, so there is nothing to invalidate (DESIGN 4.5).
//!
//! Frames lie decompressed in a log of segment files, each block with an 8-byte check; a map in memory says where. Nothing is
//! synced and nothing is believed: whatever a power cut, a full disk or a failing disk does, a read gives the right
//! bytes or a miss. A start reads the tables of segments, not their data. When the cache is full whole segments
//! leave, oldest first; pinned frames and those read lately are carried on (`eviction`).
//!
//! Readers take no lock but the map's, for a look-up; there is one writer (`writer`).

mod eviction;
mod format;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod pins;
mod segment;
mod writer;

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use collective_model::{Digest, Error, ErrorKind, IoResultExt, Result};
use collective_repository::FrameSink;
use rustix::fs::{FlockOperation, flock};

use self::format::{BLOCK, Entry, FRAME_BLOCKS};
use self::pins::Pins;
use self::segment::{Outcome, Segment};
use self::writer::Writer;

/// The least capacity: eight segments that each hold the largest frame.
pub const CACHE_CAPACITY_MINIMUM_BYTES: u64 = 16 * 1024 * 1024;

/// How a cache is opened.
#[derive(Clone, Copy, Debug)]
pub struct CacheOptions {
    /// Bytes on disk, at most.
    pub capacity_bytes: u64,
}

/// What a cache holds and did since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes on disk.
    pub used_bytes: u64,
    /// Frames that can be read.
    pub frames: u64,
    /// Files that they lie in.
    pub segments: u64,
    /// Reads that were answered.
    pub hits: u64,
    /// Reads that were not.
    pub misses: u64,
    /// Frames written, copies at eviction included.
    pub inserted: u64,
    /// Frames that found no room: the cache is held by pins, or the disk is full.
    pub refused: u64,
    /// Frames that left to make room.
    pub evicted: u64,
    /// Frames dropped because what the disk gave back was not right.
    pub damaged: u64,
}

/// What a look at every frame of a cache found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheReport {
    /// Frames that were read.
    pub frames: u64,
    /// Their bytes, decompressed.
    pub bytes: u64,
    /// Frames that were not right, and were dropped.
    pub damaged: u64,
}

/// Whether a read that may not wait was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheRead {
    /// The buffer holds the bytes.
    Hit,
    /// The frame is not in the cache.
    Miss,
    /// The frame is in the cache, but the bytes are on the disk and not in memory.
    Wait,
}

/// The host's cache of frames. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Cache {
    core: Arc<Core>,
    writer: Arc<Mutex<Writer>>,
}

impl Cache {
    /// Opens the cache in a directory, which is made if it is not there.
    ///
    /// # Errors
    /// `Conflict` if somebody has it open; `Invalid` if the capacity is below the minimum; what the file system says.
    pub fn open(directory: &Path, options: CacheOptions) -> Result<Self> {
        let message = || format!("cannot open the cache {}", directory.display());
        if options.capacity_bytes < CACHE_CAPACITY_MINIMUM_BYTES {
            return Err(Error::new(ErrorKind::Invalid, message())
                .with_hint("a cache needs a capacity of at least 16 MiB"));
        }
        Self::open_any(directory, options)
    }

    /// Opens a cache of any capacity: tests fill small ones sooner.
    pub(crate) fn open_any(directory: &Path, options: CacheOptions) -> Result<Self> {
        let message = || format!("cannot open the cache {}", directory.display());
        let (segments, pins) = (directory.join("segments"), directory.join("pins"));
        for directory in [&segments, &pins] {
            DirBuilder::new().recursive(true).mode(0o700).create(directory).or_io(message)?;
        }
        let lock = lock(directory)?;
        let core = Arc::new(Core {
            _lock: lock,
            places: RwLock::default(),
            pins: Mutex::new(Pins::open(&pins).or_io(message)?),
            counters: Counters::default(),
        });
        let mut writer = Writer::new(segments.clone(), options.capacity_bytes);
        for number in segment::list(&segments).or_io(message)? {
            match Segment::open(&segments, number) {
                Ok(opened) => writer.adopt(&core, opened),
                Err(error) => tracing::warn!(number, %error, "a segment of the cache is left out"),
            }
        }
        writer.shrink(&core);
        Ok(Self { core, writer: Arc::new(Mutex::new(writer)) })
    }

    /// Tells whether a frame is here, as far as is known without reading it.
    #[must_use]
    pub fn contains(&self, frame: &Digest) -> bool {
        self.core.places().contains_key(frame)
    }

    /// Fills `buffer` with the bytes of a frame from `offset`, waiting for the disk; false if they cannot be had.
    #[must_use]
    pub fn read(&self, frame: &Digest, offset: usize, buffer: &mut [u8]) -> bool {
        self.core.read(frame, offset, buffer, true) == CacheRead::Hit
    }

    /// Fills `buffer` as [`read`](Self::read) does, if that needs no waiting.
    #[must_use]
    pub fn read_now(&self, frame: &Digest, offset: usize, buffer: &mut [u8]) -> CacheRead {
        self.core.read(frame, offset, buffer, false)
    }

    /// Stores a frame's plain bytes; false if there is no room, which is no error. May write to the disk.
    pub fn insert(&self, frame: Digest, plain: &Bytes) -> bool {
        let sound = plain.len().is_multiple_of(BLOCK) && !plain.is_empty();
        if !sound || plain.len() > plain_bytes(FRAME_BLOCKS) {
            return false;
        }
        let mut writer = self.writer();
        if self.contains(&frame) {
            return true;
        }
        let stored = writer.insert(&self.core, frame, plain);
        if !stored {
            self.core.counters.refused.fetch_add(1, Ordering::Relaxed);
        }
        stored
    }

    /// Keeps frames from leaving, now and after a restart, until `id` is unpinned or pins others.
    ///
    /// Pins hold what is here or comes; they fetch nothing. A cache that pins fill up takes no more frames.
    pub fn pin(&self, id: &str, frames: Vec<Digest>) {
        self.writer().stuck = false;
        self.core.pins().pin(id, frames);
    }

    /// Lets the frames go that were pinned as `id`.
    pub fn unpin(&self, id: &str) {
        self.writer().stuck = false;
        self.core.pins().unpin(id);
    }

    /// Lets what is not pinned leave until so many bytes are on disk; returns how many were freed.
    pub fn trim(&self, to_bytes: u64) -> u64 {
        let mut writer = self.writer();
        let before = writer.used_bytes();
        writer.trim(&self.core, to_bytes);
        before.saturating_sub(writer.used_bytes())
    }

    /// Reads every frame, and drops those that the disk does not give back right; they are fetched again when they are
    /// wanted. Reads and writes of others go on. `progress` hears how many bytes were read.
    pub fn verify(&self, mut progress: impl FnMut(u64)) -> CacheReport {
        let places: Vec<_> = self
            .core
            .places()
            .iter()
            .map(|(hash, place)| (*hash, Arc::clone(&place.segment), place.entry))
            .collect();
        let mut report = CacheReport::default();
        for (hash, segment, entry) in places {
            let mut plain = vec![0; plain_bytes(entry.blocks)];
            report.frames += 1;
            report.bytes += plain.len() as u64;
            if read_bytes(&segment, &entry, 0, &mut plain, true) != Outcome::Right
                && self.core.touched_at(&entry, segment.number).is_some()
            {
                report.damaged += 1;
                self.core.counters.damaged.fetch_add(1, Ordering::Relaxed);
                self.core.forget(&hash, segment.number);
            }
            progress(report.bytes);
        }
        report
    }

    /// Returns what the cache holds and did.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let (used_bytes, segments) = {
            let writer = self.writer();
            (writer.used_bytes(), writer.segments() as u64)
        };
        let counters = &self.core.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            used_bytes,
            frames: self.core.places().len() as u64,
            segments,
            hits: get(&counters.hits),
            misses: get(&counters.misses),
            inserted: get(&counters.inserted),
            refused: get(&counters.refused),
            evicted: get(&counters.evicted),
            damaged: get(&counters.damaged),
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A panic between two steps leaves at worst a segment that nobody lists until the next start.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FrameSink for Cache {
    fn frame(&self, hash: Digest, plain: &Bytes) {
        self.insert(hash, plain);
    }
}

fn lock(directory: &Path) -> Result<File> {
    let path = directory.join("lock");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600);
    let file = file.open(&path).or_io(|| format!("cannot open {}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        let message = format!("the cache {} is in use", directory.display());
        Error::new(ErrorKind::Conflict, message)
            .with_hint("another host daemon has it open")
            .with_source(std::io::Error::from(error))
    })?;
    Ok(file)
}

/// What readers and the writer share.
#[derive(Debug)]
struct Core {
    /// Held until the cache is dropped.
    _lock: File,
    places: RwLock<HashMap<Digest, Place>>,
    pins: Mutex<Pins>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    inserted: AtomicU64,
    refused: AtomicU64,
    evicted: AtomicU64,
    damaged: AtomicU64,
}

/// Where a frame lies.
#[derive(Debug)]
struct Place {
    segment: Arc<Segment>,
    entry: Entry,
    /// It was read since it came here.
    touched: AtomicBool,
}

impl Place {
    fn new(segment: Arc<Segment>, entry: Entry) -> Self {
        Self { segment, entry, touched: AtomicBool::new(false) }
    }
}

impl Core {
    fn read(&self, frame: &Digest, offset: usize, buffer: &mut [u8], wait: bool) -> CacheRead {
        let found = self.places().get(frame).map(|place| {
            if !place.touched.load(Ordering::Relaxed) {
                place.touched.store(true, Ordering::Relaxed);
            }
            (Arc::clone(&place.segment), place.entry)
        });
        let outcome = match &found {
            Some((segment, entry)) => read_bytes(segment, entry, offset, buffer, wait),
            None => Outcome::Damaged,
        };
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Outcome::Right => {
                count(&self.counters.hits);
                CacheRead::Hit
            }
            Outcome::Wait => CacheRead::Wait,
            Outcome::Damaged => {
                count(&self.counters.misses);
                if let Some((segment, _)) = found {
                    count(&self.counters.damaged);
                    self.forget(frame, segment.number);
                }
                CacheRead::Miss
            }
        }
    }

    fn put(&self, place: Place) {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        places.insert(place.entry.hash, place);
    }

    /// Drops what is known of a frame, unless it lies elsewhere by now.
    fn forget(&self, frame: &Digest, segment: u64) {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        if places.get(frame).is_some_and(|place| place.segment.number == segment) {
            places.remove(frame);
        }
    }

    /// Tells whether a frame was read since it came; none if it no longer lies where `entry` says.
    fn touched_at(&self, entry: &Entry, segment: u64) -> Option<bool> {
        let places = self.places();
        let place = places.get(&entry.hash)?;
        let here = place.segment.number == segment && place.entry == *entry;
        here.then(|| place.touched.load(Ordering::Relaxed))
    }

    fn places(&self) -> std::sync::RwLockReadGuard<'_, HashMap<Digest, Place>> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads bytes of a frame; blocks that are wanted in part only are read aside.
fn read_bytes(
    segment: &Segment,
    entry: &Entry,
    offset: usize,
    buffer: &mut [u8],
    wait: bool,
) -> Outcome {
    let end = offset.checked_add(buffer.len());
    if end.is_none_or(|end| end > plain_bytes(entry.blocks)) {
        return Outcome::Damaged;
    }
    let (mut offset, mut rest) = (offset, buffer);
    while !rest.is_empty() {
        let block = blocks_of(offset);
        let within = offset % BLOCK;
        let whole = rest.len() - rest.len() % BLOCK;
        let length = if within == 0 && whole > 0 { whole } else { rest.len().min(BLOCK - within) };
        let (part, after) = rest.split_at_mut(length);
        let outcome = if length.is_multiple_of(BLOCK) {
            segment.read_blocks(entry, block, part, wait)
        } else {
            let mut aside = [0; BLOCK];
            let outcome = segment.read_blocks(entry, block, &mut aside, wait);
            part.copy_from_slice(&aside[within..within + length]);
            outcome
        };
        if outcome != Outcome::Right {
            return outcome;
        }
        (offset, rest) = (offset + length, after);
    }
    Outcome::Right
}

/// Returns how many whole blocks so many bytes of a frame are.
fn blocks_of(bytes: usize) -> u32 {
    u32::try_from(bytes / BLOCK).expect("frames are bounded far below 16 TiB")
}

/// Returns how many bytes so many blocks are.
fn plain_bytes(blocks: u32) -> usize {
    blocks as usize * BLOCK
}

#[cfg(test)]
#[path = "cache/tests.rs"]
mod tests;

#[cfg(test)]
#[path = "cache/storm/tests.rs"]
mod storm;
