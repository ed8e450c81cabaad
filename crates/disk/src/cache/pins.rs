//! Which frames must stay: sets of hashes under the name of who holds them, kept across restarts.
//!
//! Each set is a file that is replaced as a whole. A set that was damaged is forgotten: its frames may then leave
//! early, which costs a fetch and nothing else.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use collective_model::Digest;

const MAGIC: &[u8; 8] = b"CLPINS01";
/// Bytes of a set's file that are read, at most: a million frames.
const FILE_BYTES: u64 = 64 * 1024 * 1024;

/// How the names of sets begin that are not whole yet.
const TEMPORARY_PREFIX: &str = ".tmp";

/// All sets, and how many of them hold each frame.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
    sets: HashMap<String, Vec<Digest>>,
    holders: HashMap<Digest, u32>,
}

impl Pins {
    /// Loads the sets that were kept in `directory`. What is no set, or not under its own name, is removed: a write that was cut
    /// off leaves a sound set under another name, which nobody could ever release.
    pub fn open(directory: &Path) -> std::io::Result<Self> {
        let mut pins =
            Self { directory: directory.to_owned(), sets: HashMap::new(), holders: HashMap::new() };
        for item in std::fs::read_dir(directory)? {
            let path = item?.path();
            match load(&path).filter(|(id, _)| pins.path(id) == path) {
                Some((id, frames)) => pins.hold(id, frames),
                None if is_ours(&path) => drop(std::fs::remove_file(&path)),
                None => {}
            }
        }
        Ok(pins)
    }

    /// Puts a set in the place of the one with the same name, if there is one.
    pub fn pin(&mut self, id: &str, frames: Vec<Digest>) {
        self.release(id);
        if let Err(error) = self.save(id, &frames) {
            tracing::warn!(id, %error, "a set of held frames will not outlast a restart");
        }
        self.hold(id.to_owned(), frames);
    }

    /// Forgets a set.
    pub fn unpin(&mut self, id: &str) {
        self.release(id);
        // If it stays, frames are held longer than need be.
        let _ = std::fs::remove_file(self.path(id));
    }

    /// Tells whether a frame is in any set.
    pub fn holds(&self, frame: &Digest) -> bool {
        self.holders.contains_key(frame)
    }

    fn hold(&mut self, id: String, frames: Vec<Digest>) {
        for frame in &frames {
            *self.holders.entry(*frame).or_default() += 1;
        }
        self.sets.insert(id, frames);
    }

    fn release(&mut self, id: &str) {
        for frame in self.sets.remove(id).unwrap_or_default() {
            if let Some(holders) = self.holders.get_mut(&frame) {
                *holders -= 1;
                if *holders == 0 {
                    self.holders.remove(&frame);
                }
            }
        }
    }

    fn save(&self, id: &str, frames: &[Digest]) -> std::io::Result<()> {
        let mut file =
            tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(&self.directory)?;
        file.write_all(&encode(id, frames))?;
        file.persist(self.path(id))?;
        Ok(())
    }

    /// The name is a hash: who pins may call a set anything.
    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{}.pins", &blake3::hash(id.as_bytes()).to_hex()[..32]))
    }
}

fn load(path: &Path) -> Option<(String, Vec<Digest>)> {
    let is_small = std::fs::metadata(path).is_ok_and(|it| it.len() <= FILE_BYTES);
    if is_small { decode(&std::fs::read(path).ok()?) } else { None }
}

/// Tells whether a file has a name that we give, and not a stranger's.
fn is_ours(path: &Path) -> bool {
    let temporary = |name: &str| name.starts_with(TEMPORARY_PREFIX);
    path.extension().is_some_and(|extension| extension == "pins")
        || path.file_name().and_then(|name| name.to_str()).is_some_and(temporary)
}

pub(super) fn encode(id: &str, frames: &[Digest]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend((id.len() as u64).to_le_bytes());
    out.extend(id.as_bytes());
    out.extend(frames.iter().flat_map(|frame| frame.0));
    out.extend(blake3::hash(&out).as_bytes());
    out
}

pub(super) fn decode(bytes: &[u8]) -> Option<(String, Vec<Digest>)> {
    let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if blake3::hash(body).as_bytes() != hash {
        return None;
    }
    let (length, rest) = body.strip_prefix(MAGIC)?.split_first_chunk()?;
    let (id, frames) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let (frames, rest) = frames.as_chunks();
    let id = String::from_utf8(id.to_vec()).ok()?;
    rest.is_empty().then(|| (id, frames.iter().copied().map(Digest).collect()))
}

#[cfg(test)]
mod tests {
    use collective_model::Digest;

    use super::{Pins, decode, encode};

    #[test]
    fn a_frame_is_held_until_its_last_holder_lets_go_and_across_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (shared, own) = (Digest([1; 32]), Digest([2; 32]));
        let mut pins = Pins::open(directory.path()).unwrap();
        pins.pin("a", vec![shared, own]);
        pins.pin("b", vec![shared]);
        pins.unpin("a");
        assert!(pins.holds(&shared) && !pins.holds(&own));
        let mut pins = Pins::open(directory.path()).unwrap();
        assert!(pins.holds(&shared) && !pins.holds(&own));
        pins.pin("b", vec![own]);
        assert!(!pins.holds(&shared) && pins.holds(&own));
    }

    #[test]
    fn a_set_under_a_name_that_is_not_its_own_holds_nothing_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let frame = Digest([1; 32]);
        let set = encode("a", &[frame]);
        for name in [".tmpAbCdEf", "00000000000000000000000000000000.pins"] {
            std::fs::write(directory.path().join(name), &set).unwrap();
        }
        let mut pins = Pins::open(directory.path()).unwrap();
        assert!(!pins.holds(&frame));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        pins.pin("a", vec![frame]);
        assert!(Pins::open(directory.path()).unwrap().holds(&frame));
    }

    #[test]
    fn a_damaged_set_is_no_set() {
        let bytes = encode("a/b", &[Digest([1; 32])]);
        assert_eq!(decode(&bytes), Some(("a/b".to_owned(), vec![Digest([1; 32])])));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(&damaged), None, "byte {at}");
            assert_eq!(decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
