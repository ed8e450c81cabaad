//! The side of the cache that changes it: appends frames, seals full segments, lets old ones go.
//!
//! There is one writer, behind a lock that readers never take. Segments grow to a set size and are then sealed; before a
//! new one is begun, old ones leave until two segments' worth of room is free, which also covers the copies of
//! what survives them: the capacity is never passed.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use collective_model::Digest;

use super::eviction::{self, FrameUse, SegmentUse};
use super::format::{Entry, encode_record, record_bytes, table_bytes};
use super::segment::{Opened, Outcome, Segment};
use super::{Core, Place};

/// Segments at most: each keeps a file open, and every restart begins a new one.
const SEGMENTS: usize = 512;

/// How large segments are for a cache of so many bytes: at least eight of them, and not many hundreds.
pub(super) fn segment_bytes(capacity_bytes: u64) -> u64 {
    const USUAL: u64 = 64 * 1024 * 1024;
    // Offsets in a segment have 32 bits, and survivors may come on top.
    const LARGEST: u64 = 1 << 31;
    (capacity_bytes / 8).min(USUAL.max(capacity_bytes / 256)).min(LARGEST)
}

/// A segment with what was written to it.
#[derive(Debug)]
struct Filled {
    segment: Arc<Segment>,
    entries: Vec<Entry>,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Writer {
    directory: PathBuf,
    capacity_bytes: u64,
    segment_bytes: u64,
    sealed: BTreeMap<u64, Filled>,
    active: Option<Filled>,
    next: u64,
    record: Vec<u8>,
    /// Pins held every segment when last looked at, and none was released since.
    pub stuck: bool,
}

impl Writer {
    pub fn new(directory: PathBuf, capacity_bytes: u64) -> Self {
        Self {
            directory,
            capacity_bytes,
            segment_bytes: segment_bytes(capacity_bytes),
            sealed: BTreeMap::new(),
            active: None,
            next: 1,
            record: Vec::new(),
            stuck: false,
        }
    }

    /// Takes in a segment that was there at the start. They come oldest first.
    pub fn adopt(&mut self, core: &Core, opened: Opened) {
        let Opened { segment, entries, length } = opened;
        let segment = Arc::new(segment);
        for entry in &entries {
            core.put(Place::new(Arc::clone(&segment), *entry));
        }
        self.next = segment.number + 1;
        let bytes = length + table_bytes(entries.len());
        self.sealed.insert(segment.number, Filled { segment, entries, bytes });
    }

    /// Returns the bytes that the cache has on disk.
    pub fn used_bytes(&self) -> u64 {
        self.sealed.values().chain(&self.active).map(|filled| filled.bytes).sum()
    }

    /// Returns how many segments there are.
    pub fn segments(&self) -> usize {
        self.sealed.len() + usize::from(self.active.is_some())
    }

    /// Stores a frame; false if there is no room for it.
    pub fn insert(&mut self, core: &Core, hash: Digest, plain: &[u8]) -> bool {
        self.prepare(core, plain.len()).and_then(|()| self.append(core, hash, plain)).is_ok_and(
            |place| {
                core.put(place);
                true
            },
        )
    }

    /// Lets segments go until the cache keeps its bounds.
    pub fn shrink(&mut self, core: &Core) {
        self.stuck = false;
        while self.used_bytes() + 2 * self.segment_bytes > self.capacity_bytes
            || self.segments() >= SEGMENTS
        {
            if !self.evict(core) {
                self.stuck = true;
                return;
            }
        }
    }

    /// Lets segments go until the cache has so many bytes on disk, or pins hold the rest.
    pub fn trim(&mut self, core: &Core, to_bytes: u64) {
        self.seal();
        self.stuck = false;
        while self.used_bytes() > to_bytes && self.evict(core) {
            // What survives goes to a segment that may have to leave in its turn.
            if self.sealed.is_empty() {
                self.seal();
            }
        }
    }

    /// Sees to it that there is a segment with room for a frame.
    fn prepare(&mut self, core: &Core, plain_bytes: usize) -> io::Result<()> {
        if self.active.as_ref().is_some_and(|active| active.bytes >= self.segment_bytes) {
            self.seal();
        }
        let needed = record_bytes(super::blocks_of(plain_bytes)) + table_bytes(1);
        let full = self.used_bytes() + needed > self.capacity_bytes;
        if full && self.stuck {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.active.is_none() {
            self.begin()?;
            self.shrink(core);
        } else if full {
            self.shrink(core);
        }
        if self.used_bytes() + needed > self.capacity_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn begin(&mut self) -> io::Result<()> {
        let segment = Arc::new(Segment::create(&self.directory, self.next)?);
        self.next += 1;
        self.active = Some(Filled { segment, entries: Vec::new(), bytes: table_bytes(0) });
        Ok(())
    }

    fn seal(&mut self) {
        let Some(filled) = self.active.take() else { return };
        filled.segment.keep_table(&filled.entries);
        self.sealed.insert(filled.segment.number, filled);
    }

    /// Writes a frame at the end of the segment that is being filled.
    fn append(&mut self, core: &Core, hash: Digest, plain: &[u8]) -> io::Result<Place> {
        let active = self.active.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let offset = active.entries.last().map_or(0, Entry::end);
        let entry = Entry {
            hash,
            offset: u32::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?,
            blocks: super::blocks_of(plain.len()),
        };
        encode_record(&hash, plain, &mut self.record);
        active.segment.write(&self.record, offset)?;
        active.entries.push(entry);
        active.bytes = entry.end() + table_bytes(active.entries.len());
        core.counters.inserted.fetch_add(1, Ordering::Relaxed);
        Ok(Place::new(Arc::clone(&active.segment), entry))
    }

    /// Lets the oldest segment go that pins do not hold; false if they hold all.
    fn evict(&mut self, core: &Core) -> bool {
        let pins = core.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = eviction::victim(self.sealed.values().map(|filled| {
            let pinned = filled.entries.iter().filter(|entry| pins.holds(&entry.hash));
            let pinned_bytes = pinned.map(|entry| record_bytes(entry.blocks)).sum();
            SegmentUse { bytes: filled.bytes, pinned_bytes }
        }));
        let Some(number) = chosen.and_then(|index| self.sealed.keys().nth(index).copied()) else {
            return false;
        };
        let Some(leaving) = self.sealed.remove(&number) else { return false };
        let mut live = Vec::new();
        let mut uses = Vec::new();
        for entry in &leaving.entries {
            if let Some(touched) = core.touched_at(entry, number) {
                live.push(*entry);
                let (bytes, pinned) = (record_bytes(entry.blocks), pins.holds(&entry.hash));
                uses.push(FrameUse { bytes, pinned, touched });
            }
        }
        drop(pins);
        for (entry, kept) in live.iter().zip(eviction::survivors(&uses, leaving.bytes)) {
            let moved = if kept { self.copy_forward(core, &leaving.segment, entry) } else { None };
            if moved.is_none() {
                core.counters.evicted.fetch_add(1, Ordering::Relaxed);
            }
            match moved {
                Some(place) => core.put(place),
                None => core.forget(&entry.hash, number),
            }
        }
        leaving.segment.delete();
        true
    }

    fn copy_forward(&mut self, core: &Core, from: &Segment, entry: &Entry) -> Option<Place> {
        if self.active.is_none() {
            self.begin().ok()?;
        }
        let mut plain = vec![0; super::plain_bytes(entry.blocks)];
        let outcome = from.read_blocks(entry, 0, &mut plain, true);
        (outcome == Outcome::Right).then(|| self.append(core, entry.hash, &plain).ok()).flatten()
    }
}
