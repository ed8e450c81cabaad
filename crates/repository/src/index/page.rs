//! Pages of an index: rows turned into columns of small differences. Pure.

use collective_model::Digest;

use super::{EXTENTS_PER_PAGE, FRAMES_PER_OLD_PAGE, IndexExtent, IndexFrame};
use crate::codec::{Malformed, Reader, put_varint, put_zigzag};
use crate::frame::{Codec, FrameRef, MAX_FRAME_BLOCKS};
use crate::pack::{HEADER_BYTES, check_frame_sizes};

/// Plain bytes that a page has at most: at the worst 37 bytes of numbers and 33 of hash and codec in each of its rows.
pub(super) const MAX_PAGE_BYTES: usize = 70 * EXTENTS_PER_PAGE;

/// Writes a page of the table of frames.
pub(super) fn encode_frames(frames: &[IndexFrame]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40 * frames.len());
    let mut previous = 0;
    for frame in frames {
        put_varint(&mut bytes, u64::from(frame.pack - previous));
        previous = frame.pack;
    }
    let mut end = None;
    for IndexFrame { pack, frame } in frames {
        put_varint(&mut bytes, frame.offset - expected_offset(end, *pack));
        end = Some((*pack, frame.end()));
    }
    frames.iter().for_each(|row| put_varint(&mut bytes, u64::from(row.frame.stored_bytes)));
    frames.iter().for_each(|row| put_varint(&mut bytes, u64::from(row.frame.blocks)));
    frames.iter().for_each(|row| bytes.push(row.frame.codec.code()));
    frames.iter().for_each(|row| bytes.extend(row.frame.hash.0));
    bytes
}

/// Where a frame lies if nothing is between it and the one before.
fn expected_offset(end: Option<(u32, u64)>, pack: u32) -> u64 {
    match end {
        Some((last, end)) if last == pack => end,
        _ => HEADER_BYTES as u64,
    }
}

/// Reads a page of `count` frames.
pub(super) fn decode_frames(
    bytes: &[u8],
    count: usize,
    packs: &[Digest],
) -> Result<Vec<FrameRef>, Malformed> {
    if count > FRAMES_PER_OLD_PAGE {
        return Err(Malformed("a page has too many frames"));
    }
    let mut reader = Reader::new(bytes);
    let steps = column(count, || reader.varint_u32())?;
    let gaps = column(count, || reader.varint())?;
    let sizes = column(count, || reader.varint_u32())?;
    let blocks = column(count, || reader.varint_u32())?;
    let codecs = column(count, || reader.u8())?;
    let hashes = column(count, || reader.array().map(Digest))?;
    reader.finish()?;
    let mut frames = Vec::with_capacity(count);
    let (mut pack, mut end) = (0_u32, None);
    for row in 0..count {
        pack = pack.checked_add(steps[row]).ok_or(Malformed("a pack's number is too large"))?;
        let id = packs.get(pack as usize).ok_or(Malformed("a frame is in an unknown pack"))?;
        check_frame_sizes(blocks[row], sizes[row])?;
        let offset = expected_offset(end, pack).checked_add(gaps[row]);
        let frame = FrameRef {
            hash: hashes[row],
            pack: *id,
            offset: offset
                .filter(|offset| *offset < u64::MAX / 2)
                .ok_or(Malformed("an offset is too large"))?,
            stored_bytes: sizes[row],
            blocks: blocks[row],
            codec: Codec::of_code(codecs[row]).ok_or(Malformed("a codec is unknown"))?,
        };
        end = Some((pack, frame.end()));
        frames.push(frame);
    }
    Ok(frames)
}

/// Writes a page of extents.
pub(super) fn encode_extents(extents: &[IndexExtent]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(6 * extents.len());
    let mut end = extents.first().map_or(0, |extent| extent.start);
    for extent in extents {
        put_varint(&mut bytes, extent.start - end);
        end = extent.range().end();
    }
    extents.iter().for_each(|extent| put_varint(&mut bytes, u64::from(extent.count)));
    let mut frame = 0;
    for extent in extents {
        put_zigzag(&mut bytes, i64::from(extent.frame) - frame);
        frame = i64::from(extent.frame);
    }
    let mut last: Option<&IndexExtent> = None;
    for extent in extents {
        put_zigzag(&mut bytes, i64::from(extent.first) - expected_first(last, extent.frame));
        last = Some(extent);
    }
    bytes
}

/// Which block of its frame an extent begins with if it goes on where the one before stopped.
fn expected_first(last: Option<&IndexExtent>, frame: u32) -> i64 {
    match last {
        Some(last) if last.frame == frame => i64::from(last.first + last.count),
        _ => 0,
    }
}

/// Reads a page of `count` extents, the first of which begins at block `start`; none may end after block `blocks`.
pub(super) fn decode_extents(
    bytes: &[u8],
    count: usize,
    start: u64,
    blocks: u64,
    frames: u32,
) -> Result<Vec<IndexExtent>, Malformed> {
    if count > EXTENTS_PER_PAGE {
        return Err(Malformed("a page has too many extents"));
    }
    let mut reader = Reader::new(bytes);
    let gaps = column(count, || reader.varint())?;
    let counts = column(count, || reader.varint_u32())?;
    let frame_steps = column(count, || reader.zigzag())?;
    let first_steps = column(count, || reader.zigzag())?;
    reader.finish()?;
    let mut extents: Vec<IndexExtent> = Vec::with_capacity(count);
    let (mut end, mut frame) = (start, 0_i64);
    for row in 0..count {
        frame = frame.wrapping_add(frame_steps[row]);
        let frame_number = u32::try_from(frame)
            .ok()
            .filter(|frame| *frame < frames)
            .ok_or(Malformed("an extent is in an unknown frame"))?;
        let first = expected_first(extents.last(), frame_number).wrapping_add(first_steps[row]);
        let extent = IndexExtent {
            start: end.checked_add(gaps[row]).ok_or(Malformed("an extent is off the disk"))?,
            count: counts[row],
            frame: frame_number,
            first: u32::try_from(first).map_err(|_| Malformed("an extent is off its frame"))?,
        };
        check_extent(&extent, blocks)?;
        end = extent.range().end();
        extents.push(extent);
    }
    Ok(extents)
}

fn check_extent(extent: &IndexExtent, blocks: u64) -> Result<(), Malformed> {
    let in_frame = (1..=MAX_FRAME_BLOCKS).contains(&extent.count)
        && extent.first <= MAX_FRAME_BLOCKS - extent.count;
    if !in_frame {
        return Err(Malformed("an extent is off its frame"));
    }
    match extent.start.checked_add(u64::from(extent.count)) {
        Some(end) if end <= blocks => Ok(()),
        _ => Err(Malformed("an extent is off the disk")),
    }
}

fn column<T>(
    count: usize,
    mut value: impl FnMut() -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    (0..count).map(|_| value()).collect()
}
