//! Frames: some blocks compressed together, the unit of transfer and of checking.
//!
//! Plain blocks are compressed (or left raw if that does not make them fewer), then sealed in a private repository; the BLAKE3
//! of the result is the frame's name. On the way back the name is checked first, so that no decompressor ever
//! sees bytes that a publisher did not make; then the length must be exactly what the index says.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use collective_model::{BLOCK_BYTES, Digest, Error, ErrorKind, Result};
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use crate::backend::ObjectName;
use crate::filter;
use crate::sealer::{Purpose, Sealer};

/// Blocks in a frame at most: 1 MiB of plain bytes.
pub const MAX_FRAME_BLOCKS: u32 = 256;

/// How hard a frame is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// zstd 3 with small tables: for the bulk of a first version, most of which is read by nobody.
    Little,
    /// zstd 3, and the filter where there is code: for what travels to hosts at every start and with every update.
    Much,
    /// zstd 7 and the filter: for a small update, or the first of a large one.
    Most,
}

impl Effort {
    const ALL: usize = 3;

    fn compressor(self) -> std::io::Result<Compressor<'static>> {
        let mut compressor = Compressor::new(if self == Self::Most { 7 } else { 3 })?;
        if self == Self::Little {
            for parameter in
                [CParameter::MinMatch(5), CParameter::HashLog(14), CParameter::ChainLog(15)]
            {
                compressor.set_parameter(parameter)?;
            }
        }
        Ok(compressor)
    }
}

/// Bytes of a frame for each distance that the filter found, at most: with fewer it is no code, and grows.
const FILTERED_BYTES: usize = 64;

/// How the plain bytes of a frame became the bytes that are stored (before encryption).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As they are: compression did not make them fewer.
    Raw,
    /// zstd.
    Zstd,
    /// The filter for code, then zstd. Since format 2 of versions.
    FilteredZstd,
}

impl Codec {
    /// Returns the byte that stands for the codec in tables.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
            Self::FilteredZstd => 2,
        }
    }

    pub(crate) const fn of_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            2 => Some(Self::FilteredZstd),
            _ => None,
        }
    }
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
        self.blocks as usize * BLOCK_BYTES as usize
    }

    /// Returns where in the pack it ends.
    pub(crate) const fn end(&self) -> u64 {
        self.offset + self.stored_bytes as u64
    }

    /// Checks stored bytes and turns them into plain ones.
    ///
    /// # Errors
    /// `Corrupt`, naming pack and place; `Denied` without the secret.
    pub(crate) fn decode(&self, stored: &[u8], sealer: &Sealer) -> Result<Bytes> {
        self.decode_checked(stored, sealer).map_err(|error| {
            error.context(format!(
                "{}, frame at {}: it was not used",
                ObjectName::Pack(self.pack),
                self.offset
            ))
        })
    }

    /// Checks stored bytes against the frame's name, which needs no secret.
    pub(crate) fn check_hash(&self, stored: &[u8]) -> Result<()> {
        if *blake3::hash(stored).as_bytes() == self.hash.0 {
            return Ok(());
        }
        let message =
            format!("the frame at {} is damaged: its bytes do not have its hash", self.offset);
        Err(Error::new(ErrorKind::Corrupt, message))
    }

    fn decode_checked(&self, stored: &[u8], sealer: &Sealer) -> Result<Bytes> {
        let corrupt = |what: &str| Error::new(ErrorKind::Corrupt, what.to_owned());
        self.check_hash(stored)?;
        let opened = sealer.open(Purpose::Frame, stored)?;
        let decompress = |opened: &[u8]| {
            zstd::bulk::decompress(opened, self.plain_bytes())
                .map_err(|error| corrupt("it cannot be decompressed").with_source(error))
        };
        let plain = match self.codec {
            Codec::Raw => opened.into_owned(),
            Codec::Zstd => decompress(&opened)?,
            Codec::FilteredZstd => {
                let mut plain = decompress(&opened)?;
                filter::revert(&mut plain);
                plain
            }
        };
        if plain.len() == self.plain_bytes() {
            return Ok(plain.into());
        }
        Err(corrupt("it has another length than the index says"))
    }
}

/// A frame made of plain blocks, ready for a pack.
pub(crate) struct EncodedFrame {
    pub hash: Digest,
    pub stored: Vec<u8>,
    pub codec: Codec,
}

/// Makes frames; keeps compressors for whoever needs one next, as making one costs a tenth of using it once.
#[derive(Default)]
pub(crate) struct FrameEncoder {
    idle: [Mutex<Vec<Compressor<'static>>>; Effort::ALL],
}

impl FrameEncoder {
    pub fn encode(&self, plain: &[u8], effort: Effort, sealer: &Sealer) -> Result<EncodedFrame> {
        let filtered = (effort != Effort::Little).then(|| filtered(plain)).flatten();
        let (codec, compressed) = match filtered {
            Some(filtered) => (Codec::FilteredZstd, self.compress(&filtered, effort)?),
            None => (Codec::Zstd, self.compress(plain, effort)?),
        };
        let (codec, bytes) = match compressed.len() < plain.len() {
            true => (codec, compressed),
            false => (Codec::Raw, plain.to_vec()),
        };
        let stored = sealer.seal(Purpose::Frame, bytes)?;
        Ok(EncodedFrame { hash: Digest(*blake3::hash(&stored).as_bytes()), stored, codec })
    }

    fn compress(&self, plain: &[u8], effort: Effort) -> Result<Vec<u8>> {
        let failed =
            |error| Error::new(ErrorKind::Internal, "cannot compress a frame").with_source(error);
        let idle = || self.idle[effort as usize].lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let mut compressor = match kept {
            Some(compressor) => compressor,
            None => effort.compressor().map_err(failed)?,
        };
        let compressed = compressor.compress(plain).map_err(failed)?;
        idle().push(compressor);
        Ok(compressed)
    }
}

/// The bytes as the filter makes them, if they hold code.
fn filtered(plain: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = plain.to_vec();
    (filter::apply(&mut bytes) * FILTERED_BYTES >= plain.len()).then_some(bytes)
}

impl fmt::Debug for FrameEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameEncoder")
    }
}

#[cfg(test)]
mod tests {
    use collective_model::{Digest, ErrorKind, RepositoryId};

    use super::{Codec, Effort, FrameEncoder, FrameRef};
    use crate::descriptor::{Descriptor, Kind};
    use crate::keys::{RepositorySecret, random};
    use crate::sealer::{SEAL_BYTES, Sealer};

    fn sealers() -> [Sealer; 2] {
        let secret = RepositorySecret::new([1; 32]);
        let private = Descriptor::private(RepositoryId([1; 16]), Kind::UserDisk, &secret);
        let public = Descriptor { encrypted: false, ..private.clone() };
        [Sealer::new(&public, None), Sealer::new(&private, Some(&secret))]
    }

    fn encode(plain: &[u8], sealer: &Sealer) -> (FrameRef, Vec<u8>) {
        let frame = FrameEncoder::default().encode(plain, Effort::Much, sealer).unwrap();
        let reference = FrameRef {
            hash: frame.hash,
            pack: Digest([0; 32]),
            offset: 64,
            stored_bytes: frame.stored.len() as u32,
            blocks: (plain.len() / 4096) as u32,
            codec: frame.codec,
        };
        (reference, frame.stored)
    }

    #[test]
    fn a_frame_comes_back_as_it_was_and_incompressible_ones_do_not_grow() {
        for sealer in sealers() {
            for (plain, codec) in
                [(vec![7; 16 * 4096], Codec::Zstd), (random::<8192>().to_vec(), Codec::Raw)]
            {
                let (frame, stored) = encode(&plain, &sealer);
                assert_eq!(frame.codec, codec);
                assert!(stored.len() <= plain.len() + SEAL_BYTES);
                assert_eq!(frame.decode(&stored, &sealer).unwrap(), plain);
            }
        }
    }

    #[test]
    fn code_is_filtered_with_much_effort_and_comes_back_as_it_was() {
        let code: Vec<u8> = (0..8192_u32)
            .flat_map(|at| [0xe8].into_iter().chain((70_000 - 5 * at).to_le_bytes()))
            .chain([0x90; 4])
            .take(8 * 4096)
            .collect();
        let [public, _] = sealers();
        let little = FrameEncoder::default().encode(&code, Effort::Little, &public).unwrap();
        let (frame, stored) = encode(&code, &public);
        assert_eq!((little.codec, frame.codec), (Codec::Zstd, Codec::FilteredZstd));
        assert!(20 * stored.len() < little.stored.len());
        assert_eq!(frame.decode(&stored, &public).unwrap(), code);
    }

    #[test]
    fn every_flipped_byte_and_every_wrong_length_is_corrupt() {
        for sealer in sealers() {
            let (frame, stored) = encode(&[7; 8192], &sealer);
            for at in 0..stored.len() {
                let mut damaged = stored.clone();
                damaged[at] ^= 0x10;
                let error = frame.decode(&damaged, &sealer).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}");
                assert_eq!(
                    frame.decode(&stored[..at], &sealer).unwrap_err().kind(),
                    ErrorKind::Corrupt
                );
            }
            for blocks in [1, 3] {
                let wrong = FrameRef { blocks, ..frame };
                let error = wrong.decode(&stored, &sealer).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{blocks} blocks");
            }
        }
    }
}
