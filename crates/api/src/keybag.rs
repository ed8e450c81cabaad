//! What a password opens: two keys from one password, and the user's secret that is wrapped under one of them.
//!
//! ```text
//! password ──argon2id, salt──▶ root ──▶ proof     goes to the server, which stores argon2id of it
//!                                  └──▶ wrap key  never leaves the device
//! user secret (random, for ever) ── sealed under the wrap key, and under a recovery key ──▶ keybag, at the server
//! user secret + repository id ──▶ secret of that repository
//! ```
//! The server can check the password and keep the keybag, and can read neither the secret nor any user disk
//! (docs/decisions/0004-two-keys-from-one-password.md).

use std::fmt;
use std::str::FromStr;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use collective_model::{Error, ErrorKind, RepositoryId, Result, ResultExt};
use collective_repository::RepositorySecret;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::secret::{Sealed, Secret, random};

const PROOF_CONTEXT: &str = "collective 2026-11 password proof";
const WRAP_CONTEXT: &str = "collective 2026-11 password wrap key";
const REPOSITORY_CONTEXT: &str = "collective 2026-11 repository secret of a user";
const PASSWORD_PURPOSE: &str = "user secret under password";
const RECOVERY_PURPOSE: &str = "user secret under recovery key";

/// Signs in a password, at least: NIST SP 800-63B.
pub const PASSWORD_SIGNS_MIN: usize = 8;
/// Bytes in a password, at most: argon2id is fed no novels.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// What argon2id is given beside the password. The server keeps it and tells it to whoever wants to log in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasswordParameters {
    /// Sixteen random bytes, in base64.
    pub salt: Salt,
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
}

/// A salt; its bytes are in no way secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Salt(pub [u8; 16]);

impl TryFrom<String> for Salt {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "a salt must be 16 bytes in base64"))
    }
}

impl From<Salt> for String {
    fn from(salt: Salt) -> Self {
        STANDARD.encode(salt.0)
    }
}

impl PasswordParameters {
    /// Memory and passes below which a device refuses to derive (OWASP, 2023), so that a lying server cannot make the proof cheap
    /// to guess from; and above which it refuses, so that it cannot stall the device.
    const MEMORY_KIB: std::ops::RangeInclusive<u32> = 19_456..=1_048_576;
    const PASSES: std::ops::RangeInclusive<u32> = 2..=16;

    /// Draws a salt for a new password.
    #[must_use]
    pub fn generate() -> Self {
        Self::with_salt(random())
    }

    /// Returns today's parameters with a given salt.
    #[must_use]
    pub const fn with_salt(salt: [u8; 16]) -> Self {
        Self { salt: Salt(salt), memory_kib: *Self::MEMORY_KIB.start(), passes: 2 }
    }
}

/// What a device derives from a password.
#[derive(Clone, Debug)]
pub struct PasswordKeys {
    /// Shows the server that the password is known.
    pub proof: Secret,
    /// Opens the keybag, and the device's own key at rest.
    pub wrap: Secret,
}

impl PasswordKeys {
    /// Derives both keys. Takes some 50 ms of a processor and 19 MB, on purpose.
    ///
    /// # Errors
    /// `Invalid` for an empty or overlong password; `Denied` for parameters that are too weak or too costly.
    pub fn derive(password: &str, parameters: &PasswordParameters) -> Result<Self> {
        if password.is_empty() || password.len() > PASSWORD_BYTES_MAX {
            let message = format!("a password has 1 to {PASSWORD_BYTES_MAX} bytes");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let PasswordParameters { salt, memory_kib, passes } = parameters;
        if !PasswordParameters::MEMORY_KIB.contains(memory_kib)
            || !PasswordParameters::PASSES.contains(passes)
        {
            let message = format!(
                "the server asks for a password derivation with {memory_kib} KiB and {passes} passes, out of bounds"
            );
            return Err(Error::new(ErrorKind::Denied, message));
        }
        let failed = || "cannot derive keys from the password".to_owned();
        let settings = Params::new(*memory_kib, *passes, 1, Some(32)).map_err(|cause| {
            Error::new(ErrorKind::Internal, failed()).with_source(cause.to_string())
        })?;
        let mut root = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, settings)
            .hash_password_into(password.as_bytes(), &salt.0, root.as_mut())
            .map_err(|cause| {
                Error::new(ErrorKind::Internal, failed()).with_source(cause.to_string())
            })?;
        let key = |context| Secret::new(blake3::derive_key(context, root.as_ref()));
        Ok(Self { proof: key(PROOF_CONTEXT), wrap: key(WRAP_CONTEXT) })
    }
}

/// Checks a password that somebody wants to set.
///
/// # Errors
/// `Invalid`, saying the rule.
pub fn check_new_password(password: &str) -> Result<()> {
    let signs = password.chars().count();
    if signs >= PASSWORD_SIGNS_MIN && password.len() <= PASSWORD_BYTES_MAX {
        return Ok(());
    }
    let message = format!("the password has {signs} characters");
    Err(Error::new(ErrorKind::Invalid, message)
        .with_hint(format!("a password has at least {PASSWORD_SIGNS_MIN} characters")))
}

/// The secret from which all keys of one user's repositories come. Drawn once, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserSecret(Secret);

impl UserSecret {
    /// Draws the secret of a new user.
    #[must_use]
    pub fn generate() -> Self {
        Self(Secret::generate())
    }

    /// Derives the secret of one repository.
    #[must_use]
    pub fn repository_secret(&self, id: RepositoryId) -> RepositorySecret {
        let material = Zeroizing::new([self.0.bytes().as_slice(), &id.0].concat());
        RepositorySecret::new(blake3::derive_key(REPOSITORY_CONTEXT, &material))
    }
}

/// The user's secret, wrapped twice. The server stores it and cannot open it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keybag {
    password: Sealed,
    recovery: Sealed,
}

impl Keybag {
    /// Wraps the secret of a new user; the recovery key is to be shown once and kept on paper.
    #[must_use]
    pub fn create(secret: &UserSecret, keys: &PasswordKeys) -> (Self, RecoveryKey) {
        let recovery = RecoveryKey(random());
        let bytes = secret.0.bytes();
        let keybag = Self {
            password: Sealed::seal(&keys.wrap, PASSWORD_PURPOSE, bytes),
            recovery: Sealed::seal(&recovery.key(), RECOVERY_PURPOSE, bytes),
        };
        (keybag, recovery)
    }

    /// Opens the bag with the password.
    ///
    /// # Errors
    /// `Corrupt` if it does not open: the password was right for the server, so the bag is damaged or another's.
    pub fn open(&self, keys: &PasswordKeys) -> Result<UserSecret> {
        Self::secret(self.password.open(&keys.wrap, PASSWORD_PURPOSE)).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "the keybag does not open with this password")
                .with_hint("an administrator can set a new password with the recovery key")
        })
    }

    /// Wraps the same secret under a new password, with the recovery key as the proof of the right to.
    ///
    /// # Errors
    /// `Denied` if it is another's recovery key.
    pub fn recover(&self, recovery: &RecoveryKey, keys: &PasswordKeys) -> Result<Self> {
        let opened = self.recovery.open(&recovery.key(), RECOVERY_PURPOSE);
        let secret = Self::secret(opened).ok_or_else(|| {
            Error::new(ErrorKind::Denied, "this is not the recovery key of this user")
        })?;
        Ok(self.rewrap(&secret, keys))
    }

    /// Wraps the same secret under a new password; the recovery key stays.
    #[must_use]
    pub fn rewrap(&self, secret: &UserSecret, keys: &PasswordKeys) -> Self {
        let password = Sealed::seal(&keys.wrap, PASSWORD_PURPOSE, secret.0.bytes());
        Self { password, recovery: self.recovery.clone() }
    }

    fn secret(opened: Option<Zeroizing<Vec<u8>>>) -> Option<UserSecret> {
        let bytes: [u8; 32] = opened?.as_slice().try_into().ok()?;
        Some(UserSecret(Secret::new(bytes)))
    }
}

/// Opens a keybag when the password is lost: 20 random bytes, written as eight groups of four characters.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct RecoveryKey([u8; 20]);

/// Base32 of RFC 4648 in lower case: no sign looks like another when read from paper, but `0` and `1` that are not in it.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

impl RecoveryKey {
    fn key(&self) -> Secret {
        Secret::new(blake3::derive_key("collective 2026-11 recovery wrap key", &self.0))
    }
}

impl fmt::Display for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (group, bytes) in self.0.chunks_exact(5).enumerate() {
            let value = bytes.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
            for at in 0..8 {
                let separator = (at == 4 || at == 0 && group > 0).then_some('-');
                separator.map_or(Ok(()), |sign| write!(f, "{sign}"))?;
                let digit = value >> (35 - 5 * at) & 31;
                write!(f, "{}", char::from(BASE32[digit as usize]))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(…)")
    }
}

impl FromStr for RecoveryKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = || {
            Error::new(ErrorKind::Invalid, "this is not a recovery key")
                .with_hint("it has eight groups of four signs of a-z and 2-7")
        };
        let digits: Zeroizing<Vec<u8>> = text
            .chars()
            .filter(|sign| !matches!(sign, '-' | ' '))
            .map(|sign| {
                let sign = u8::try_from(sign.to_ascii_lowercase()).ok()?;
                BASE32.iter().position(|known| *known == sign).map(|at| at as u8)
            })
            .collect::<Option<Vec<u8>>>()
            .ok_or_else(refused)?
            .into();
        if digits.len() != 32 {
            return Err(refused());
        }
        let mut key = [0; 20];
        for (bytes, digits) in key.chunks_exact_mut(5).zip(digits.chunks_exact(8)) {
            let value = digits.iter().fold(0_u64, |value, digit| value << 5 | u64::from(*digit));
            bytes.copy_from_slice(&value.to_be_bytes()[3..]);
        }
        Ok(Self(key))
    }
}

/// Reads a password from what a terminal or a file gave: without the line's end.
///
/// # Errors
/// `Invalid` if it is not UTF-8.
pub fn read_password(bytes: Vec<u8>) -> Result<Zeroizing<String>> {
    let text = String::from_utf8(bytes)
        .or_error(ErrorKind::Invalid, || "the password is not UTF-8".to_owned())?;
    let text = Zeroizing::new(text);
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

#[cfg(test)]
mod tests {
    use collective_model::{ErrorKind, RepositoryId};

    use super::{Keybag, PasswordKeys, PasswordParameters, RecoveryKey, UserSecret};

    fn keys(password: &str, salt: u8) -> PasswordKeys {
        PasswordKeys::derive(password, &PasswordParameters::with_salt([salt; 16])).unwrap()
    }

    #[test]
    fn the_proof_the_wrap_key_and_other_salts_have_nothing_in_common() {
        let (one, same, other) = (keys("secret", 1), keys("secret", 1), keys("secret", 2));
        assert_eq!((&one.proof, &one.wrap), (&same.proof, &same.wrap));
        assert_ne!(one.proof, one.wrap);
        assert_ne!(one.proof, other.proof);
    }

    #[test]
    fn a_keybag_opens_with_its_password_and_recovers_with_its_paper_key() {
        let secret = UserSecret::generate();
        let (bag, paper) = Keybag::create(&secret, &keys("first", 1));
        assert_eq!(bag.open(&keys("first", 1)).unwrap(), secret);
        assert_eq!(bag.open(&keys("other", 1)).unwrap_err().kind(), ErrorKind::Corrupt);

        let typed: RecoveryKey =
            paper.to_string().to_uppercase().replace('-', " ").parse().unwrap();
        let renewed = bag.recover(&typed, &keys("second", 3)).unwrap();
        assert_eq!(renewed.open(&keys("second", 3)).unwrap(), secret);
        let (_, foreign) = Keybag::create(&secret, &keys("first", 1));
        let refused = bag.recover(&foreign, &keys("second", 3)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied);
    }

    #[test]
    fn each_repository_has_a_secret_of_its_own() {
        let secret = UserSecret::generate();
        let (one, two) = (RepositoryId([1; 16]), RepositoryId([2; 16]));
        assert_eq!(secret.repository_secret(one), secret.repository_secret(one));
        assert_ne!(secret.repository_secret(one), secret.repository_secret(two));
    }

    #[test]
    fn weak_or_endless_parameters_of_a_server_are_refused() {
        let good = PasswordParameters::with_salt([1; 16]);
        for (memory_kib, passes) in [(8, 2), (19_456, 1), (u32::MAX, 2), (19_456, 1000)] {
            let bad = PasswordParameters { memory_kib, passes, ..good.clone() };
            assert_eq!(PasswordKeys::derive("p", &bad).unwrap_err().kind(), ErrorKind::Denied);
        }
    }

    #[test]
    fn a_recovery_key_reads_like_paper_and_hides_from_logs() {
        let paper = RecoveryKey([0xff; 20]);
        assert_eq!(paper.to_string(), ["7777"; 8].join("-"));
        assert_eq!(format!("{paper:?}"), "RecoveryKey(…)");
        for text in ["", "abcd", &"1".repeat(32), &"a".repeat(33)] {
            assert!(text.parse::<RecoveryKey>().is_err(), "{text}");
        }
    }
}
