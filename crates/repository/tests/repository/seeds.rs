//! Many runs, each from a number: a run that fails says its number, and `COLLECTIVE_SEED` takes it.

/// Runs with the seeds from 1 to `count`; or with what `COLLECTIVE_SEED` says, a seed or a range of them such as `1..100000`.
/// Returns whether there were so many that each thing must have happened.
pub fn each_seed(count: u64, mut run: impl FnMut(&mut Random)) -> bool {
    let text = std::env::var("COLLECTIVE_SEED").unwrap_or(format!("1..{}", count + 1));
    let number = |text: &str| text.parse().expect("COLLECTIVE_SEED is a number, or two as in 1..9");
    let seeds: std::ops::Range<u64> = match text.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => number(&text)..number(&text) + 1,
    };
    let many = seeds.end - seeds.start >= 100;
    for seed in seeds {
        let _failure = SayOnFailure(seed);
        run(&mut Random::new(seed));
    }
    many
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

/// Numbers that are the same in every run (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not begin alike, and none may be 0.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Draws a number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) as usize % limit
    }

    /// Happens once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// Draws one of a slice that is not empty.
    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}
