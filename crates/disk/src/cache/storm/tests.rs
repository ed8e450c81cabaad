//! Damage by the thousand: a small cache that is filled, read, pinned, trimmed and opened again, whose files are in between
//! flipped, cut, zeroed, swapped, put back to what they were, doubled, or left as a power cut leaves them.
//!
//! Beside it stands a model: the frames as they were inserted. A read gives their bytes or is a miss; files never pass
//! the capacity; and what nobody pins can always leave.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use collective_model::Digest;
use tempfile::TempDir;

use super::{BLOCK, Cache, CacheOptions};

const RUNS: u64 = 5400;
const SECTOR: usize = 512;
/// Eight segments of four blocks or more.
const SMALL: CacheOptions = CacheOptions { capacity_bytes: 128 * 1024 };
const FRAMES: usize = 32;
/// Who pins.
const HOLDERS: [&str; 2] = ["a start", "a version that is held"];

/// The files of a cache, as they were at some time.
type Files = BTreeMap<PathBuf, Vec<u8>>;

#[test]
fn whatever_happens_to_its_files_a_read_is_right_or_a_miss() {
    let frames: Vec<_> = (0..FRAMES as u64).map(frame).collect();
    let place =
        if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
    let text = std::env::var("COLLECTIVE_SEED").unwrap_or(format!("1..{}", RUNS + 1));
    let number = |text: &str| text.parse().expect("COLLECTIVE_SEED is a number, or two as in 1..9");
    let seeds: std::ops::Range<u64> = match text.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => number(&text)..number(&text) + 1,
    };
    let (mut hits, many) = (0, seeds.end - seeds.start >= 100);
    for seed in seeds {
        let _failure = SayOnFailure(seed);
        let directory = TempDir::new_in(&place).unwrap();
        hits += Run { directory, frames: &frames, random: Random::new(seed), hits: 0 }.play();
    }
    assert!(!many || hits > 0);
}

/// One cache through several lives.
struct Run<'a> {
    directory: TempDir,
    frames: &'a [(Digest, Bytes)],
    random: Random,
    hits: usize,
}

impl Run<'_> {
    fn play(mut self) -> usize {
        let mut history = Vec::new();
        for life in 0..3 {
            let cache = Cache::open_any(self.directory.path(), SMALL).unwrap();
            self.look(&cache);
            for _ in 0..8 + self.random.below(32) {
                self.step(&cache);
            }
            history.push(self.files());
            if life == 2 {
                self.leave(&cache);
                break;
            }
            // Some damage comes while the files are open.
            if self.random.once_in(4) {
                self.damage(&history);
                self.look(&cache);
            }
            drop(cache);
            for _ in 0..self.random.below(4) {
                self.damage(&history);
            }
        }
        self.hits
    }

    fn step(&mut self, cache: &Cache) {
        let frames = self.frames;
        let (hash, plain) = &frames[self.random.below(FRAMES)];
        match self.random.below(20) {
            0..10 => {
                cache.insert(*hash, plain);
                self.read(cache, hash, plain);
            }
            10..15 => self.read(cache, hash, plain),
            15 | 16 => {
                let some = (0..self.random.below(6)).map(|_| frames[self.random.below(FRAMES)].0);
                let some = some.collect();
                cache.pin(HOLDERS[self.random.below(2)], some);
            }
            17 => cache.unpin(HOLDERS[self.random.below(2)]),
            18 => drop(cache.trim(self.random.below(SMALL.capacity_bytes as usize) as u64)),
            _ => drop(cache.verify(|_| ())),
        }
    }

    /// Reads any part of a frame.
    fn read(&mut self, cache: &Cache, hash: &Digest, plain: &Bytes) {
        let start = self.random.below(plain.len());
        let mut read = vec![0; self.random.below(plain.len() - start + 1)];
        if cache.read(hash, start, &mut read) {
            assert!(read == plain[start..start + read.len()], "wrong bytes of {hash}");
            self.hits += 1;
        }
    }

    /// Reads all there is.
    fn look(&mut self, cache: &Cache) {
        for (hash, plain) in self.frames {
            let mut read = vec![0; plain.len()];
            if cache.read(hash, 0, &mut read) {
                assert!(read == *plain, "wrong bytes of {hash}");
                self.hits += 1;
            }
        }
    }

    /// Nothing is held any more: all of it can go, and all of it can come again.
    fn leave(&mut self, cache: &Cache) {
        HOLDERS.iter().for_each(|holder| cache.unpin(holder));
        cache.trim(0);
        let stats = cache.stats();
        assert_eq!((stats.frames, stats.used_bytes), (0, 0), "what nobody holds stays");
        for (hash, plain) in self.frames {
            assert!(cache.insert(*hash, plain), "{:?}", cache.stats());
            let mut read = vec![0; plain.len()];
            assert!(cache.read(hash, 0, &mut read) && read == *plain);
        }
        let segments = std::fs::read_dir(self.directory.path().join("segments")).unwrap();
        let bytes: u64 = segments.map(|item| item.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= SMALL.capacity_bytes, "{bytes} bytes");
    }

    fn files(&self) -> Files {
        let mut files = Files::new();
        for below in ["segments", "pins"] {
            for item in std::fs::read_dir(self.directory.path().join(below)).unwrap() {
                let path = item.unwrap().path();
                let bytes = std::fs::read(&path).unwrap();
                files.insert(path, bytes);
            }
        }
        files
    }

    /// Does one kind of damage to one file, or two.
    fn damage(&mut self, history: &[Files]) {
        let files = self.files();
        let random = &mut self.random;
        let Some(path) =
            random.of(&files.keys().collect::<Vec<_>>()).map(|path| path.to_path_buf())
        else {
            return;
        };
        let mut bytes = files[&path].clone();
        match random.below(8) {
            0 if !bytes.is_empty() => {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
            1 => bytes.truncate(random.below(bytes.len() + 1)),
            2 => {
                let start = random.below(bytes.len() + 1);
                let length = random.below(bytes.len() - start + 1);
                bytes[start..start + length].fill(0);
            }
            // Two blocks of one file change places, or two files do.
            3 if bytes.len() > 4 * BLOCK => {
                let middle = bytes.len() / 2;
                let (left, right) = bytes.split_at_mut(middle);
                left[64..64 + BLOCK].swap_with_slice(&mut right[..BLOCK]);
            }
            3 | 4 => {
                let other = random.of(&files.keys().collect::<Vec<_>>()).map(|it| it.to_path_buf());
                let other = other.expect("there is one file at least");
                std::fs::write(&other, &bytes).unwrap();
                bytes = files[&other].clone();
            }
            5 => return self.put_back(history),
            6 => return self.double(&path, &bytes),
            _ => return self.cut_power(&files),
        }
        std::fs::write(path, bytes).unwrap();
    }

    /// A file is again as it was, which may be gone, or there again.
    fn put_back(&mut self, history: &[Files]) {
        let Some(files) = self.random.of(history) else { return };
        let now = self.files();
        let all: Vec<_> = files.keys().chain(now.keys()).cloned().collect();
        let Some(path) = self.random.of(&all) else { return };
        match files.get(path) {
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
    }

    /// A file is there twice, under a name such as the cache gives.
    fn double(&mut self, path: &Path, bytes: &[u8]) {
        let number = self.random.below(64);
        let name = match path.extension().and_then(|extension| extension.to_str()) {
            Some("pins") => format!("{number:032x}.pins"),
            Some(extension) => format!("{number:016x}.{extension}"),
            None => ".tmpfile".to_owned(),
        };
        std::fs::write(path.with_file_name(name), bytes).unwrap();
    }

    /// Nothing was synced: of every file any sectors are there, up to any end, or it is not there.
    fn cut_power(&mut self, files: &Files) {
        let random = &mut self.random;
        let lost_in_ten = random.below(4);
        for (path, bytes) in files {
            let mut bytes = bytes.clone();
            let lost = bytes.chunks_mut(SECTOR).filter(|_| random.below(40) < lost_in_ten);
            lost.for_each(|sector| sector.fill(0));
            match random.below(8) {
                0 => bytes.truncate(random.below(bytes.len() + 1)),
                1 => {
                    std::fs::remove_file(path).unwrap();
                    continue;
                }
                _ => {}
            }
            std::fs::write(path, bytes).unwrap();
        }
    }
}

/// A frame of 1 to 3 blocks that looks like no other.
fn frame(seed: u64) -> (Digest, Bytes) {
    let mut random = Random::new(seed + 1000);
    let mut bytes = vec![0; (1 + random.below(3)) * BLOCK];
    bytes
        .chunks_exact_mut(2)
        .for_each(|two| two.copy_from_slice(&(random.below(1 << 16) as u16).to_le_bytes()));
    (Digest(*blake3::hash(&bytes).as_bytes()), bytes.into())
}

struct SayOnFailure(u64);

impl Drop for SayOnFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("COLLECTIVE_SEED={}", self.0);
        }
    }
}

/// Numbers that are the same in every run (xorshift64*).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Neighbouring seeds must not begin alike, and none may be 0.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) as usize % limit
    }

    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        if all.is_empty() { None } else { Some(&all[self.below(all.len())]) }
    }
}
