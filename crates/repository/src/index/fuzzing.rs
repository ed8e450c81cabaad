//! What fuzzing may call of the index: its directory and its pages, as if their hashes had fitted.

use collective_model::{BlockRange, Digest};

use super::directory::{Directory, HEADER_BYTES, PageEntry, check_header};
use super::page::{decode_extents, decode_frames, encode_extents, encode_frames};
use super::{IndexExtent, IndexFrame};
use crate::frame::FrameRef;

/// Packs that the frames of a fuzzed page may lie in.
const PACKS: u8 = 4;

/// Reads a directory that ends an object of `object_bytes`: its pages must lie back to back, from the header to itself.
pub(crate) fn directory(bytes: &[u8], object_bytes: u64) {
    if check_header(bytes).is_ok() {
        assert!(bytes.len() >= HEADER_BYTES, "a header was seen in fewer bytes than it has");
    }
    let Ok(directory) = Directory::decode(bytes, object_bytes) else { return };
    let mut end = HEADER_BYTES as u64;
    let pages = directory.frame_pages.iter().chain(&directory.extent_pages);
    for page in pages {
        assert_eq!(page.range().start, end, "pages leave a gap");
        assert!(page.rows > 0, "a page is empty");
        end = page.range().end;
    }
    assert_eq!(end + bytes.len() as u64, object_bytes, "pages do not fill the object");
    let rows = |pages: &[PageEntry]| pages.iter().map(|page| page.rows).sum::<usize>();
    assert_eq!(rows(&directory.frame_pages), directory.frames as usize);
}

/// Reads a page of `count` frames: what is accepted has no second spelling.
pub(crate) fn frame_page(bytes: &[u8], count: usize) {
    let packs: Vec<Digest> = (0..PACKS).map(|number| Digest([number; 32])).collect();
    let Ok(frames) = decode_frames(bytes, count, &packs) else { return };
    assert_eq!(frames.len(), count);
    let row = |frame: &FrameRef| IndexFrame { pack: u32::from(frame.pack.0[0]), frame: *frame };
    let rows: Vec<IndexFrame> = frames.iter().map(row).collect();
    assert_eq!(encode_frames(&rows), bytes, "a page of frames has two spellings");
}

/// Reads a page of `count` extents: they are in order, on the disk and in frames, and survive being written again.
pub(crate) fn extent_page(bytes: &[u8], count: usize, start: u64, blocks: u64, frames: u32) {
    let Ok(extents) = decode_extents(bytes, count, start, blocks, frames) else { return };
    assert_eq!(extents.len(), count);
    let mut end = start;
    for extent in &extents {
        let BlockRange { start, count } = extent.range();
        assert!(count > 0 && start >= end && start + count <= blocks, "{extent:?}");
        assert!(extent.frame < frames && extent.first + extent.count <= 256, "{extent:?}");
        end = start + count;
    }
    let first = extents.first().map_or(start, |extent: &IndexExtent| extent.start);
    let again = decode_extents(&encode_extents(&extents), count, first, blocks, frames);
    assert_eq!(again, Ok(extents));
}
