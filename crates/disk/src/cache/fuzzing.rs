//! What fuzzing may call of the cache: heads of records, tables of segments and sets of pins, with the check that a
//! fuzzer does not find put right.

use twox_hash::XxHash3_64;

use super::format::{
    BLOCK, CHECK, FRAME_BLOCKS, HEAD, decode_head, decode_table, encode_record, encode_table,
};
use super::{pins, plain_bytes};

/// Reads bytes as each structure of the cache.
///
/// # Panics
/// If a structure is accepted that is out of its bounds, or that is written in another way than it was read.
pub fn cache(bytes: &[u8]) {
    if let Some(fields) = bytes.first_chunk::<{ HEAD - CHECK }>() {
        let mut head = [0; HEAD];
        head[..HEAD - CHECK].copy_from_slice(fields);
        head[HEAD - CHECK..].copy_from_slice(&XxHash3_64::oneshot(fields).to_le_bytes());
        check_head(&head);
    }
    let sealed = [bytes, blake3::hash(bytes).as_bytes()].concat();
    for bytes in [bytes, &sealed] {
        let number =
            bytes.get(8..).and_then(|rest| rest.first_chunk()).map(|it| u64::from_le_bytes(*it));
        if let Some(entries) = number.and_then(|number| decode_table(number, bytes)) {
            assert_eq!(encode_table(number.unwrap_or_default(), &entries), bytes);
            assert!(entries.iter().all(|entry| (1..=FRAME_BLOCKS).contains(&entry.blocks)));
        }
        if let Some((id, frames)) = pins::decode(bytes) {
            assert_eq!(pins::encode(&id, &frames), bytes, "a set of pins has two spellings");
        }
    }
}

fn check_head(head: &[u8; HEAD]) {
    let Some(entry) = decode_head(head, 0) else { return };
    assert!((1..=FRAME_BLOCKS).contains(&entry.blocks) && plain_bytes(entry.blocks) >= BLOCK);
    let mut record = Vec::new();
    encode_record(&entry.hash, &vec![0; plain_bytes(entry.blocks)], &mut record);
    assert_eq!(record[..HEAD], *head, "a head has two spellings");
}
