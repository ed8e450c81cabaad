//! The head: how `latest` is written, and the rule by which it moves. Pure; backends keep the bytes.

use collective_model::{Epoch, Error, ErrorKind, Result, Version};

use super::Commit;

/// Writes `latest`: the number, and 16 hexadecimal signs by which a damaged number is told from another number.
#[must_use]
pub fn encode_latest(version: Version) -> String {
    let number = version.to_string();
    let check = blake3::derive_key("collective 2026-11 repository v1 latest", number.as_bytes());
    let check = u64::from_be_bytes(check[..8].try_into().expect("8 of 32 bytes are 8 bytes"));
    format!("{number} {check:016x}\n")
}

/// Reads `latest`.
///
/// # Errors
/// `Corrupt` for bytes that [`encode_latest`] did not write.
pub fn decode_latest(bytes: &[u8]) -> Result<Version> {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.split_once(' '))
        .and_then(|(number, _)| number.parse().ok())
        .filter(|version| encode_latest(*version).as_bytes() == bytes)
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, "latest is damaged"))
}

/// Decides whether a commit may move the head. `epoch` is that of the version at the head.
///
/// # Errors
/// `Conflict`, naming the head, or the two epochs.
pub fn check_commit(head: Option<Version>, epoch: Epoch, commit: &Commit) -> Result<()> {
    let version = commit.version;
    // A copy begins where its source does, which may have lost its first versions.
    if let Some(head) = head
        && version != Version::after(Some(head))
    {
        let message =
            format!("version {version} cannot be published: the latest version is {head}");
        return Err(Error::new(ErrorKind::Conflict, message)
            .with_hint("somebody else published; look at the latest version and try again"));
    }
    if commit.epoch < epoch {
        let message = format!(
            "version {version} cannot be published: the lock with number {} is over, {epoch} has published since",
            commit.epoch
        );
        return Err(Error::new(ErrorKind::Conflict, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use collective_model::{Epoch, ErrorKind, Version};

    use super::{Commit, check_commit, decode_latest, encode_latest};

    fn version(number: u64) -> Version {
        Version::new(number).unwrap()
    }

    #[test]
    fn every_flipped_bit_of_latest_is_corrupt() {
        let bytes = encode_latest(version(107)).into_bytes();
        assert_eq!(decode_latest(&bytes).unwrap(), version(107));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert_eq!(decode_latest(&damaged).unwrap_err().kind(), ErrorKind::Corrupt);
            }
            assert_eq!(decode_latest(&bytes[..at]).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn the_head_begins_anywhere_moves_one_up_and_never_under_an_older_lock() {
        let check = |head: Option<u64>, at_head: u64, number: u64, epoch: u64| {
            let commit =
                Commit { version: version(number), manifest: Bytes::new(), epoch: Epoch(epoch) };
            check_commit(head.map(version), Epoch(at_head), &commit).is_ok()
        };
        assert!(check(None, 0, 1, 0));
        assert!(check(Some(7), 3, 8, 3));
        assert!(check(Some(7), 3, 8, 4));
        assert!(!check(Some(7), 3, 8, 2));
        assert!(!check(Some(7), 3, 7, 3));
        assert!(!check(Some(7), 3, 9, 3));
        assert!(check(None, 0, 7, 0));
    }
}
