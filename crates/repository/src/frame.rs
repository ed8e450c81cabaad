//! Frames: some blocks compressed together, the unit of transfer and of checking.
use bytes::Bytes;
use collective_model::Digest;

/// Blocks in a frame at most: 1 MiB of plain bytes.
pub const MAX_FRAME_BLOCKS: u32 = 256;

/// How the plain bytes of a frame became the bytes that are stored (before encryption).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As they are: compression did not make them fewer.
    Raw,
    /// zstd.
    Zstd,
}

/// Where a frame is and what it must be; enough to fetch and check it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameRef {
    /// BLAKE3 of its stored bytes: its name.
    pub hash: Digest,
    /// The pack that it is in.
    pub pack: Digest,
    /// Where in the pack it begins.
    pub offset: u64,
    /// How many bytes it has there.
    pub stored_bytes: u32,
    /// How many blocks it holds.
    pub blocks: u32,
    /// How it was compressed.
    pub codec: Codec,
}

impl FrameRef {
    /// Returns how many plain bytes it holds.
    #[must_use]
    pub const fn plain_bytes(&self) -> usize {
        self.blocks as usize * collective_model::BLOCK_BYTES as usize
    }
}

#[expect(dead_code, reason = "first landing")]
fn unused(_: Bytes) {}
