//! How fast bytes are worked through, and how long what is left takes. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The time that a speed is taken over: long enough that it does not jump, short enough that it follows the line.
const WINDOW: Duration = Duration::from_secs(15);

/// No speed is said before this much is known.
const LEAST: Duration = Duration::from_secs(2);

/// Reports nearer to each other than this are one.
const POINT_EVERY: Duration = Duration::from_millis(500);

/// The speed of one stage of a piece of work.
#[derive(Debug, Default)]
pub struct Speed {
    stage: String,
    points: VecDeque<(Instant, u64)>,
}

impl Speed {
    /// Takes how far a stage is; returns bytes a second, once that is known.
    pub fn measure(&mut self, stage: &str, done_bytes: u64, now: Instant) -> Option<u64> {
        let went_back = self.points.back().is_some_and(|(_, last)| *last > done_bytes);
        if self.stage != stage || went_back {
            stage.clone_into(&mut self.stage);
            self.points.clear();
        }
        let since = |at: &Instant| now.saturating_duration_since(*at);
        if self.points.back().is_none_or(|(at, _)| since(at) >= POINT_EVERY) {
            self.points.push_back((now, done_bytes));
        }
        while self.points.len() > 2 && self.points.get(1).is_some_and(|(at, _)| since(at) > WINDOW)
        {
            self.points.pop_front();
        }
        let (begun, before) = self.points.front()?;
        let took = since(begun);
        (took >= LEAST).then(|| ((done_bytes - before) as f64 / took.as_secs_f64()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Speed;

    #[test]
    fn a_speed_is_that_of_the_last_seconds_of_this_stage() {
        let (mut speed, begin) = (Speed::default(), Instant::now());
        let mut at = |stage: &str, tenths: u64, done| {
            speed.measure(stage, done, begin + Duration::from_millis(100 * tenths))
        };
        assert_eq!(at("a", 0, 0), None);
        assert_eq!(at("a", 19, 1900), None);
        assert_eq!(at("a", 20, 2000), Some(1000));
        // Ten times as fast: after the window nothing else counts.
        for tenths in 21..300 {
            at("a", tenths, 2000 + 1000 * (tenths - 20));
        }
        assert_eq!(at("a", 300, 282_000), Some(10_000));
        assert_eq!(at("b", 301, 282_000), None, "another stage");
        assert_eq!(at("b", 330, 0), None, "it begins again");
        assert_eq!(at("b", 351, 0), Some(0));
    }
}
