//! The cache on a real file system: full, damaged, cut off, restarted; a wrong byte is never read.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use collective_model::{Digest, ErrorKind};
use collective_testing::Random;
use tempfile::TempDir;

use super::{BLOCK, CACHE_CAPACITY_MINIMUM_BYTES, Cache, CacheOptions, CacheRead};

const SMALL: CacheOptions = CacheOptions { capacity_bytes: CACHE_CAPACITY_MINIMUM_BYTES };
const SECTOR: usize = 512;

fn open(directory: &TempDir) -> Cache {
    Cache::open(directory.path(), SMALL).unwrap()
}

/// A frame of 1 to 64 blocks that looks like no other.
fn frame(seed: u64) -> (Digest, Bytes) {
    let mut random = Random::new(seed);
    let mut bytes = vec![0; (1 + random.below(64)) * BLOCK];
    random.fill(&mut bytes);
    (Digest(*blake3::hash(&bytes).as_bytes()), bytes.into())
}

/// Reads a whole frame; fails the test if there is a wrong byte.
fn holds(cache: &Cache, hash: &Digest, plain: &Bytes) -> bool {
    let mut read = vec![0; plain.len()];
    let hit = cache.read(hash, 0, &mut read);
    assert!(!hit || read == *plain, "wrong bytes of {hash}");
    hit
}

/// Reads each block by itself; returns how many there are, and fails the test if one is wrong.
fn blocks_held(cache: &Cache, hash: &Digest, plain: &Bytes) -> usize {
    let mut read = [0; BLOCK];
    let blocks = plain.chunks(BLOCK).enumerate();
    blocks
        .filter(|(block, expected)| {
            let hit = cache.read(hash, block * BLOCK, &mut read);
            assert!(!hit || read == **expected, "wrong bytes of {hash}, block {block}");
            hit
        })
        .count()
}

fn files(directory: &TempDir) -> Vec<PathBuf> {
    let items = std::fs::read_dir(directory.path().join("segments")).unwrap();
    let mut files: Vec<_> = items.map(|item| item.unwrap().path()).collect();
    files.sort();
    files
}

fn bytes_on_disk(directory: &TempDir) -> u64 {
    files(directory).iter().map(|path| path.metadata().unwrap().len()).sum()
}

#[test]
fn any_range_of_a_frame_can_be_read_and_none_beyond_it() {
    let directory = TempDir::new().unwrap();
    let cache = open(&directory);
    let (hash, plain) = frame(3);
    assert!(cache.insert(hash, &plain));
    let mut random = Random::new(5);
    for _ in 0..300 {
        let offset = random.below(plain.len());
        let length = random.below(plain.len() - offset + 1);
        let mut read = vec![0; length];
        assert!(cache.read(&hash, offset, &mut read));
        assert!(read == plain[offset..offset + length], "{offset} {length}");
        assert_eq!(cache.read_now(&hash, offset, &mut read), CacheRead::Hit);
    }
    assert!(!cache.read(&hash, plain.len() - 1, &mut [0; 2]));
}

#[test]
fn frames_that_no_repository_has_are_not_taken() {
    let directory = TempDir::new().unwrap();
    let cache = open(&directory);
    for length in [0, 1, BLOCK - 1, BLOCK + 1, 257 * BLOCK] {
        assert!(!cache.insert(Digest([1; 32]), &vec![0; length].into()), "{length}");
    }
}

#[test]
fn a_restart_keeps_what_was_there() {
    let directory = TempDir::new().unwrap();
    let frames: Vec<_> = (0..40).map(frame).collect();
    for frames in frames.chunks(10) {
        let cache = open(&directory);
        assert!(frames.iter().all(|(hash, plain)| cache.insert(*hash, plain)));
    }
    let cache = open(&directory);
    assert!(frames.iter().all(|(hash, plain)| holds(&cache, hash, plain)));
}

#[test]
fn a_second_opener_meets_a_conflict() {
    let directory = TempDir::new().unwrap();
    let cache = open(&directory);
    assert_eq!(Cache::open(directory.path(), SMALL).unwrap_err().kind(), ErrorKind::Conflict);
    drop(cache);
    open(&directory);
}

#[test]
fn the_capacity_is_never_passed_and_what_is_read_stays() {
    let directory = TempDir::new().unwrap();
    let cache = open(&directory);
    let (favourite, favourite_plain) = frame(1000);
    let (pinned, pinned_plain) = frame(1001);
    cache.pin("boot", vec![pinned]);
    cache.insert(favourite, &favourite_plain);
    cache.insert(pinned, &pinned_plain);
    for seed in 0..500 {
        let (hash, plain) = frame(seed);
        assert!(cache.insert(hash, &plain));
        assert!(holds(&cache, &hash, &plain));
        assert!(holds(&cache, &favourite, &favourite_plain), "after {seed}");
        assert!(bytes_on_disk(&directory) <= SMALL.capacity_bytes, "after {seed}");
    }
    assert!(holds(&cache, &pinned, &pinned_plain));
    let stats = cache.stats();
    assert!(stats.evicted > 300 && stats.frames > 40, "{stats:?}");
    assert!(stats.used_bytes >= bytes_on_disk(&directory) && stats.damaged == 0, "{stats:?}");
}

#[test]
fn pins_that_fill_the_cache_refuse_others_until_they_are_released() {
    let directory = TempDir::new().unwrap();
    let cache = open(&directory);
    let frames: Vec<_> = (0..500).map(frame).collect();
    cache.pin("all", frames.iter().map(|(hash, _)| *hash).collect());
    let stored = frames.iter().take_while(|(hash, plain)| cache.insert(*hash, plain)).count();
    assert!(stored > 60 && stored < 200, "{stored}");
    assert!(frames[..stored].iter().all(|(hash, plain)| holds(&cache, hash, plain)));
    assert!(bytes_on_disk(&directory) <= SMALL.capacity_bytes);
    cache.unpin("all");
    assert!(frames[stored..].iter().all(|(hash, plain)| cache.insert(*hash, plain)));
    assert!(bytes_on_disk(&directory) <= SMALL.capacity_bytes);
}

#[test]
fn a_smaller_capacity_is_kept_from_the_start() {
    let directory = TempDir::new().unwrap();
    let large = CacheOptions { capacity_bytes: 64 << 20 };
    let cache = Cache::open(directory.path(), large).unwrap();
    (0..300).map(frame).for_each(|(hash, plain)| assert!(cache.insert(hash, &plain)));
    drop(cache);
    assert!(bytes_on_disk(&directory) > 2 * SMALL.capacity_bytes);
    let cache = open(&directory);
    assert!(bytes_on_disk(&directory) <= SMALL.capacity_bytes);
    let kept = (0..300).map(frame).filter(|(hash, plain)| holds(&cache, hash, plain)).count();
    assert!(kept > 20, "{kept}");
}

#[test]
fn one_flipped_bit_costs_one_frame_and_it_can_come_again() {
    let directory = TempDir::new().unwrap();
    let frames: Vec<_> = (0..8).map(frame).collect();
    let cache = open(&directory);
    frames.iter().for_each(|(hash, plain)| assert!(cache.insert(*hash, plain)));
    let segment = files(&directory).remove(0);
    let file = OpenOptions::new().read(true).write(true).open(&segment).unwrap();
    let length = file.metadata().unwrap().len();
    let mut random = Random::new(9);
    for _ in 0..100 {
        let at = random.below_u64(length);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << random.below(8)], at).unwrap();
        let held = frames.iter().filter(|(hash, plain)| holds(&cache, hash, plain)).count();
        assert!(held + 1 >= frames.len());
        file.write_all_at(&byte, at).unwrap();
        for (hash, plain) in &frames {
            assert!(cache.insert(*hash, plain) && holds(&cache, hash, plain));
        }
    }
}

/// Makes of a file what a power cut may leave of writes that were never synced: sectors that stayed what they were,
/// or hold what somebody else's file left there; an end that is missing; or no file at all.
fn cut_power(path: &Path, foreign: &[u8], random: &mut Random) {
    let mut bytes = std::fs::read(path).unwrap();
    let lost_in_ten = random.below(4);
    for sector in bytes.chunks_mut(SECTOR) {
        if random.below(40) < lost_in_ten {
            match random.below(2) {
                0 => sector.fill(0),
                _ => {
                    let at = random.below(foreign.len() / SECTOR - 1) * SECTOR;
                    sector.copy_from_slice(&foreign[at..at + sector.len()]);
                }
            }
        }
    }
    match random.below(6) {
        0 => bytes.truncate(random.below(bytes.len() + 1)),
        1 => return std::fs::remove_file(path).unwrap(),
        _ => {}
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn after_a_power_cut_every_read_is_right_or_a_miss() {
    let frames: Vec<_> = (0..70).map(frame).collect();
    let mut total = 0;
    for seed in 1..=24 {
        let mut random = Random::new(seed);
        let directory = TempDir::new().unwrap();
        let cache = open(&directory);
        frames.iter().for_each(|(hash, plain)| assert!(cache.insert(*hash, plain)));
        drop(cache);
        let foreign = std::fs::read(&files(&directory)[0]).unwrap();
        files(&directory).iter().for_each(|path| cut_power(path, &foreign, &mut random));
        for _ in 0..2 {
            let cache = open(&directory);
            total +=
                frames.iter().map(|(hash, plain)| blocks_held(&cache, hash, plain)).sum::<usize>();
            for (hash, plain) in &frames {
                assert!(cache.insert(*hash, plain));
                holds(&cache, hash, plain);
            }
        }
    }
    let all = 48 * frames.iter().map(|(_, plain)| plain.len() / BLOCK).sum::<usize>();
    assert!(total > all / 2 && total < all, "seeds 1 to 24: {total} of {all}");
}

#[test]
fn foreign_files_and_tables_without_segments_do_no_harm() {
    let directory = TempDir::new().unwrap();
    drop(open(&directory));
    let segments = directory.path().join("segments");
    for name in ["notes.txt", "0000000000000003.table", "zz.segment", "0000000000000007.segment"] {
        File::create(segments.join(name)).unwrap();
    }
    let cache = open(&directory);
    let (hash, plain) = frame(1);
    assert!(cache.insert(hash, &plain) && holds(&cache, &hash, &plain));
    assert!(!segments.join("0000000000000003.table").exists());
}

#[test]
fn readers_beside_a_writer_that_evicts_see_right_bytes_only() {
    let directory = TempDir::new().unwrap();
    let cache = open(&directory);
    let frames: HashMap<_, _> = (0..150).map(frame).collect();
    let hits = std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..3 {
                frames.iter().for_each(|(hash, plain)| assert!(cache.insert(*hash, plain)));
            }
        });
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let pass = || frames.iter().filter(|(hash, plain)| holds(&cache, hash, plain));
                    (0..6).map(|_| pass().count()).sum::<usize>()
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).sum::<usize>()
    });
    assert!(hits > 0);
    assert_eq!(cache.stats().damaged, 0);
}

#[test]
fn a_look_at_everything_finds_what_is_damaged_and_a_trim_leaves_what_is_pinned() {
    let directory = TempDir::new().unwrap();
    let frames: Vec<_> = (0..60).map(frame).collect();
    let cache = open(&directory);
    for (hash, plain) in &frames {
        assert!(cache.insert(*hash, plain));
    }
    assert_eq!(cache.verify(|_| ()).damaged, 0);
    let file = OpenOptions::new().write(true).open(files(&directory).remove(0)).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    file.write_all_at(&[7; SECTOR], middle).unwrap();
    let found = cache.verify(|_| ());
    assert_eq!((found.frames, found.damaged), (60, 1));
    let again = cache.verify(|_| ());
    assert_eq!((again.frames, again.damaged), (59, 0));

    let pinned = frames.iter().find(|(hash, _)| cache.contains(hash)).unwrap();
    cache.pin("start", vec![pinned.0]);
    let freed = cache.trim(1 << 20);
    assert!(freed > 0 && cache.stats().used_bytes <= 1 << 20, "{:?}", cache.stats());
    assert!(holds(&cache, &pinned.0, &pinned.1));
    cache.unpin("start");
    cache.trim(0);
    assert_eq!((cache.stats().used_bytes, cache.stats().frames), (0, 0));
    assert_eq!(bytes_on_disk(&directory), 0);
    assert!(cache.insert(frames[1].0, &frames[1].1) && holds(&cache, &frames[1].0, &frames[1].1));
}
