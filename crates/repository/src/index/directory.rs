//! The directory at the end of an index object: how many pages there are, where, and what they must be. Pure.

use collective_model::{Digest, Error, ErrorKind, Result};

use super::page::{MAX_PAGE_BYTES, encode_extents, encode_frames};
use super::{
    EXTENTS_PER_PAGE, EncodedIndex, FORMAT, FRAMES_PER_OLD_PAGE, FRAMES_PER_PAGE, Index,
    IndexFrame, MAX_EXTENTS, MAX_FRAMES,
};
use crate::codec::{Malformed, Reader};
use crate::manifest::{IndexEntry, PackEntry};

/// The first bytes of an index object of any format, before the first page.
const HEADER: &[u8; 16] = b"COLLINDX\x01\0\0\0\0\0\0\0";

/// Bytes of the directory before its rows.
const HEAD_BYTES: usize = 32;

/// Bytes that a page is stored in at most: as plain as it is, with what compression and sealing may add.
const MAX_STORED_PAGE_BYTES: usize = MAX_PAGE_BYTES + (4 << 10);

/// Where pages are and what they must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directory {
    /// Blocks of the disk.
    pub blocks: u64,
    pub frames: u32,
    /// Frames in each page but the last.
    pub frames_per_page: usize,
    pub frame_pages: Vec<PageEntry>,
    pub extent_pages: Vec<PageEntry>,
}

/// One page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageEntry {
    pub offset: u64,
    pub stored_bytes: u32,
    pub hash: Digest,
    /// How many rows it has.
    pub rows: usize,
    /// For extents: the first block of the disk that it maps.
    pub first_block: u64,
}

impl Directory {
    /// Returns all pages, in the order in which they lie.
    pub fn pages(&self) -> impl Iterator<Item = &PageEntry> {
        self.frame_pages.iter().chain(&self.extent_pages)
    }
}

impl PageEntry {
    /// Returns where in the object the page is.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.offset..self.offset + u64::from(self.stored_bytes)
    }
}

/// Writes an index object.
pub(super) fn encode(
    index: &Index,
    blocks: u64,
    packs: &[PackEntry],
    seal: impl Fn(&[u8]) -> Result<Vec<u8>>,
) -> Result<EncodedIndex> {
    if index.frames.len() > MAX_FRAMES || index.extents.len() > MAX_EXTENTS {
        let message = format!("a disk may have {MAX_FRAMES} frames and {MAX_EXTENTS} extents");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let mut bytes = HEADER.to_vec();
    let mut directory = Vec::new();
    directory.extend(FORMAT.to_le_bytes());
    directory.extend((index.frames.len() as u32).to_le_bytes());
    directory.extend((index.extents.len() as u64).to_le_bytes());
    directory.extend(blocks.to_le_bytes());
    directory.extend([0; 8]);
    let mut add = |first_block: Option<u64>, page: &[u8]| -> Result<()> {
        let stored = seal(page)?;
        directory.extend((stored.len() as u32).to_le_bytes());
        directory.extend(blake3::hash(&stored).as_bytes());
        first_block.into_iter().for_each(|block| directory.extend(block.to_le_bytes()));
        bytes.extend(stored);
        Ok(())
    };
    let mut numbers = PackNumbers { packs, last: 0 };
    for frames in index.frames.chunks(FRAMES_PER_PAGE) {
        let rows: Vec<_> = frames
            .iter()
            .map(|frame| IndexFrame { pack: numbers.of(&frame.pack), frame: *frame })
            .collect();
        add(None, &encode_frames(&rows))?;
    }
    for extents in index.extents.chunks(EXTENTS_PER_PAGE) {
        add(Some(extents[0].start), &encode_extents(extents))?;
    }
    bytes.extend_from_slice(&directory);
    let entry = IndexEntry {
        bytes: bytes.len() as u64,
        directory_bytes: directory.len() as u32,
        hash: Digest(*blake3::hash(&directory).as_bytes()),
    };
    Ok(EncodedIndex { bytes, entry })
}

/// Finds the numbers of packs, asked for in the order of the list.
struct PackNumbers<'a> {
    packs: &'a [PackEntry],
    last: usize,
}

impl PackNumbers<'_> {
    fn of(&mut self, id: &Digest) -> u32 {
        let ahead = self.packs[self.last..].iter().position(|pack| pack.id == *id);
        self.last += ahead.expect("frames are sorted by the manifest's list, which has all packs");
        self.last as u32
    }
}

impl Directory {
    /// Reads the directory of an index object of `object_bytes` whose hash was checked.
    pub fn decode(bytes: &[u8], object_bytes: u64) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let frames_per_page = match reader.u32()? {
            1 => FRAMES_PER_OLD_PAGE,
            FORMAT => FRAMES_PER_PAGE,
            _ => return Err(Malformed("the directory has an unknown format")),
        };
        let frames = reader.u32()?;
        let extents = reader.u64()?;
        let blocks = reader.u64()?;
        if reader.array()? != [0; 8] {
            return Err(Malformed("a reserved byte is not zero"));
        }
        if frames as usize > MAX_FRAMES || extents > MAX_EXTENTS as u64 {
            return Err(Malformed("the directory promises too much"));
        }
        let mut offset = HEADER.len() as u64;
        let frame_pages =
            decode_rows(&mut reader, &mut offset, frames as usize, frames_per_page, false)?;
        let extent_pages =
            decode_rows(&mut reader, &mut offset, extents as usize, EXTENTS_PER_PAGE, true)?;
        reader.finish()?;
        if offset.checked_add(bytes.len() as u64) != Some(object_bytes) {
            return Err(Malformed("the pages do not fill the object"));
        }
        if !extent_pages.is_sorted_by(|left, right| left.first_block < right.first_block) {
            return Err(Malformed("the pages are not in order"));
        }
        Ok(Self { blocks, frames, frames_per_page, frame_pages, extent_pages })
    }
}

fn decode_rows(
    reader: &mut Reader<'_>,
    offset: &mut u64,
    rows: usize,
    rows_per_page: usize,
    with_block: bool,
) -> Result<Vec<PageEntry>, Malformed> {
    let mut pages = Vec::new();
    for first_row in (0..rows).step_by(rows_per_page) {
        let stored_bytes = reader.u32()?;
        if stored_bytes as usize > MAX_STORED_PAGE_BYTES {
            return Err(Malformed("a page is too large"));
        }
        pages.push(PageEntry {
            offset: *offset,
            stored_bytes,
            hash: Digest(reader.array()?),
            rows: rows_per_page.min(rows - first_row),
            first_block: if with_block { reader.u64()? } else { 0 },
        });
        *offset += u64::from(stored_bytes);
    }
    Ok(pages)
}

/// Checks the first bytes of an index object.
pub(super) fn check_header(bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.starts_with(HEADER) { Ok(()) } else { Err(Malformed("the header is damaged")) }
}

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = HEADER.len();

/// The least that a directory has.
pub(super) const MIN_DIRECTORY_BYTES: usize = HEAD_BYTES;

/// The most that a directory has: 3.1 MB.
pub(super) const MAX_DIRECTORY_BYTES: usize = HEAD_BYTES
    + (4 + 32) * MAX_FRAMES.div_ceil(FRAMES_PER_PAGE)
    + (4 + 32 + 8) * MAX_EXTENTS.div_ceil(EXTENTS_PER_PAGE);
