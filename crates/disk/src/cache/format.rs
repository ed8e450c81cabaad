//! The cache's files as bytes: records of frames, checks of blocks, tables of segments.
//!
//! Pure; `docs/formats/cache.md` has it to the byte. A segment is records back to back. A record is a head and then each
//! block with its check behind it, so that one read brings a block and what it is checked with. The check is
//! seeded with the frame's hash and the block's number: a block of another frame, or of another place, never passes.

use collective_model::{BLOCK_BYTES, Digest};
use twox_hash::XxHash3_64;

/// Bytes of a block.
pub(super) const BLOCK: usize = BLOCK_BYTES as usize;
/// Bytes of a block's check.
pub(super) const CHECK: usize = 8;
/// Bytes from one block of a record to the next.
pub(super) const STRIDE: u64 = (BLOCK + CHECK) as u64;
/// Bytes of a record's head.
pub(super) const HEAD: usize = 64;
/// Blocks of one frame, at most: what a repository may publish.
pub(super) const FRAME_BLOCKS: u32 = collective_repository::MAX_FRAME_BLOCKS;

const RECORD_MAGIC: &[u8; 8] = b"CLFRAME1";
const TABLE_MAGIC: &[u8; 8] = b"CLTABLE1";
const TABLE_HEAD: usize = 24;
const TABLE_ENTRY: usize = 40;
const TABLE_HASH: usize = 32;

/// A frame's place in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub hash: Digest,
    /// Where its record begins.
    pub offset: u32,
    pub blocks: u32,
}

impl Entry {
    /// Returns where the record ends.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + record_bytes(self.blocks)
    }

    /// Returns where a block of the frame begins in the segment.
    pub fn block_offset(&self, block: u32) -> u64 {
        u64::from(self.offset) + HEAD as u64 + u64::from(block) * STRIDE
    }
}

/// Returns the bytes of the record of a frame.
pub(super) fn record_bytes(blocks: u32) -> u64 {
    HEAD as u64 + u64::from(blocks) * STRIDE
}

/// Computes the check of a block of a frame.
pub(super) fn block_check(frame: &Digest, block: u32, data: &[u8]) -> [u8; CHECK] {
    let start = frame.0.first_chunk().expect("a digest has 32 bytes");
    let seed = u64::from_le_bytes(*start).wrapping_add(u64::from(block));
    XxHash3_64::oneshot_with_seed(seed, data).to_le_bytes()
}

/// Writes the record of a frame over `out`; `plain` is a whole number of blocks.
pub(super) fn encode_record(hash: &Digest, plain: &[u8], out: &mut Vec<u8>) {
    let blocks = u32::try_from(plain.len() / BLOCK).expect("frames have few blocks");
    out.clear();
    out.extend(RECORD_MAGIC);
    out.extend(hash.0);
    out.extend(blocks.to_le_bytes());
    out.extend([0; 12]);
    out.extend(XxHash3_64::oneshot(out).to_le_bytes());
    for (block, data) in (0..).zip(plain.chunks_exact(BLOCK)) {
        out.extend(data);
        out.extend(block_check(hash, block, data));
    }
}

/// Reads the head of the record at `offset`; none if no whole head was written there.
pub(super) fn decode_head(head: &[u8; HEAD], offset: u32) -> Option<Entry> {
    let (fields, check) = head.split_at(HEAD - CHECK);
    let hash = Digest(*fields[8..].first_chunk()?);
    let blocks = u32::from_le_bytes(*fields[40..].first_chunk()?);
    let whole = &fields[..8] == RECORD_MAGIC
        && check == XxHash3_64::oneshot(fields).to_le_bytes()
        && fields[44..] == [0; 12]
        && (1..=FRAME_BLOCKS).contains(&blocks);
    whole.then_some(Entry { hash, offset, blocks })
}

/// Writes the table of a segment.
pub(super) fn encode_table(segment: u64, entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(TABLE_HEAD + entries.len() * TABLE_ENTRY + TABLE_HASH);
    out.extend(TABLE_MAGIC);
    out.extend(segment.to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    for entry in entries {
        out.extend(entry.hash.0);
        out.extend(entry.offset.to_le_bytes());
        out.extend(entry.blocks.to_le_bytes());
    }
    out.extend(blake3::hash(&out).as_bytes());
    out
}

/// Returns the bytes of a table of so many entries.
pub(super) fn table_bytes(entries: usize) -> u64 {
    (TABLE_HEAD + entries * TABLE_ENTRY + TABLE_HASH) as u64
}

/// Reads the table of a segment; none if it is damaged or of another segment.
pub(super) fn decode_table(segment: u64, bytes: &[u8]) -> Option<Vec<Entry>> {
    let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(TABLE_HASH)?)?;
    let (head, entries) = body.split_at_checked(TABLE_HEAD)?;
    let sound = blake3::hash(body).as_bytes() == hash
        && &head[..8] == TABLE_MAGIC
        && head[8..16] == segment.to_le_bytes()
        && head[16..] == ((entries.len() / TABLE_ENTRY) as u64).to_le_bytes()
        && entries.len().is_multiple_of(TABLE_ENTRY);
    if !sound {
        return None;
    }
    entries.chunks_exact(TABLE_ENTRY).map(decode_entry).collect()
}

fn decode_entry(bytes: &[u8]) -> Option<Entry> {
    let hash = Digest(*bytes.first_chunk()?);
    let offset = u32::from_le_bytes(*bytes[32..].first_chunk()?);
    let blocks = u32::from_le_bytes(*bytes[36..].first_chunk()?);
    (1..=FRAME_BLOCKS).contains(&blocks).then_some(Entry { hash, offset, blocks })
}

#[cfg(test)]
mod tests {
    use collective_model::Digest;

    use super::{
        BLOCK, Entry, HEAD, block_check, decode_head, decode_table, encode_record, encode_table,
        record_bytes, table_bytes,
    };

    fn entries() -> Vec<Entry> {
        (0..5)
            .map(|i| Entry { hash: Digest([i; 32]), offset: u32::from(i) * 9, blocks: 3 })
            .collect()
    }

    #[test]
    fn a_record_is_found_by_its_head_and_no_other() {
        let mut record = Vec::new();
        encode_record(&Digest([9; 32]), &[7; 2 * BLOCK], &mut record);
        assert_eq!(record.len() as u64, record_bytes(2));
        let head: [u8; HEAD] = *record.first_chunk().unwrap();
        let expected = Entry { hash: Digest([9; 32]), offset: 5, blocks: 2 };
        assert_eq!(decode_head(&head, 5), Some(expected));
        for at in 0..HEAD {
            let mut damaged = head;
            damaged[at] ^= 1;
            assert_eq!(decode_head(&damaged, 5), None, "byte {at}");
        }
    }

    #[test]
    fn a_table_survives_and_any_damage_to_it_is_seen() {
        let table = encode_table(7, &entries());
        assert_eq!(table.len() as u64, table_bytes(5));
        assert_eq!(decode_table(7, &table), Some(entries()));
        assert_eq!(decode_table(8, &table), None);
        for at in 0..table.len() {
            let mut damaged = table.clone();
            damaged[at] ^= 0x40;
            assert_eq!(decode_table(7, &damaged), None, "byte {at}");
            assert_eq!(decode_table(7, &table[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn the_same_data_has_another_check_in_another_place() {
        let (data, frame) = ([1; BLOCK], Digest([1; 32]));
        assert_ne!(block_check(&frame, 0, &data), block_check(&frame, 1, &data));
        assert_ne!(block_check(&frame, 0, &data), block_check(&Digest([2; 32]), 0, &data));
    }
}
