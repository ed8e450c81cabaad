//! What runs of damage share: a number for each run, and the kinds of damage that things at rest can take.
//!
//! A run that fails says its number, and `COLLECTIVE_SEED` takes it, or a range of them such as `1..100000`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Bytes that change places: a block of the disk, and what is found in a head or a table.
const SWAPPED_BYTES: [usize; 2] = [4096, 64];

/// Runs with the seeds from 1 to `count`, or with those that the environment says, so many at once. Returns whether there were
/// so many that each thing must have happened.
pub(crate) fn each_seed(count: u64, at_once: u64, run: impl Fn(Random) + Sync) -> bool {
    let text = std::env::var("COLLECTIVE_SEED").unwrap_or(format!("1..{}", count + 1));
    let number = |text: &str| text.parse().expect("COLLECTIVE_SEED is a number, or two as in 1..9");
    let seeds: Range<u64> = match text.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => number(&text)..number(&text) + 1,
    };
    let many = seeds.end - seeds.start >= 100;
    let take_every = &|first: u64| {
        for seed in (seeds.start + first..seeds.end).step_by(at_once as usize) {
            let _failure = SayOnFailure(seed);
            run(Random::new(seed));
        }
    };
    std::thread::scope(|scope| {
        for first in 0..at_once {
            scope.spawn(move || take_every(first));
        }
    });
    many
}

/// Does one kind of damage to one thing at rest, or two: it is flipped, cut, zeroed, swapped, another's, as it was some time
/// ago, gone, or there twice, which is under a name that `double` makes.
pub(crate) fn damage<K: Clone + Ord>(
    now: &mut BTreeMap<K, Vec<u8>>,
    history: &[BTreeMap<K, Vec<u8>>],
    random: &mut Random,
    double: impl Fn(&K, &mut Random) -> K,
) {
    let names: Vec<K> = now.keys().cloned().collect();
    let Some(name) = random.of(&names) else { return };
    let mut bytes = now[name].clone();
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
        3 => {
            let middle = bytes.len() / 2;
            let length = middle.min(SWAPPED_BYTES[random.below(2)]);
            let (left, right) = bytes.split_at_mut(middle);
            let places = [left.len(), right.len()].map(|half| random.below(half - length + 1));
            left[places[0]..places[0] + length]
                .swap_with_slice(&mut right[places[1]..places[1] + length]);
        }
        4 => {
            let other = random.of(&names).expect("there is one at least");
            let taken = now.insert(other.clone(), bytes).expect("it is one of them");
            bytes = taken;
        }
        5 | 6 => {
            let Some(older) = random.of(history) else { return };
            let all: Vec<&K> = older.keys().chain(&names).collect();
            let name = (*random.of(&all).expect("there is one at least")).clone();
            match older.get(&name) {
                Some(bytes) => now.insert(name, bytes.clone()),
                None => now.remove(&name),
            };
            return;
        }
        _ => {
            now.insert(double(name, random), bytes);
            return;
        }
    }
    now.insert(name.clone(), bytes);
}

/// The files of some directories, by their paths.
pub(crate) type Files = BTreeMap<PathBuf, Vec<u8>>;

/// What whoever has them open removes meanwhile is left out.
pub(crate) fn read_files(directories: &[PathBuf]) -> Files {
    let items = directories.iter().flat_map(|directory| std::fs::read_dir(directory).unwrap());
    let paths = items.map(|item| item.unwrap().path());
    paths.filter_map(|path| Some((path.clone(), std::fs::read(path).ok()?))).collect()
}

/// Makes files what they shall be; those that are it already are left alone.
pub(crate) fn write_files(before: &Files, after: &Files) {
    for (path, bytes) in after.iter().filter(|(path, bytes)| before.get(*path) != Some(bytes)) {
        std::fs::write(path, bytes).unwrap();
    }
    for path in before.keys().filter(|path| !after.contains_key(*path)) {
        let _ = std::fs::remove_file(path);
    }
}

/// A directory in memory where there is one: thousands of runs write much, and none of it need stay.
pub(crate) fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap()
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
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not begin alike, and none may be 0.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) as usize % limit
    }

    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        if all.is_empty() { None } else { Some(&all[self.below(all.len())]) }
    }
}
