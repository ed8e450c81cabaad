//! Where in an image file systems may be: all of it, or the partitions of a GPT or an MBR.

use std::ops::Range;

use collective_model::Result;

use super::{Image, u32_at, u64_at};

/// The sector that partition tables of disk images count in.
const SECTOR: u64 = 512;

/// Entries of a GPT that are looked at.
const MAX_ENTRIES: u32 = 1024;

/// The largest entry of a GPT.
const MAX_ENTRY_BYTES: u32 = 4096;

/// Returns the parts of an image that may hold a file system. A part without one costs a read and is found out there.
pub(super) fn volumes(image: &Image<'_>) -> Result<Vec<Range<u64>>> {
    let mut volumes = vec![];
    volumes.push(0..image.size_bytes);
    let Some(record) = image.read(0, SECTOR as usize)? else { return Ok(volumes) };
    if record[510..] != [0x55, 0xaa] {
        return Ok(volumes);
    }
    match guid_partitions(image)? {
        Some(partitions) => volumes.extend(partitions),
        None => volumes.extend(primary_partitions(&record)),
    }
    volumes.retain(|volume| volume.start < volume.end && volume.end <= image.size_bytes);
    Ok(volumes)
}

/// Reads the partitions of a GPT, if there is one.
fn guid_partitions(image: &Image<'_>) -> Result<Option<Vec<Range<u64>>>> {
    let Some(header) = image.read(SECTOR, SECTOR as usize)? else { return Ok(None) };
    if !header.starts_with(b"EFI PART") {
        return Ok(None);
    }
    let count = u32_at(&header, 80).min(MAX_ENTRIES);
    let entry_bytes = u32_at(&header, 84);
    if !(128..=MAX_ENTRY_BYTES).contains(&entry_bytes) {
        return Ok(Some(Vec::new()));
    }
    let Some(offset) = u64_at(&header, 72).checked_mul(SECTOR) else { return Ok(Some(Vec::new())) };
    let Some(table) = image.read(offset, (count * entry_bytes) as usize)? else {
        return Ok(Some(Vec::new()));
    };
    let partitions = table
        .chunks_exact(entry_bytes as usize)
        .filter(|entry| entry[..16] != [0; 16])
        .filter_map(|entry| sectors(u64_at(entry, 32), u64_at(entry, 40).checked_add(1)?));
    Ok(Some(partitions.collect()))
}

/// Reads the four primary partitions of an MBR.
fn primary_partitions(record: &[u8]) -> Vec<Range<u64>> {
    let entries = record[446..510].chunks_exact(16);
    let partitions = entries.filter(|entry| entry[4] != 0).filter_map(|entry| {
        let start = u64::from(u32_at(entry, 8));
        sectors(start, start + u64::from(u32_at(entry, 12)))
    });
    partitions.collect()
}

fn sectors(start: u64, end: u64) -> Option<Range<u64>> {
    Some(start.checked_mul(SECTOR)?..end.checked_mul(SECTOR)?)
}
