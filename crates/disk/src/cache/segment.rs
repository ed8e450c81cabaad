//! One segment of the cache on disk: a file of records, and its table once it is full.
//!
//! A segment is written from its beginning to its end and never changed. Nothing is synced: a power cut may take any of
//! it, and every reader checks what it gets. A table spares the look at every record at the next start; if it
//! is not there or not sound, the heads of the records are walked instead.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::ReadWriteFlags;

use super::format::{
    BLOCK, CHECK, Entry, HEAD, block_check, decode_head, decode_table, encode_table,
};

/// Blocks that are read with one call: two buffers each, well below the system's limit of 1,024.
const BLOCKS_PER_CALL: usize = 64;

/// A segment, open.
#[derive(Debug)]
pub(super) struct Segment {
    pub number: u64,
    path: PathBuf,
    file: File,
}

/// A segment that was there at the start.
#[derive(Debug)]
pub(super) struct Opened {
    pub segment: Segment,
    pub entries: Vec<Entry>,
    /// Bytes of the file; more than its records if it was cut short while one was written.
    pub length: u64,
}

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The bytes are there and right.
    Right,
    /// The bytes are not there, or not right.
    Damaged,
    /// The bytes are not in memory, and waiting was not wanted.
    Wait,
}

impl Segment {
    /// Makes a new, empty segment.
    pub fn create(directory: &Path, number: u64) -> io::Result<Self> {
        let path = segment_path(directory, number);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { number, path, file })
    }

    /// Opens a segment and finds its frames, by its table or else by its records.
    pub fn open(directory: &Path, number: u64) -> io::Result<Opened> {
        let path = segment_path(directory, number);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let segment = Self { number, path, file };
        let length = segment.file.metadata()?.len();
        let table = std::fs::read(segment.table_path()).unwrap_or_default();
        let entries = match decode_table(number, &table) {
            Some(entries) => entries,
            None => {
                let entries = segment.walk();
                segment.keep_table(&entries);
                entries
            }
        };
        let entries = entries.into_iter().filter(|entry| entry.end() <= length).collect();
        Ok(Opened { segment, entries, length })
    }

    /// Writes a record at `offset`; on failure nothing of it keeps its room on the disk.
    pub fn write(&self, record: &[u8], offset: u64) -> io::Result<()> {
        let written = self.file.write_all_at(record, offset);
        if written.is_err() {
            // If even this fails, the bytes are overwritten by the next record.
            let _ = self.file.set_len(offset);
        }
        written
    }

    /// Writes the table that spares the walk at the next start; if that fails, so be it.
    pub fn keep_table(&self, entries: &[Entry]) {
        if let Err(error) = self.write_table(entries) {
            tracing::debug!(%error, "a segment of the cache has no table; it will be walked");
            // A torn table is seen as such; this only gives its room back.
            let _ = std::fs::remove_file(self.table_path());
        }
    }

    fn write_table(&self, entries: &[Entry]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600);
        let table = encode_table(self.number, entries);
        file.open(self.table_path())?.write_all_at(&table, 0)
    }

    /// Removes the files; who is reading them reads on.
    pub fn delete(&self) {
        for path in [self.table_path(), self.path.clone()] {
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove from the cache");
            }
        }
    }

    /// Reads whole blocks of a frame from block `first` and checks them.
    pub fn read_blocks(&self, entry: &Entry, first: u32, data: &mut [u8], wait: bool) -> Outcome {
        let mut block = first;
        for data in data.chunks_mut(BLOCKS_PER_CALL * BLOCK) {
            let outcome = self.read_run(entry, block, data, wait);
            if outcome != Outcome::Right {
                return outcome;
            }
            block += BLOCKS_PER_CALL as u32;
        }
        Outcome::Right
    }

    fn read_run(&self, entry: &Entry, first: u32, data: &mut [u8], wait: bool) -> Outcome {
        let mut checks = [[0; CHECK]; BLOCKS_PER_CALL];
        let blocks = data.len() / BLOCK;
        let mut slices = Vec::with_capacity(2 * blocks);
        for (data, check) in data.chunks_exact_mut(BLOCK).zip(&mut checks) {
            slices.push(IoSliceMut::new(data));
            slices.push(IoSliceMut::new(check));
        }
        let flags = if wait { ReadWriteFlags::empty() } else { ReadWriteFlags::NOWAIT };
        let offset = entry.block_offset(first);
        match rustix::io::preadv2(&self.file, &mut slices, offset, flags) {
            Ok(count) if count == blocks * (BLOCK + CHECK) => {}
            Ok(_) | Err(_) if !wait => return Outcome::Wait,
            Ok(_) | Err(_) => return Outcome::Damaged,
        }
        let right = (first..)
            .zip(data.chunks_exact(BLOCK).zip(&checks))
            .all(|(block, (data, check))| block_check(&entry.hash, block, data) == *check);
        if right { Outcome::Right } else { Outcome::Damaged }
    }

    /// Finds the records that were begun, by their heads.
    fn walk(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut offset = 0;
        let mut head = [0; HEAD];
        while self.file.read_exact_at(&mut head, u64::from(offset)).is_ok() {
            let Some(entry) = decode_head(&head, offset) else { break };
            let Ok(end) = u32::try_from(entry.end()) else { break };
            entries.push(entry);
            offset = end;
        }
        entries
    }

    fn table_path(&self) -> PathBuf {
        self.path.with_extension("table")
    }
}

/// Lists the numbers of the segments in a directory, oldest first, and removes tables without a segment.
pub(super) fn list(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for item in std::fs::read_dir(directory)? {
        let path = item?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .filter(|stem| stem.len() == 16)
            .and_then(|stem| u64::from_str_radix(stem, 16).ok());
        let extension = path.extension().and_then(|extension| extension.to_str());
        match (number, extension) {
            (Some(number), Some("segment")) => numbers.push(number),
            (Some(_), Some("table")) if !path.with_extension("segment").exists() => {
                std::fs::remove_file(&path)?;
            }
            _ => {}
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.segment"))
}
