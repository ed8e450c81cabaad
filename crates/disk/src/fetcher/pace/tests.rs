//! The pace on simulated lines: filled, shared with others, and within its bounds.

use std::collections::VecDeque;

use super::*;

/// A line that sends one request after the other, and the requests on it: when each was asked for and its bytes.
struct Line {
    bytes_per_second: f64,
    round_trip: Duration,
    now: Duration,
    free_at: Duration,
    on_the_way: VecDeque<(Duration, Duration, u64)>,
}

impl Line {
    fn new(megabits: f64, round_trip_ms: u64) -> Self {
        Self {
            bytes_per_second: megabits * 125_000.0,
            round_trip: Duration::from_millis(round_trip_ms),
            now: Duration::ZERO,
            free_at: Duration::ZERO,
            on_the_way: VecDeque::new(),
        }
    }

    fn ask(&mut self, bytes: u64) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        self.free_at = self.free_at.max(self.now + self.round_trip) + takes;
        self.on_the_way.push_back((self.now, self.free_at, bytes));
    }

    fn waiting_bytes(&self) -> u64 {
        self.on_the_way.iter().map(|(_, _, bytes)| bytes).sum()
    }

    /// Fetches ahead at a pace for so many bytes; returns the share of the time that the line was busy, and the
    /// longest that a demand would have waited behind what was on the way, after the first `warm` requests.
    fn run(&mut self, pace: &mut Pace, total: u64, frame: u64, warm: usize) -> (f64, Duration) {
        let (started, mut asked, mut longest, mut requests) = (self.now, 0, Duration::ZERO, 0);
        while asked < total || !self.on_the_way.is_empty() {
            while asked < total
                && (self.on_the_way.is_empty()
                    || self.waiting_bytes() + frame <= pace.window_bytes())
            {
                let bytes = pace.request_bytes().div_ceil(frame) * frame;
                self.ask(bytes);
                asked += bytes;
                requests += 1;
                if requests > warm {
                    longest = longest.max(self.free_at.saturating_sub(self.now));
                }
            }
            let (since, until, _) = self.on_the_way.pop_front().unwrap();
            self.now = self.now.max(until);
            pace.answered(until - since);
        }
        let busy = asked as f64 / self.bytes_per_second;
        (busy / (self.now - started).as_secs_f64(), longest)
    }
}

/// A frame as a boot's are: 256 KiB compressed to a third.
const FRAME: u64 = 90_000;

#[test]
fn a_line_of_any_speed_is_filled_and_a_demand_waits_little() {
    for (megabits, round_trip_ms, least_busy, longest_ms) in
        [(1.5, 40, 0.85, 1500), (10.0, 30, 0.9, 1500), (50.0, 20, 0.9, 1200), (100.0, 1, 0.9, 800)]
    {
        let mut line = Line::new(megabits, round_trip_ms);
        let (busy, longest) = line.run(&mut Pace::default(), 25_000_000, FRAME, 8);
        assert!(busy >= least_busy, "{megabits} Mbit/s: busy {busy:.2}");
        let limit = Duration::from_millis(longest_ms);
        assert!(longest <= limit, "{megabits} Mbit/s: a demand waits {longest:?}");
    }
}

#[test]
fn a_line_that_others_fill_is_left_to_them_and_taken_back_after() {
    let mut pace = Pace::default();
    let mut line = Line::new(100.0, 10);
    line.run(&mut pace, 50_000_000, FRAME, 0);
    let alone = pace.window_bytes();
    line.bytes_per_second /= 20.0;
    line.run(&mut pace, 5_000_000, FRAME, 0);
    let crowded = pace.window_bytes();
    assert!(crowded * 4 <= alone, "{alone} to {crowded}");
    line.bytes_per_second *= 20.0;
    line.run(&mut pace, 50_000_000, FRAME, 0);
    assert!(pace.window_bytes() * 2 >= alone);
}

#[test]
fn the_window_keeps_its_bounds() {
    let mut pace = Pace::default();
    for _ in 0..100 {
        pace.answered(Duration::ZERO);
    }
    assert_eq!(pace.window_bytes(), MOST_BYTES);
    for _ in 0..100 {
        pace.answered(Duration::from_secs(60));
    }
    assert_eq!(pace.window_bytes(), LEAST_BYTES);
}
