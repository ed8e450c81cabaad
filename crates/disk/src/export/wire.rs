//! The NBD protocol as bytes: its numbers, requests as they come in, replies as they go out.
//!
//! Pure: nothing here reads, waits or keeps state. Source: the NBD project's `proto.md` (fixed newstyle negotiation,
//! structured replies, block status). Only what a read-only server needs is here. All numbers on the
//! wire are big-endian.

/// What the server says first.
pub(super) const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// What stands before every option, and second in the greeting.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// What stands before every reply to an option.
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Both sides' flags of the greeting: fixed newstyle, and no 124 zeros after `EXPORT_NAME`.
pub(super) const FIXED_NEWSTYLE: u16 = 1 << 0;
pub(super) const NO_ZEROES: u16 = 1 << 1;

pub(super) const OPTION_EXPORT_NAME: u32 = 1;
pub(super) const OPTION_ABORT: u32 = 2;
pub(super) const OPTION_LIST: u32 = 3;
pub(super) const OPTION_INFO: u32 = 6;
pub(super) const OPTION_GO: u32 = 7;
pub(super) const OPTION_STRUCTURED_REPLY: u32 = 8;
pub(super) const OPTION_LIST_META_CONTEXT: u32 = 9;
pub(super) const OPTION_SET_META_CONTEXT: u32 = 10;

pub(super) const REPLY_ACK: u32 = 1;
pub(super) const REPLY_SERVER: u32 = 2;
pub(super) const REPLY_INFO: u32 = 3;
pub(super) const REPLY_META_CONTEXT: u32 = 4;
pub(super) const REPLY_UNSUPPORTED: u32 = (1 << 31) + 1;
pub(super) const REPLY_POLICY: u32 = (1 << 31) + 2;
pub(super) const REPLY_INVALID: u32 = (1 << 31) + 3;
pub(super) const REPLY_UNKNOWN: u32 = (1 << 31) + 6;
pub(super) const REPLY_TOO_BIG: u32 = (1 << 31) + 9;

pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// What an export says of itself: read-only, and several connections see the same.
pub(super) const TRANSMISSION_FLAGS: u16 = 1 | 1 << 1 | 1 << 8;

pub(super) const COMMAND_READ: u16 = 0;
pub(super) const COMMAND_WRITE: u16 = 1;
pub(super) const COMMAND_DISCONNECT: u16 = 2;
pub(super) const COMMAND_FLUSH: u16 = 3;
pub(super) const COMMAND_BLOCK_STATUS: u16 = 7;
/// The one flag of a request that we know: block status wants one extent only.
pub(super) const FLAG_ONE_EXTENT: u16 = 1 << 3;

pub(super) const CHUNK_NONE: u16 = 0;
pub(super) const CHUNK_DATA: u16 = 1;
pub(super) const CHUNK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = (1 << 15) + 1;
const CHUNK_DONE: u16 = 1;

/// Both bits that `base:allocation` has: a hole, and reads as zeros.
pub(super) const STATE_HOLE_AND_ZERO: u32 = 3;

/// Why a request failed, in the protocol's own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Refusal {
    NotPermitted = 1,
    InputOutput = 5,
    Invalid = 22,
    NotSupported = 95,
}

/// Bytes of a request on the wire.
pub(super) const REQUEST_BYTES: usize = 28;

/// A request as it came in; nothing in it is checked but the magic number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl Request {
    /// Decodes a request; none if this is not the protocol.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let (magic, rest) = take(bytes);
        let (flags, rest) = take(rest);
        let (command, rest) = take(rest);
        let (cookie, rest) = take(rest);
        let (offset, rest) = take(rest);
        let (length, _) = take(rest);
        (u32::from_be_bytes(magic) == REQUEST_MAGIC).then_some(Self {
            flags: u16::from_be_bytes(flags),
            command: u16::from_be_bytes(command),
            cookie: u64::from_be_bytes(cookie),
            offset: u64::from_be_bytes(offset),
            length: u32::from_be_bytes(length),
        })
    }

    /// Tells whether the range of the request lies on a disk of `size_bytes`.
    pub fn lies_within(&self, size_bytes: u64) -> bool {
        self.offset.checked_add(u64::from(self.length)).is_some_and(|end| end <= size_bytes)
    }
}

fn take<const N: usize>(bytes: &[u8]) -> ([u8; N], &[u8]) {
    let (head, rest) = bytes.split_first_chunk().expect("a request has fields of fixed sizes");
    (*head, rest)
}

/// Appends what a server says first.
pub(super) fn encode_greeting(out: &mut Vec<u8>) {
    out.extend(GREETING_MAGIC.to_be_bytes());
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
}

/// Appends a reply to an option.
pub(super) fn encode_option_reply(out: &mut Vec<u8>, option: u32, reply: u32, data: &[u8]) {
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(reply.to_be_bytes());
    out.extend(wire_length(data.len()).to_be_bytes());
    out.extend(data);
}

/// Encodes the head of a simple reply; data, if any, follows.
pub(super) fn simple_head(cookie: u64, refusal: Option<Refusal>) -> [u8; 16] {
    let mut head = [0; 16];
    head[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    head[4..8].copy_from_slice(&refusal.map_or(0, |refusal| refusal as u32).to_be_bytes());
    head[8..].copy_from_slice(&cookie.to_be_bytes());
    head
}

/// Bytes of a structured data chunk in front of the data.
pub(super) const DATA_HEAD_BYTES: usize = 28;

/// Encodes the head of a structured chunk whose data, `length` bytes read at `offset`, follows.
pub(super) fn data_head(
    cookie: u64,
    last: bool,
    offset: u64,
    length: usize,
) -> [u8; DATA_HEAD_BYTES] {
    let mut head = [0; DATA_HEAD_BYTES];
    head[..20].copy_from_slice(&chunk_head(cookie, last, CHUNK_DATA, length + 8));
    head[20..].copy_from_slice(&offset.to_be_bytes());
    head
}

/// Appends a structured reply without content.
pub(super) fn encode_none(out: &mut Vec<u8>, cookie: u64) {
    out.extend(chunk_head(cookie, true, CHUNK_NONE, 0));
}

/// Appends a structured reply that says that a request failed.
pub(super) fn encode_error(out: &mut Vec<u8>, cookie: u64, refusal: Refusal) {
    out.extend(chunk_head(cookie, true, CHUNK_ERROR, 6));
    out.extend((refusal as u32).to_be_bytes());
    out.extend(0_u16.to_be_bytes());
}

/// A run of the disk in the terms of `base:allocation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WireExtent {
    pub length: u32,
    pub state: u32,
}

/// Appends the answer to a block status request.
pub(super) fn encode_status(out: &mut Vec<u8>, cookie: u64, context: u32, extents: &[WireExtent]) {
    out.extend(chunk_head(cookie, true, CHUNK_STATUS, 4 + 8 * extents.len()));
    out.extend(context.to_be_bytes());
    for extent in extents {
        out.extend(extent.length.to_be_bytes());
        out.extend(extent.state.to_be_bytes());
    }
}

fn chunk_head(cookie: u64, last: bool, kind: u16, length: usize) -> [u8; 20] {
    let mut head = [0; 20];
    head[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    head[4..6].copy_from_slice(&(if last { CHUNK_DONE } else { 0 }).to_be_bytes());
    head[6..8].copy_from_slice(&kind.to_be_bytes());
    head[8..16].copy_from_slice(&cookie.to_be_bytes());
    head[16..].copy_from_slice(&wire_length(length).to_be_bytes());
    head
}

fn wire_length(length: usize) -> u32 {
    u32::try_from(length).expect("replies are bounded far below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::{REQUEST_BYTES, REQUEST_MAGIC, Request, chunk_head, data_head};

    fn request(offset: u64, length: u32) -> [u8; REQUEST_BYTES] {
        let mut bytes = Vec::new();
        bytes.extend(REQUEST_MAGIC.to_be_bytes());
        bytes.extend([0, 8, 0, 7]);
        bytes.extend(42_u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.try_into().unwrap()
    }

    #[test]
    fn a_request_is_read_field_by_field() {
        let decoded = Request::decode(&request(4096, 512)).unwrap();
        let expected = Request { flags: 8, command: 7, cookie: 42, offset: 4096, length: 512 };
        assert_eq!(decoded, expected);
    }

    #[test]
    fn what_does_not_start_with_the_magic_number_is_no_request() {
        let mut bytes = request(0, 1);
        bytes[3] ^= 1;
        assert_eq!(Request::decode(&bytes), None);
    }

    #[test]
    fn a_range_that_wraps_around_lies_on_no_disk() {
        let wrapping = Request::decode(&request(u64::MAX - 1, 512)).unwrap();
        assert!(!wrapping.lies_within(u64::MAX));
        let last = Request::decode(&request(512, 512)).unwrap();
        assert!(last.lies_within(1024) && !last.lies_within(1023));
    }

    #[test]
    fn a_data_chunk_counts_its_offset_as_payload() {
        let head = data_head(7, true, 4096, 512);
        assert_eq!(head[..20], chunk_head(7, true, 1, 520));
        assert_eq!(head[20..], 4096_u64.to_be_bytes());
    }
}
