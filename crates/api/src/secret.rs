//! Secret bytes on their way through our hands: shown by nobody, gone when dropped, and sealed at rest.
//!
//! A sealed text is AES-256-GCM (RFC 5116) with a random 96-bit nonce in front, in base64; the *purpose* is
//! authenticated with it, so that one sealed thing cannot be passed off as another.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use collective_model::{Error, ErrorKind, Result};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Thirty-two secret bytes. In JSON they are base64; `Debug` does not show them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(try_from = "String", into = "String")]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes secret bytes from where they were derived.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Draws new secret bytes.
    #[must_use]
    pub fn generate() -> Self {
        Self(random())
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl TryFrom<String> for Secret {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let text = Zeroizing::new(text);
        let bytes = STANDARD.decode(text.as_bytes()).ok().map(Zeroizing::new);
        bytes
            .and_then(|bytes| bytes.as_slice().try_into().ok())
            .map(Self)
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "a secret must be 32 bytes in base64"))
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        STANDARD.encode(secret.0)
    }
}

/// Bytes that only the holder of a key can read, and that nobody can change unseen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

impl Sealed {
    /// Seals bytes under a key for one purpose.
    #[must_use]
    pub fn seal(key: &Secret, purpose: &str, plain: &[u8]) -> Self {
        let nonce: [u8; NONCE_LEN] = random();
        let mut bytes = plain.to_vec();
        cipher(key)
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(purpose.as_bytes()),
                &mut bytes,
            )
            .expect("what is sealed here is far shorter than the cipher's limit");
        Self(STANDARD.encode([nonce.as_slice(), &bytes].concat()))
    }

    /// Opens what was sealed under the same key for the same purpose; none if it was not.
    #[must_use]
    pub fn open(&self, key: &Secret, purpose: &str) -> Option<Zeroizing<Vec<u8>>> {
        let bytes = STANDARD.decode(&self.0).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = cipher(key)
            .open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut sealed)
            .ok()?
            .len();
        sealed.truncate(length);
        Some(sealed)
    }
}

fn cipher(key: &Secret) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, &key.0).expect("AES-256 takes keys of 32 bytes");
    LessSafeKey::new(key)
}

/// Draws random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("Linux has random bytes once it has booted");
    bytes
}

#[cfg(test)]
mod tests {
    use super::{Sealed, Secret};

    #[test]
    fn what_is_sealed_opens_with_its_key_and_purpose_only() {
        let key = Secret::generate();
        let sealed = Sealed::seal(&key, "diary", b"dear diary");
        assert_eq!(sealed.open(&key, "diary").unwrap().as_slice(), b"dear diary");
        assert!(sealed.open(&key, "letter").is_none());
        assert!(sealed.open(&Secret::generate(), "diary").is_none());
        assert!(Sealed("AAAA".to_owned()).open(&key, "diary").is_none());
    }

    #[test]
    fn a_secret_crosses_json_and_is_never_shown() {
        let secret = Secret::new([200; 32]);
        let json = serde_json::to_string(&secret).unwrap();
        assert_eq!(serde_json::from_str::<Secret>(&json).unwrap(), secret);
        assert!(!format!("{secret:?}").contains("200"));
        assert!(serde_json::from_str::<Secret>("\"AAAA\"").is_err());
    }
}
