//! What stands between plain bytes and stored bytes: nothing in a public repository, AES-256-GCM in a private one.
//!
//! Sealed bytes are a random 96-bit nonce, the ciphertext and its tag of 128 bits. The repository's id and what the bytes are for go in as
//! associated data, so nothing sealed can stand in for anything else. One key may seal 2^32 pieces before nonces may
//! repeat with a chance worth naming (NIST SP 800-38D, 8.3); at 256 KiB a frame that is 1 PiB.

use std::borrow::Cow;
use std::fmt;

use collective_model::{Error, ErrorKind, RepositoryId, Result};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

use crate::descriptor::Descriptor;
use crate::keys::{RepositorySecret, random};

/// Bytes that sealing adds: the nonce and the tag.
pub(crate) const SEAL_BYTES: usize = NONCE_BYTES + 16;
const NONCE_BYTES: usize = 12;

/// How hard small objects are compressed: as the rest.
const SMALL_LEVEL: i32 = 3;

/// What sealed bytes are for; part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Frame = 1,
    IndexPage = 2,
    Trace = 3,
}

/// A block's hash, by which equal blocks are found: 160 bits, keyed in a private repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockHash(pub [u8; BLOCK_HASH_BYTES]);

pub(crate) const BLOCK_HASH_BYTES: usize = 20;

/// Seals and opens the bytes of one repository.
pub(crate) struct Sealer {
    id: RepositoryId,
    privacy: Privacy,
}

enum Privacy {
    Public,
    Private {
        cipher: Box<LessSafeKey>,
        block_hash_key: Zeroizing<[u8; 32]>,
    },
    /// Private, and we do not have the secret: stored bytes can be checked, not read.
    Closed,
}

impl Sealer {
    pub fn new(descriptor: &Descriptor, secret: Option<&RepositorySecret>) -> Self {
        let privacy = match secret {
            _ if !descriptor.encrypted => Privacy::Public,
            None => Privacy::Closed,
            Some(secret) => Privacy::Private {
                cipher: Box::new(cipher(secret)),
                block_hash_key: Zeroizing::new(secret.block_hash_key()),
            },
        };
        Self { id: descriptor.id, privacy }
    }

    /// Tells whether plain bytes can be had at all.
    pub fn check_open(&self) -> Result<()> {
        match self.privacy {
            Privacy::Closed => Err(self.closed()),
            _ => Ok(()),
        }
    }

    /// Turns plain bytes into bytes to store.
    pub fn seal(&self, purpose: Purpose, plain: Vec<u8>) -> Result<Vec<u8>> {
        match &self.privacy {
            Privacy::Public => Ok(plain),
            Privacy::Closed => Err(self.closed()),
            Privacy::Private { cipher, .. } => {
                let nonce: [u8; NONCE_BYTES] = random();
                let mut sealed = Vec::with_capacity(plain.len() + SEAL_BYTES);
                sealed.extend_from_slice(&nonce);
                sealed.extend_from_slice(&plain);
                let tag = cipher
                    .seal_in_place_separate_tag(
                        Nonce::assume_unique_for_key(nonce),
                        Aad::from(self.associated(purpose)),
                        &mut sealed[NONCE_BYTES..],
                    )
                    .expect("a frame is far below the 64 GiB that GCM may seal at once");
                sealed.extend_from_slice(tag.as_ref());
                Ok(sealed)
            }
        }
    }

    /// Turns stored bytes into plain bytes.
    pub fn open<'a>(&self, purpose: Purpose, stored: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        match &self.privacy {
            Privacy::Public => Ok(Cow::Borrowed(stored)),
            Privacy::Closed => Err(self.closed()),
            Privacy::Private { cipher, .. } => {
                let refused = || Error::new(ErrorKind::Corrupt, "it cannot be decrypted");
                let (nonce, sealed) = stored.split_at_checked(NONCE_BYTES).ok_or_else(refused)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| refused())?;
                let mut plain = sealed.to_vec();
                let length = cipher
                    .open_in_place(nonce, Aad::from(self.associated(purpose)), &mut plain)
                    .map_err(|_| refused())?
                    .len();
                plain.truncate(length);
                Ok(Cow::Owned(plain))
            }
        }
    }

    /// Compresses and seals a small object.
    pub fn seal_small(&self, purpose: Purpose, plain: &[u8]) -> Result<Vec<u8>> {
        let compressed = zstd::bulk::compress(plain, SMALL_LEVEL).map_err(|error| {
            Error::new(ErrorKind::Internal, "cannot compress").with_source(error)
        })?;
        self.seal(purpose, compressed)
    }

    /// Opens and decompresses a small object of `limit` plain bytes at most.
    pub fn open_small(&self, purpose: Purpose, stored: &[u8], limit: usize) -> Result<Vec<u8>> {
        let compressed = self.open(purpose, stored)?;
        zstd::bulk::decompress(&compressed, limit).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "it cannot be decompressed").with_source(error)
        })
    }

    /// Hashes a block.
    pub fn block_hash(&self, block: &[u8]) -> BlockHash {
        let hash = match &self.privacy {
            Privacy::Private { block_hash_key, .. } => blake3::keyed_hash(block_hash_key, block),
            _ => blake3::hash(block),
        };
        let short = &hash.as_bytes()[..BLOCK_HASH_BYTES];
        BlockHash(short.try_into().expect("20 of 32 bytes are 20 bytes"))
    }

    fn associated(&self, purpose: Purpose) -> [u8; 17] {
        let mut associated = [purpose as u8; 17];
        associated[..16].copy_from_slice(&self.id.0);
        associated
    }

    fn closed(&self) -> Error {
        let message = format!("repository {} is private, and its secret is not here", self.id);
        Error::new(ErrorKind::Denied, message)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({})", self.id)
    }
}

fn cipher(secret: &RepositorySecret) -> LessSafeKey {
    let mut key = secret.encryption_key();
    let unbound = UnboundKey::new(&AES_256_GCM, &key).expect("AES-256 takes keys of 32 bytes");
    key.zeroize();
    LessSafeKey::new(unbound)
}

#[cfg(test)]
mod tests {
    use collective_model::{ErrorKind, RepositoryId};

    use super::{Purpose, SEAL_BYTES, Sealer};
    use crate::descriptor::{Descriptor, Kind};
    use crate::keys::RepositorySecret;

    fn sealer(secret: u8, id: u8) -> Sealer {
        let secret = RepositorySecret::new([secret; 32]);
        let descriptor = Descriptor::private(RepositoryId([id; 16]), Kind::UserDisk, &secret);
        Sealer::new(&descriptor, Some(&secret))
    }

    #[test]
    fn sealed_bytes_open_for_their_own_key_repository_and_purpose_only() {
        let sealed = sealer(1, 1).seal(Purpose::Frame, b"a diary".to_vec()).unwrap();
        assert_eq!(sealed.len(), 7 + SEAL_BYTES);
        assert_eq!(*sealer(1, 1).open(Purpose::Frame, &sealed).unwrap(), *b"a diary");
        for (other, purpose) in [
            (sealer(2, 1), Purpose::Frame),
            (sealer(1, 2), Purpose::Frame),
            (sealer(1, 1), Purpose::Trace),
        ] {
            assert_eq!(other.open(purpose, &sealed).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let sealer = sealer(1, 1);
        let sealed = sealer.seal(Purpose::Frame, b"a diary".to_vec()).unwrap();
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut damaged = sealed.clone();
                damaged[at] ^= 1 << bit;
                assert!(sealer.open(Purpose::Frame, &damaged).is_err());
            }
            assert!(sealer.open(Purpose::Frame, &sealed[..at]).is_err());
        }
    }

    #[test]
    fn equal_bytes_never_look_equal_and_block_hashes_say_nothing_outside() {
        let seal = || sealer(1, 1).seal(Purpose::Frame, vec![7; 4096]).unwrap();
        assert_ne!(seal(), seal());
        let block = [7; 4096];
        assert_eq!(sealer(1, 1).block_hash(&block), sealer(1, 1).block_hash(&block));
        assert_ne!(sealer(1, 1).block_hash(&block), sealer(2, 1).block_hash(&block));
        assert_ne!(sealer(1, 1).block_hash(&block).0, blake3::hash(&block).as_bytes()[..20]);
    }

    #[test]
    fn without_the_secret_everything_is_denied() {
        let secret = RepositorySecret::new([1; 32]);
        let descriptor = Descriptor::private(RepositoryId([1; 16]), Kind::UserDisk, &secret);
        let closed = Sealer::new(&descriptor, None);
        assert_eq!(closed.check_open().unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(closed.open(Purpose::Frame, &[0; 64]).unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(closed.seal(Purpose::Frame, vec![]).unwrap_err().kind(), ErrorKind::Denied);
    }
}
