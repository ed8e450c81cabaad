//! What fuzzing may call of this room: one function for each structure that comes from outside. Not part of the API.
//!
//! A function takes any bytes and panics where a decoder breaks a promise: it must refuse or accept, what it accepts must keep
//! its bounds, and where a structure has one spelling it must be written as it was read. Hashes and signatures that no fuzzer
//! finds are put right first, as a publisher with bad intentions would.

use bytes::Bytes;
use collective_model::{Digest, ErrorKind, RepositoryId, Version};

use crate::backend::{Listed, ObjectName, PartKind, decode_latest, encode_latest, fuzzing as http};
use crate::descriptor::{Descriptor, Kind};
use crate::frame::{Codec, FrameRef};
use crate::keys::{RepositorySecret, SigningKey};
use crate::manifest::{Manifest, PackEntry};
use crate::pack::{FOOTER_BYTES, HEADER_BYTES, PackTable, check_header, footer};
use crate::sealer::{Purpose, Sealer};
use crate::trace::{MAX_TRACE_BYTES, Trace};

/// `repository.json`, `latest` and the names of objects.
///
/// # Panics
/// If a promise is broken; so do all of these.
pub fn descriptor(bytes: &[u8]) {
    if let Ok(descriptor) = Descriptor::decode(bytes) {
        assert_eq!(descriptor.encode(), bytes, "repository.json has two spellings");
    }
    if let Ok(descriptor) = serde_json::from_slice::<Descriptor>(bytes) {
        let decoded = Descriptor::decode(&descriptor.encode());
        assert_eq!(decoded.is_ok(), descriptor.check().is_ok());
        decoded.into_iter().for_each(|decoded| assert_eq!(decoded, descriptor));
    }
    if let Ok(version) = decode_latest(bytes) {
        assert_eq!(encode_latest(version).as_bytes(), bytes, "latest has two spellings");
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(version) = text.trim().parse::<Version>() {
        assert_eq!(decode_latest(encode_latest(version).as_bytes()).ok(), Some(version));
    }
    if let Ok(name) = text.parse::<ObjectName>() {
        assert_eq!(name.to_string(), text, "an object has two names");
        assert!(text.split('/').all(|part| !part.is_empty() && !part.starts_with('.')), "{text}");
    }
}

/// A manifest: as a server takes it in, and its payload signed by the publisher himself.
pub fn manifest(bytes: &[u8]) {
    let key = SigningKey::from_seed([7; 32]);
    let public = |id| Descriptor::public(id, Kind::Appliance, key.publisher());
    if let Ok(peeked) = Manifest::peek(bytes) {
        let opened = Manifest::open(bytes, &public(peeked.repository), peeked.version);
        opened.into_iter().for_each(|opened| assert_eq!(opened, peeked));
    }
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else { return };
    let (version, descriptor) = (manifest.version, public(manifest.repository));
    match Manifest::open(&manifest.sign(&key), &descriptor, version) {
        Ok(opened) => {
            assert_eq!(opened, manifest);
            let parts = opened.objects().len() - opened.packs.len();
            assert!(parts <= 2 * opened.disks.len() && opened.disks.len() <= 2);
            opened.disks.iter().for_each(|disk| assert!(disk.blocks() > 0));
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}"),
    }
}

/// A directory or a page of an index; the first byte says which, the next say what the parts above it say of it.
pub fn index(bytes: &[u8]) {
    use crate::index::fuzzing::{directory, extent_page, frame_page};
    let Some((head, rest)) = bytes.split_first_chunk::<10>() else { return };
    let [kind, sizes @ ..] = *head;
    let number = |at: usize| u16::from_le_bytes([sizes[at], sizes[at + 1]]);
    match kind % 3 {
        0 => directory(rest, u64::from(number(0)) << 16 | u64::from(number(2))),
        1 => frame_page(rest, usize::from(number(0))),
        _ => {
            let (start, blocks) = (u64::from(number(2)), u64::from(number(4)) << (sizes[8] % 40));
            extent_page(rest, usize::from(number(0)), start, blocks, u32::from(number(6)));
        }
    }
}

/// The header of a pack, its table of contents and its footer: as they are, and with a footer that fits.
pub fn pack(bytes: &[u8]) {
    let descriptor = Descriptor::public(RepositoryId([1; 16]), Kind::Appliance, publisher());
    if check_header(bytes, &descriptor).is_ok() {
        assert!(bytes.len() >= HEADER_BYTES);
    }
    if let Some((offset, _)) =
        bytes.len().checked_sub(FOOTER_BYTES).and_then(|at| bytes[at..].split_first_chunk())
    {
        let size = u64::from_le_bytes(*offset).wrapping_add(bytes.len() as u64);
        check_table(bytes, size);
    }
    // Where the frames end, by the count of them and their sizes: what a footer that fits must say.
    let sizes = bytes
        .get(4..)
        .unwrap_or_default()
        .chunks_exact(40)
        .map(|row| u64::from(u32::from_le_bytes([row[32], row[33], row[34], row[35]])));
    let count = bytes.first_chunk().map_or(0, |count| u32::from_le_bytes(*count) as usize);
    let offset = HEADER_BYTES as u64 + sizes.take(count).sum::<u64>();
    let tail = [bytes, &footer(offset, bytes)].concat();
    check_table(&tail, offset + tail.len() as u64);
}

fn check_table(tail: &[u8], pack_bytes: u64) {
    let entry = PackEntry {
        id: Digest([0; 32]),
        bytes: pack_bytes,
        table_bytes: tail.len() as u32,
        table_hash: Digest(*blake3::hash(tail).as_bytes()),
    };
    let decoded = PackTable::decode_trusted_tail(tail, &entry);
    assert_eq!(decoded, PackTable::decode_tail(tail, pack_bytes));
    let Ok(table) = decoded else { return };
    assert_eq!(table.encode(), tail[..tail.len() - FOOTER_BYTES], "a table has two spellings");
    let mut end = HEADER_BYTES as u64;
    for frame in &table.frames {
        assert!(frame.offset == end && frame.blocks > 0 && frame.stored_bytes > 0, "{frame:?}");
        end += u64::from(frame.stored_bytes);
    }
    assert_eq!(end + tail.len() as u64, pack_bytes, "frames do not fill the pack");
    let blocks = table.frames.iter().map(|frame| frame.blocks as usize).sum::<usize>();
    assert_eq!(table.block_hashes.len(), blocks);
}

/// A frame's stored bytes under their true hash; the first two bytes say what the index says of it.
pub fn frame(bytes: &[u8]) {
    let Some(([codec, blocks], stored)) = bytes.split_first_chunk() else { return };
    let frame = FrameRef {
        hash: Digest(*blake3::hash(stored).as_bytes()),
        pack: Digest([0; 32]),
        offset: 64,
        stored_bytes: stored.len() as u32,
        blocks: u32::from(*blocks) + 1,
        codec: Codec::of_code(codec % 3).expect("three codes are known"),
    };
    for sealer in sealers() {
        match frame.decode(stored, &sealer) {
            Ok(plain) => assert_eq!(plain.len(), frame.plain_bytes()),
            Err(error) => assert_corrupt(&error, "packs/"),
        }
    }
    let other = FrameRef { hash: Digest([0; 32]), ..frame };
    assert!(other.decode(stored, &sealers()[0]).is_err(), "a frame passed without its hash");
}

/// A trace, plain and as it is stored.
pub fn trace(bytes: &[u8]) {
    if let Ok(trace) = Trace::decode(bytes) {
        assert_eq!(trace.encode(), bytes, "a trace has two spellings");
        assert!(trace.ranges.len() <= bytes.len() / 2, "a trace is larger than its bytes");
        trace.ranges.iter().for_each(|range| assert!(range.end() >= range.start));
    }
    let (stored, hash) = (Bytes::copy_from_slice(bytes), *blake3::hash(bytes).as_bytes());
    for sealer in sealers() {
        if let Ok(plain) = sealer.open_small(Purpose::Trace, bytes, MAX_TRACE_BYTES) {
            assert!(plain.len() <= MAX_TRACE_BYTES);
        }
        if let Err(error) = Trace::open(&stored, &Digest(hash), &sealer) {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        }
    }
}

/// What a web server answers: the first bytes choose status, object and range, the rest is the body.
pub fn answer(bytes: &[u8]) {
    const STATUS: [u16; 8] = [200, 206, 206, 404, 416, 409, 503, 201];
    let Some((head, body)) = bytes.split_first_chunk::<6>() else { return };
    let [status, object, head @ ..] = *head;
    let status = STATUS[usize::from(status) % STATUS.len()];
    let start = u64::from(u16::from_le_bytes([head[0], head[1]]));
    let length = u64::from(u16::from_le_bytes([head[2], head[3]]));
    let range = (object & 0x80 == 0).then_some(start..start + length);
    let answered = http::answered(&name_of(object), range.clone(), status, body);
    match (answered, range) {
        (Ok(taken), Some(range)) => assert_eq!(taken.len() as u64, range.end - range.start),
        (Ok(taken), None) => assert_eq!(taken, body, "an answer was altered"),
        (Err(error), _) => assert!(!error.chain().is_empty()),
    }
    if let Ok(pieces) = http::streamed(&name_of(object), start..start + length, status, body) {
        assert!(pieces.len() as u64 <= length, "more came than was asked for");
    }
    if let Ok(listed) = http::listed(status, body) {
        let text = serde_json::to_vec(&listed).expect("lists become JSON");
        assert_eq!(serde_json::from_slice::<Vec<Listed>>(&text).ok(), Some(listed));
    }
}

fn name_of(byte: u8) -> ObjectName {
    use collective_model::DiskRole::System;
    let (version, hash) = (Version::FIRST, Digest([byte; 32]));
    match byte % 6 {
        0 => ObjectName::Descriptor,
        1 => ObjectName::Latest,
        2 => ObjectName::Manifest(version),
        3 => ObjectName::part(version, System, PartKind::Index, &hash),
        4 => ObjectName::part(version, System, PartKind::Trace, &hash),
        _ => ObjectName::Pack(hash),
    }
}

fn publisher() -> crate::PublisherKey {
    SigningKey::from_seed([7; 32]).publisher()
}

/// A public repository's and a private one's.
fn sealers() -> [Sealer; 2] {
    let secret = RepositorySecret::new([0x5e; 32]);
    let id = RepositoryId([1; 16]);
    let public = Descriptor::public(id, Kind::Appliance, publisher());
    let private = Descriptor { encrypted: true, ..public.clone() };
    [Sealer::new(&public, None), Sealer::new(&private, Some(&secret))]
}

fn assert_corrupt(error: &collective_model::Error, named: &str) {
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert!(error.chain().contains(named), "{error:?}");
}
