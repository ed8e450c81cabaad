//! Damage by the thousand: a small cache that is filled, read, pinned, trimmed and opened again, whose files are in between
//! flipped, cut, zeroed, swapped, put back to what they were, doubled, or left as a power cut leaves them.
//!
//! Beside it stands a model: the frames as they were inserted. A read gives their bytes or is a miss; files never pass
//! the capacity; and what nobody pins can always leave.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use collective_model::Digest;
use collective_testing::{Random, damage, each_seed_at_once};
use tempfile::TempDir;

use super::{BLOCK, Cache, CacheOptions};
use crate::storm::{self, Files, read_files, write_files};

const RUNS: u64 = 5400;
const SECTOR: usize = 512;
/// Eight segments of four blocks or more.
const SMALL: CacheOptions = CacheOptions { capacity_bytes: 128 * 1024 };
const FRAMES: usize = 32;
/// Who pins.
const HOLDERS: [&str; 2] = ["a start", "a version that is held"];

#[test]
fn whatever_happens_to_its_files_a_read_is_right_or_a_miss() {
    let frames: Vec<_> = (0..FRAMES as u64).map(frame).collect();
    let hits = AtomicUsize::new(0);
    let many = each_seed_at_once(2, RUNS, |random| {
        let run = Run { directory: storm::directory(), frames: &frames, random, hits: 0 };
        hits.fetch_add(run.play(), Ordering::Relaxed);
    });
    assert!(!many || hits.into_inner() > 0);
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
        read_files(&["segments", "pins"].map(|below| self.directory.path().join(below)))
    }

    /// Damages files.
    fn damage(&mut self, history: &[Files]) {
        let before = self.files();
        if self.random.once_in(8) {
            return self.cut_power(&before);
        }
        let mut files = before.clone();
        damage(&mut files, history, &mut self.random, |path: &PathBuf, random| {
            double(path, random)
        });
        write_files(&before, &files);
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

/// A name such as the cache gives.
fn double(path: &Path, random: &mut Random) -> PathBuf {
    let number = random.below(64);
    path.with_file_name(match path.extension().and_then(|extension| extension.to_str()) {
        Some("pins") => format!("{number:032x}.pins"),
        Some(extension) => format!("{number:016x}.{extension}"),
        None => ".tmpfile".to_owned(),
    })
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
