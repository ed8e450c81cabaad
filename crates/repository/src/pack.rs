//! Packs: immutable objects that hold frames in a chosen order, and say at their end what is in them.
//!
//! ```text
//! header 64 | frame … frame | frame table 40 each | block hashes 20 each | footer 64
//! ```
//!
//! The id of a pack is the BLAKE3 of all its bytes. Readers never need the table: the index tells them where frames are. Publishers read
//! it, to find blocks that are stored already; so do verification and repair. It is not encrypted: its block hashes are keyed in a
//! private repository, so that a server can check what it stores.

use bytes::Bytes;
use collective_model::{BLOCK_BYTES, Digest, RepositoryId};

use crate::codec::{Malformed, Reader};
use crate::descriptor::{Descriptor, FORMAT};
use crate::frame::{Codec, EncodedFrame, FrameRef, MAX_FRAME_BLOCKS};
use crate::manifest::PackEntry;
use crate::sealer::{BLOCK_HASH_BYTES, BlockHash, SEAL_BYTES};

/// Bytes before the first frame.
pub(crate) const HEADER_BYTES: usize = 64;
/// Bytes after the table of contents.
pub(crate) const FOOTER_BYTES: usize = 64;
/// Bytes that the table has for each frame.
const FRAME_ENTRY_BYTES: usize = 40;

/// A pack is closed when its frames have this many bytes: large enough that a version has few, small enough that two fit into memory.
const FULL_BYTES: usize = 32 << 20;
/// A pack is closed when its table has this many bytes, which only very small frames bring about.
const FULL_TABLE_BYTES: usize = 8 << 20;

const HEADER_MAGIC: &[u8; 8] = b"COLLPACK";
const FOOTER_MAGIC: &[u8; 8] = b"COLLPEND";
const FLAG_ENCRYPTED: u32 = 1;

/// What is in a pack, as its table of contents says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PackTable {
    pub frames: Vec<TableFrame>,
    /// The hashes of the blocks of all frames, one after another.
    pub block_hashes: Vec<BlockHash>,
}

/// One frame of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableFrame {
    pub hash: Digest,
    pub offset: u64,
    pub stored_bytes: u32,
    pub blocks: u32,
    pub codec: Codec,
}

impl TableFrame {
    pub fn in_pack(&self, pack: Digest) -> FrameRef {
        FrameRef {
            hash: self.hash,
            pack,
            offset: self.offset,
            stored_bytes: self.stored_bytes,
            blocks: self.blocks,
            codec: self.codec,
        }
    }
}

impl PackTable {
    fn encoded_bytes(&self) -> usize {
        4 + FRAME_ENTRY_BYTES * self.frames.len() + BLOCK_HASH_BYTES * self.block_hashes.len()
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_bytes());
        bytes.extend((self.frames.len() as u32).to_le_bytes());
        for frame in &self.frames {
            bytes.extend(frame.hash.0);
            bytes.extend(frame.stored_bytes.to_le_bytes());
            bytes.extend((frame.blocks as u16).to_le_bytes());
            bytes.extend([frame.codec.code(), 0]);
        }
        self.block_hashes.iter().for_each(|hash| bytes.extend(hash.0));
        bytes
    }

    /// Reads the end of a pack and checks that it is what a signed manifest says.
    pub fn decode_trusted_tail(tail: &[u8], pack: &PackEntry) -> Result<Self, Malformed> {
        if *blake3::hash(tail).as_bytes() != pack.table_hash.0 {
            return Err(Malformed("it does not have the hash of the manifest"));
        }
        Self::decode_tail(tail, pack.bytes)
    }

    /// Reads the end of a pack of `pack_bytes`: the table with the footer.
    pub fn decode_tail(tail: &[u8], pack_bytes: u64) -> Result<Self, Malformed> {
        let table_bytes = tail
            .len()
            .checked_sub(FOOTER_BYTES)
            .ok_or(Malformed("the table of contents is cut short"))?;
        let (table, footer) = tail.split_at(table_bytes);
        let mut footer = Reader::new(footer);
        let offset = footer.u64()?;
        let fits = footer.u32()? as usize == table_bytes
            && offset.checked_add(tail.len() as u64) == Some(pack_bytes);
        let hash: [u8; 32] = footer.array()?;
        let zeros: [u8; 12] = footer.array()?;
        if !fits || zeros != [0; 12] || footer.array()? != *FOOTER_MAGIC {
            return Err(Malformed("the footer is damaged"));
        }
        if *blake3::hash(table).as_bytes() != hash {
            return Err(Malformed("the table of contents is damaged"));
        }
        let table = Self::decode(table)?;
        let end = table
            .frames
            .last()
            .map_or(HEADER_BYTES as u64, |frame| frame.offset + u64::from(frame.stored_bytes));
        if end == offset { Ok(table) } else { Err(Malformed("the frames leave a gap")) }
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let count = reader.u32()? as usize;
        if count > bytes.len() / FRAME_ENTRY_BYTES {
            return Err(Malformed("the table promises too many frames"));
        }
        let mut frames = Vec::with_capacity(count);
        let mut offset = HEADER_BYTES as u64;
        let mut blocks = 0;
        for _ in 0..count {
            let frame = decode_frame(&mut reader, offset)?;
            offset += u64::from(frame.stored_bytes);
            blocks += frame.blocks as usize;
            frames.push(frame);
        }
        let hashes = reader.bytes(blocks * BLOCK_HASH_BYTES)?.chunks_exact(BLOCK_HASH_BYTES);
        let block_hashes = hashes
            .map(|hash| BlockHash(hash.try_into().expect("chunks have the length asked for")))
            .collect();
        reader.finish()?;
        Ok(Self { frames, block_hashes })
    }
}

fn decode_frame(reader: &mut Reader<'_>, offset: u64) -> Result<TableFrame, Malformed> {
    let frame = TableFrame {
        hash: Digest(reader.array()?),
        offset,
        stored_bytes: reader.u32()?,
        blocks: u32::from(reader.u16()?),
        codec: Codec::of_code(reader.u8()?).ok_or(Malformed("a frame has an unknown codec"))?,
    };
    if reader.u8()? != 0 {
        return Err(Malformed("a reserved byte is not zero"));
    }
    check_frame_sizes(frame.blocks, frame.stored_bytes)?;
    Ok(frame)
}

/// Checks what tables say of a frame before anything is allocated for it.
pub(crate) fn check_frame_sizes(blocks: u32, stored_bytes: u32) -> Result<(), Malformed> {
    if blocks == 0 || blocks > MAX_FRAME_BLOCKS {
        return Err(Malformed("a frame has no blocks, or too many"));
    }
    let most = u64::from(blocks) * BLOCK_BYTES + SEAL_BYTES as u64;
    if stored_bytes == 0 || u64::from(stored_bytes) > most {
        return Err(Malformed("a frame has no bytes, or too many"));
    }
    Ok(())
}

/// Checks the first bytes of a pack.
pub(crate) fn check_header(bytes: &[u8], descriptor: &Descriptor) -> Result<(), Malformed> {
    match bytes.get(..HEADER_BYTES) {
        Some(header) if header == header_bytes(&descriptor.id, descriptor.encrypted) => Ok(()),
        _ => Err(Malformed("the header is damaged, or of another repository")),
    }
}

fn header_bytes(id: &RepositoryId, encrypted: bool) -> [u8; HEADER_BYTES] {
    let flags = if encrypted { FLAG_ENCRYPTED } else { 0 };
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(HEADER_MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[12..16].copy_from_slice(&flags.to_le_bytes());
    header[16..32].copy_from_slice(&id.0);
    header
}

/// Writes the end of a pack whose table of contents begins at `offset`.
pub(crate) fn footer(offset: u64, table: &[u8]) -> [u8; FOOTER_BYTES] {
    let mut footer = [0; FOOTER_BYTES];
    footer[..8].copy_from_slice(&offset.to_le_bytes());
    footer[8..12].copy_from_slice(&(table.len() as u32).to_le_bytes());
    footer[12..44].copy_from_slice(blake3::hash(table).as_bytes());
    footer[56..].copy_from_slice(FOOTER_MAGIC);
    footer
}

/// A pack being filled, in memory.
pub(crate) struct PackWriter {
    bytes: Vec<u8>,
    table: PackTable,
}

/// A pack that is full, ready to be stored.
#[derive(Clone, Debug)]
pub(crate) struct FinishedPack {
    pub entry: PackEntry,
    pub bytes: Bytes,
    pub table: PackTable,
}

impl PackWriter {
    pub fn new(descriptor: &Descriptor) -> Self {
        let bytes = header_bytes(&descriptor.id, descriptor.encrypted).to_vec();
        Self { bytes, table: PackTable::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.table.frames.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.bytes.len() >= FULL_BYTES || self.table.encoded_bytes() >= FULL_TABLE_BYTES
    }

    /// Appends a frame and the hashes of its blocks.
    pub fn append(&mut self, frame: &EncodedFrame, block_hashes: &[BlockHash]) -> TableFrame {
        let entry = TableFrame {
            hash: frame.hash,
            offset: self.bytes.len() as u64,
            stored_bytes: frame.stored.len() as u32,
            blocks: block_hashes.len() as u32,
            codec: frame.codec,
        };
        self.bytes.extend_from_slice(&frame.stored);
        self.table.frames.push(entry);
        self.table.block_hashes.extend_from_slice(block_hashes);
        entry
    }

    /// Writes the table of contents and names the pack.
    pub fn finish(mut self) -> FinishedPack {
        let table = self.table.encode();
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(&table);
        self.bytes.extend(footer(offset, &table));
        let entry = PackEntry {
            id: Digest(*blake3::hash(&self.bytes).as_bytes()),
            bytes: self.bytes.len() as u64,
            table_bytes: (table.len() + FOOTER_BYTES) as u32,
            table_hash: Digest(*blake3::hash(&self.bytes[offset as usize..]).as_bytes()),
        };
        FinishedPack { entry, bytes: self.bytes.into(), table: self.table }
    }
}

#[cfg(test)]
mod tests {
    use collective_model::{Digest, RepositoryId};

    use super::{FinishedPack, HEADER_BYTES, PackTable, PackWriter, check_header};
    use crate::descriptor::{Descriptor, Kind};
    use crate::frame::{Codec, EncodedFrame};
    use crate::keys::SigningKey;
    use crate::sealer::BlockHash;

    fn descriptor() -> Descriptor {
        let publisher = SigningKey::from_seed([1; 32]).publisher();
        Descriptor::public(RepositoryId([1; 16]), Kind::Appliance, publisher)
    }

    fn pack() -> FinishedPack {
        let mut writer = PackWriter::new(&descriptor());
        for (at, blocks) in [3_u8, 1, 7].into_iter().enumerate() {
            let stored = vec![at as u8; 10 + at];
            let hash = Digest(*blake3::hash(&stored).as_bytes());
            let frame = EncodedFrame { hash, stored, codec: Codec::Zstd };
            let hashes: Vec<_> = (0..blocks).map(|block| BlockHash([block; 20])).collect();
            writer.append(&frame, &hashes);
        }
        writer.finish()
    }

    fn decode(pack: &[u8], table_bytes: u32) -> Option<PackTable> {
        let tail = &pack[pack.len().checked_sub(table_bytes as usize)?..];
        PackTable::decode_tail(tail, pack.len() as u64).ok()
    }

    #[test]
    fn a_table_survives_and_finds_every_frame() {
        let pack = pack();
        assert_eq!(decode(&pack.bytes, pack.entry.table_bytes), Some(pack.table.clone()));
        assert_eq!(pack.table.frames[0].offset, HEADER_BYTES as u64);
        for frame in &pack.table.frames {
            let stored = &pack.bytes[frame.offset as usize..][..frame.stored_bytes as usize];
            assert_eq!(Digest(*blake3::hash(stored).as_bytes()), frame.hash);
        }
        check_header(&pack.bytes, &descriptor()).unwrap();
    }

    #[test]
    fn every_flipped_bit_of_the_table_the_footer_and_the_header_is_found() {
        let pack = pack();
        let start = pack.bytes.len() - pack.entry.table_bytes as usize;
        for at in start..pack.bytes.len() {
            for bit in 0..8 {
                let mut damaged = pack.bytes.to_vec();
                damaged[at] ^= 1 << bit;
                assert_eq!(decode(&damaged, pack.entry.table_bytes), None, "byte {at} bit {bit}");
            }
        }
        for at in 0..HEADER_BYTES {
            let mut damaged = pack.bytes.to_vec();
            damaged[at] ^= 1;
            assert!(check_header(&damaged, &descriptor()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_pack_that_was_cut_or_grew_is_found() {
        let pack = pack();
        for length in 0..pack.bytes.len() {
            assert_eq!(decode(&pack.bytes[..length], pack.entry.table_bytes), None, "{length}");
        }
        let longer = [&pack.bytes[..], &[0]].concat();
        assert_eq!(decode(&longer, pack.entry.table_bytes), None);
    }
}
