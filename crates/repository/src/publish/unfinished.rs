//! The packs that a publication has stored before it was cut short, so that the next one does not send them again.
//!
//! A file of lines, one for each pack as soon as it is stored, which goes when a version is committed. It is a hint: a
//! line that a crash has torn is passed over, and a pack that is not there any more is stored again.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::time::Duration;

use collective_model::Timestamp;
use serde::{Deserialize, Serialize};

use crate::manifest::{MAX_PACKS, PackEntry};

/// How long after it was stored a pack may be used: a prune removes none that was unreached for less than a day.
const LIFE: Duration = Duration::from_secs(12 * 3600);

/// Bytes of a line, at most; one has some 300.
const LINE_BYTES: usize = 1024;

/// The file.
#[derive(Debug)]
pub(crate) struct Unfinished {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Line {
    time: Timestamp,
    pack: PackEntry,
}

impl Unfinished {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Returns the packs that may still be used, oldest first.
    pub fn packs(&self, now: Timestamp) -> Vec<PackEntry> {
        let Ok(file) = File::open(&self.path) else { return Vec::new() };
        let lines = BufReader::new(file).split(b'\n').map_while(Result::ok).take(MAX_PACKS);
        lines
            .filter(|line| line.len() <= LINE_BYTES)
            .filter_map(|line| serde_json::from_slice::<Line>(&line).ok())
            .filter(|line| line.time <= now && now.since(line.time) < LIFE)
            .map(|line| line.pack)
            .collect()
    }

    /// Notes a pack that is stored. What cannot be noted costs a second sending at worst.
    pub fn note(&self, pack: &PackEntry, now: Timestamp) {
        let line = Line { time: now, pack: *pack };
        let written = serde_json::to_vec(&line).map_err(std::io::Error::other).and_then(|line| {
            let mut file = OpenOptions::new().append(true).create(true).open(&self.path)?;
            // What a crash has torn before ends here.
            file.write_all(&[b"\n", line.as_slice(), b"\n"].concat())
        });
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "cannot note what is stored");
        }
    }

    /// Forgets all packs: a version reaches them, or nothing ever will.
    pub fn clear(&self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use collective_model::{Digest, Timestamp};

    use super::{PackEntry, Unfinished};

    fn pack(number: u8) -> PackEntry {
        let (id, table_hash) = (Digest([number; 32]), Digest([!number; 32]));
        PackEntry { id, bytes: 1 << 25, table_bytes: 4096, table_hash }
    }

    #[test]
    fn what_was_noted_is_known_for_half_a_day_and_a_torn_line_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let unfinished = Unfinished::new(directory.path().join("unfinished"));
        let hour = |hours: i64| Timestamp(1_700_000_000_000 + hours * 3_600_000);
        assert_eq!(unfinished.packs(hour(0)), []);
        unfinished.note(&pack(1), hour(0));
        let mut file = std::fs::OpenOptions::new().append(true).open(&unfinished.path).unwrap();
        file.write_all(b"{\"time\":17000").unwrap();
        unfinished.note(&pack(2), hour(8));
        assert_eq!(unfinished.packs(hour(9)), [pack(1), pack(2)]);
        assert_eq!(unfinished.packs(hour(13)), [pack(2)]);
        assert_eq!(unfinished.packs(hour(7)), [pack(1)], "a clock that was put back");
        unfinished.clear();
        unfinished.clear();
        assert_eq!(unfinished.packs(hour(9)), []);
    }
}
