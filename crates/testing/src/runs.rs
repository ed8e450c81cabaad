//! Many runs, each from a number: a run that fails says its number, and `COLLECTIVE_SEED` takes it, or a range of them such as
//! `1..100000`.

use std::ops::Range;

use crate::random::Random;

/// From so many runs on each thing must have happened that can.
const MANY: u64 = 100;

/// Runs with the seeds from 1 to `count`, or with those that the environment says. Returns whether there were so many that each
/// thing must have happened.
///
/// # Panics
/// If the environment says no seeds.
pub fn each_seed(count: u64, mut run: impl FnMut(Random)) -> bool {
    let seeds = seeds(count);
    seeds.clone().for_each(|seed| one(seed, &mut run));
    seeds.end - seeds.start >= MANY
}

/// As [`each_seed`], so many at once: for runs that mostly wait.
///
/// # Panics
/// If the environment says no seeds.
pub fn each_seed_at_once(at_once: u64, count: u64, run: impl Fn(Random) + Sync) -> bool {
    let seeds = seeds(count);
    let take_every = &|first: u64| {
        let own = seeds.clone().skip(first as usize).step_by(at_once as usize);
        own.for_each(|seed| one(seed, &run));
    };
    std::thread::scope(|scope| {
        for first in 0..at_once {
            scope.spawn(move || take_every(first));
        }
    });
    seeds.end - seeds.start >= MANY
}

fn seeds(count: u64) -> Range<u64> {
    let text = std::env::var("COLLECTIVE_SEED").unwrap_or_else(|_| format!("1..{}", count + 1));
    let number = |text: &str| text.parse().expect("COLLECTIVE_SEED is a number, or two as in 1..9");
    match text.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => number(&text)..number(&text) + 1,
    }
}

fn one(seed: u64, mut run: impl FnMut(Random)) {
    let _failure = SayOnFailure(seed);
    run(Random::new(seed));
}

struct SayOnFailure(u64);

impl Drop for SayOnFailure {
    #[expect(clippy::print_stdout, reason = "a test that fails says how to run it again")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("COLLECTIVE_SEED={}", self.0);
        }
    }
}
