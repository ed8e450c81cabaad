//! Which blocks are stored already, and where: what makes equal blocks be stored once.
//!
//! Every known block has a number. Blocks of one frame have numbers one after another, so a run of numbers is a run of places; frames
//! are looked up by number only when a publication is put together. Tables of contents are read from packs once and kept: a host
//! that publishes every few minutes does not read them again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use collective_model::{Digest, ErrorKind, Result, ResultExt};
use futures::stream::{self, StreamExt};

use crate::backend::{Backend, ObjectName};
use crate::frame::FrameRef;
use crate::manifest::PackEntry;
use crate::pack::PackTable;
use crate::sealer::BlockHash;

/// Blocks that are known at once: 16 GiB of disk in some 200 MB of memory. Beyond it equal blocks may be stored twice.
const MAX_KNOWN_BLOCKS: usize = 4 << 20;

/// Blocks in tables that an open repository keeps: 20 MB of hashes, 4 GiB of disk.
const MAX_KEPT_BLOCKS: usize = 1 << 20;

/// Tables that are read at once.
const READS_AT_ONCE: usize = 4;

/// Bytes of tables that are read in any case. They cover some 800 MiB of disk.
const FREE_TABLE_BYTES: u64 = 4 << 20;

/// Of the bytes that a publication reads, the part that may be spent on tables: what is read must not outweigh what may be saved.
const TABLE_SHARE: u64 = 4;

/// The blocks that are known while a version is published.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// By number; once [`MAX_KNOWN_BLOCKS`] are known, later numbers have no hash.
    hashes: Vec<BlockHash>,
    by_prefix: HashMap<u64, u32>,
    frames: Vec<KnownFrame>,
    next: u32,
}

/// A frame whose blocks are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KnownFrame {
    /// The number of its first block.
    first: u32,
    place: FramePlace,
}

/// Where a known frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FramePlace {
    /// In a pack that is stored.
    Stored(FrameRef),
    /// The frame of this number of the version that is being published.
    New(usize),
}

/// Where a run of known blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KnownRun {
    pub place: FramePlace,
    pub first: u32,
    pub count: u32,
}

impl Known {
    /// Finds a block; `expected` is the number that goes on where the block before it was found, which is tried first so that runs stay whole.
    pub fn find(&self, hash: &BlockHash, expected: Option<u32>) -> Option<u32> {
        let is_at = |number: &u32| self.hashes.get(*number as usize) == Some(hash);
        expected.filter(is_at).or_else(|| self.by_prefix.get(&prefix(hash)).copied().filter(is_at))
    }

    /// Gives a new block its number. Blocks get numbers in the order in which they will lie in frames.
    pub fn add(&mut self, hash: &BlockHash) -> u32 {
        let number = self.next;
        self.next += 1;
        if self.hashes.len() == number as usize && self.hashes.len() < MAX_KNOWN_BLOCKS {
            self.hashes.push(*hash);
            self.by_prefix.entry(prefix(hash)).or_insert(number);
        }
        number
    }

    /// Says that the blocks added since the last frame are the new frame of this number.
    pub fn close_frame(&mut self, blocks: u32, new: usize) {
        self.frames.push(KnownFrame { first: self.next - blocks, place: FramePlace::New(new) });
    }

    /// Adds the blocks of a pack; must come before new blocks.
    pub fn add_table(&mut self, pack: Digest, table: &PackTable) {
        if self.hashes.len() + table.block_hashes.len() > MAX_KNOWN_BLOCKS {
            return;
        }
        let mut hashes = table.block_hashes.iter();
        for frame in &table.frames {
            let place = FramePlace::Stored(frame.in_pack(pack));
            self.frames.push(KnownFrame { first: self.next, place });
            hashes.by_ref().take(frame.blocks as usize).for_each(|hash| {
                self.add(hash);
            });
        }
    }

    /// Turns `count` numbers from `number` into places; a run is cut where frames end.
    pub fn resolve(&self, number: u32, count: u32) -> Vec<KnownRun> {
        let mut runs = Vec::new();
        let mut at = self.frames.partition_point(|frame| frame.first <= number).saturating_sub(1);
        let (mut number, end) = (number, number + count);
        while number < end {
            let frame = self.frames[at];
            let frame_end = self.frames.get(at + 1).map_or(self.next, |next| next.first);
            let run_end = frame_end.min(end);
            let first = number - frame.first;
            runs.push(KnownRun { place: frame.place, first, count: run_end - number });
            (number, at) = (run_end, at + 1);
        }
        runs
    }
}

fn prefix(hash: &BlockHash) -> u64 {
    u64::from_le_bytes(hash.0[..8].try_into().expect("8 of 20 bytes are 8 bytes"))
}

/// Tables of contents that were read or written, the newest of them, for the next publication.
#[derive(Debug, Default)]
pub(crate) struct TableCache {
    kept: Mutex<KeptTables>,
}

#[derive(Debug, Default)]
struct KeptTables {
    tables: HashMap<Digest, Arc<PackTable>>,
    order: VecDeque<Digest>,
    blocks: usize,
}

impl TableCache {
    /// Keeps a table; the oldest make room.
    pub fn keep(&self, pack: Digest, table: Arc<PackTable>) {
        let mut kept = self.lock();
        let blocks = table.block_hashes.len();
        if kept.tables.insert(pack, table).is_some() {
            return;
        }
        kept.blocks += blocks;
        kept.order.push_back(pack);
        while kept.blocks > MAX_KEPT_BLOCKS
            && let Some(oldest) = kept.order.pop_front()
        {
            let removed = kept.tables.remove(&oldest);
            kept.blocks -= removed.map_or(0, |table| table.block_hashes.len());
        }
    }

    fn get(&self, pack: &Digest) -> Option<Arc<PackTable>> {
        self.lock().tables.get(pack).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, KeptTables> {
        // A table too many or too few changes only what must be read again.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the tables of packs, given in the order of their worth, as far as it pays for a publication that reads `read_bytes`.
    ///
    /// A damaged table is left out: its blocks are stored again, which is what is wanted of damaged packs.
    pub async fn load(
        &self,
        backend: &dyn Backend,
        packs: &[PackEntry],
        read_bytes: u64,
    ) -> Result<Known> {
        let mut known = Known::default();
        if read_bytes == 0 {
            return Ok(known);
        }
        let mut budget = FREE_TABLE_BYTES + read_bytes / TABLE_SHARE;
        let affordable = packs.iter().filter(|pack| {
            let cost = if self.get(&pack.id).is_some() { 0 } else { u64::from(pack.table_bytes) };
            let pays = cost <= budget;
            budget -= if pays { cost } else { 0 };
            pays
        });
        let wanted: Vec<PackEntry> = affordable.copied().collect();
        let mut tables = stream::iter(wanted)
            .map(|pack| async move { (pack, self.table(backend, &pack).await) })
            .buffered(READS_AT_ONCE);
        while let Some((pack, table)) = tables.next().await {
            match table {
                Ok(table) => known.add_table(pack.id, &table),
                Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
                Err(error) => {
                    tracing::warn!(error = error.chain(), "blocks of a pack are stored again");
                }
            }
        }
        Ok(known)
    }

    async fn table(&self, backend: &dyn Backend, pack: &PackEntry) -> Result<Arc<PackTable>> {
        if let Some(table) = self.get(&pack.id) {
            return Ok(table);
        }
        let table = Arc::new(read_table(backend, pack).await?);
        self.keep(pack.id, table.clone());
        Ok(table)
    }
}

/// Reads the table of contents of a pack and checks it against what the manifest says.
async fn read_table(backend: &dyn Backend, pack: &PackEntry) -> Result<PackTable> {
    let name = ObjectName::Pack(pack.id);
    let start = pack.bytes.saturating_sub(u64::from(pack.table_bytes));
    let tail = backend.read(&name, Some(start..pack.bytes)).await?;
    PackTable::decode_trusted_tail(&tail, pack)
        .or_error(ErrorKind::Corrupt, || format!("{name}, table of contents: it was not used"))
}

#[cfg(test)]
mod tests {
    use collective_model::Digest;

    use super::{FramePlace, Known, KnownRun};
    use crate::frame::Codec;
    use crate::pack::{PackTable, TableFrame};
    use crate::sealer::BlockHash;

    fn hash(number: u8) -> BlockHash {
        let mut hash = [0; 20];
        hash[0] = number;
        BlockHash(hash)
    }

    fn table(frames: &[&[u8]]) -> PackTable {
        let frame = |blocks: &&[u8]| TableFrame {
            hash: Digest([blocks[0]; 32]),
            offset: 64,
            stored_bytes: 1,
            blocks: blocks.len() as u32,
            codec: Codec::Raw,
        };
        PackTable {
            frames: frames.iter().map(frame).collect(),
            block_hashes: frames
                .iter()
                .flat_map(|blocks| blocks.iter())
                .map(|n| hash(*n))
                .collect(),
        }
    }

    #[test]
    fn a_run_is_found_whole_although_its_blocks_are_elsewhere_too() {
        let mut known = Known::default();
        known.add_table(Digest([1; 32]), &table(&[&[1, 2, 3], &[7, 2, 3, 4]]));
        let seven = known.find(&hash(7), None).unwrap();
        let two = known.find(&hash(2), Some(seven + 1)).unwrap();
        assert_eq!((seven, two), (3, 4));
        assert_eq!(known.find(&hash(2), None), Some(1));
        assert_eq!(known.find(&hash(9), Some(0)), None);
    }

    #[test]
    fn a_hash_that_only_begins_as_a_known_one_is_not_known() {
        let mut known = Known::default();
        known.add_table(Digest([1; 32]), &table(&[&[1]]));
        let mut other = hash(1);
        other.0[19] = 1;
        assert_eq!(known.find(&other, None), None);
        assert_eq!(known.add(&other), 1);
    }

    #[test]
    fn numbers_are_turned_into_places_frame_by_frame() {
        let mut known = Known::default();
        known.add_table(Digest([1; 32]), &table(&[&[1, 2, 3], &[4]]));
        known.add(&hash(5));
        known.add(&hash(6));
        known.close_frame(2, 0);
        let runs = known.resolve(1, 5);
        let shape: Vec<_> = runs.iter().map(|run| (run.first, run.count)).collect();
        assert_eq!(shape, [(1, 2), (0, 1), (0, 2)]);
        assert_eq!(runs[2], KnownRun { place: FramePlace::New(0), first: 0, count: 2 });
        assert!(matches!(runs[0].place, FramePlace::Stored(frame) if frame.hash.0[0] == 1));
    }
}
