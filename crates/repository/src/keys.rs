//! Keys: who publishes (ed25519), and the one secret behind a private repository.
//!
//! A repository has one publisher for its whole life; its public key is in `repository.json` and, which is what counts, in
//! the [`Trust`](crate::Trust) of every reader. A private repository's keys all derive from its secret, so that a person who
//! has the secret needs nothing else: encryption, hashes of blocks, and the right to publish.

use std::fmt;
use std::str::FromStr;

use collective_model::{Digest, Error, ErrorKind, Result};
use ed25519_dalek::Signer;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// What the derived keys are for; part of the format, never to be changed.
const ENCRYPTION_CONTEXT: &str = "collective 2026-11 repository v1 encryption";
const BLOCK_HASH_CONTEXT: &str = "collective 2026-11 repository v1 block hashes";
const SIGNING_CONTEXT: &str = "collective 2026-11 repository v1 signing";

/// The public key of whoever publishes a repository; written as 64 hexadecimal signs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublisherKey(pub [u8; 32]);

impl PublisherKey {
    /// Checks a signature, strictly: no weak keys, no second encoding of the same signature.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = ed25519_dalek::VerifyingKey::from_bytes(&self.0);
        let signature = ed25519_dalek::Signature::from_slice(signature);
        matches!((key, signature), (Ok(key), Ok(signature))
            if key.verify_strict(message, &signature).is_ok())
    }
}

impl fmt::Display for PublisherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Digest(self.0).fmt(f)
    }
}

impl fmt::Debug for PublisherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Digest(self.0).fmt(f)
    }
}

impl FromStr for PublisherKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digest: Result<Digest> = text.parse();
        digest.map(|digest| Self(digest.0)).map_err(|_| {
            Error::new(ErrorKind::Invalid, format!("`{text}` is not a publisher's key"))
                .with_hint("a publisher's key has 64 characters of 0-9 and a-f")
        })
    }
}

impl TryFrom<String> for PublisherKey {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<PublisherKey> for String {
    fn from(key: PublisherKey) -> Self {
        key.to_string()
    }
}

/// The private key that signs the versions of a repository. Leaves memory when dropped; never shown.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// Draws a new key.
    ///
    /// # Panics
    /// If the operating system has no random bytes, which Linux rules out once it has booted.
    #[must_use]
    pub fn generate() -> Self {
        let mut seed = random();
        let key = Self::from_seed(seed);
        seed.zeroize();
        key
    }

    /// Makes the key again from what [`seed`](Self::seed) gave.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(&seed))
    }

    /// Returns the 32 secret bytes that are the key, to be stored where only their owner reads.
    #[must_use]
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Returns the public key that checks what this one signs.
    #[must_use]
    pub fn publisher(&self) -> PublisherKey {
        PublisherKey(self.0.verifying_key().to_bytes())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.publisher())
    }
}

/// The secret of one private repository: 32 bytes that the server never sees. Leaves memory when dropped; never shown.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct RepositorySecret([u8; 32]);

impl RepositorySecret {
    /// Takes the secret that was derived or drawn elsewhere.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Draws a new secret.
    ///
    /// # Panics
    /// As [`SigningKey::generate`].
    #[must_use]
    pub fn generate() -> Self {
        Self(random())
    }

    /// Returns the secret bytes, to be stored where only their owner reads.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the key that signs this repository's versions: who can read it can publish it.
    #[must_use]
    pub fn signing_key(&self) -> SigningKey {
        SigningKey::from_seed(self.derive(SIGNING_CONTEXT))
    }

    /// Returns the key of AES-256-GCM over frames, index pages and traces.
    pub(crate) fn encryption_key(&self) -> [u8; 32] {
        self.derive(ENCRYPTION_CONTEXT)
    }

    /// Returns the key of BLAKE3 over blocks: equal blocks show as equal within this repository only.
    pub(crate) fn block_hash_key(&self) -> [u8; 32] {
        self.derive(BLOCK_HASH_CONTEXT)
    }

    fn derive(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }
}

impl fmt::Debug for RepositorySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RepositorySecret(…)")
    }
}

/// Draws random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("Linux has random bytes once it has booted");
    bytes
}

#[cfg(test)]
mod tests {
    use super::{PublisherKey, RepositorySecret, SigningKey};

    #[test]
    fn a_key_survives_its_seed_and_no_other_key_verifies_its_signature() {
        let key = SigningKey::from_seed([7; 32]);
        let signature = SigningKey::from_seed(key.seed()).sign(b"message");
        assert!(key.publisher().verifies(b"message", &signature));
        assert!(!key.publisher().verifies(b"massage", &signature));
        assert!(!SigningKey::from_seed([8; 32]).publisher().verifies(b"message", &signature));
        assert!(!key.publisher().verifies(b"message", &signature[1..]));
    }

    #[test]
    fn a_weak_public_key_verifies_nothing() {
        // The neutral element signs everything under the lenient check of RFC 8032.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(!PublisherKey(neutral).verifies(b"anything", &signature));
    }

    #[test]
    fn one_secret_gives_unrelated_keys_and_is_never_shown() {
        let secret = RepositorySecret::new([1; 32]);
        let keys = [
            secret.encryption_key(),
            secret.block_hash_key(),
            secret.signing_key().seed(),
            *secret.bytes(),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key));
        }
        assert_eq!(format!("{secret:?}"), "RepositorySecret(…)");
    }
}
