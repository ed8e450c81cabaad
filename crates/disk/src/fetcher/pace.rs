//! How much is fetched ahead at a time, so that it fills the line and delays a guest little. Pure.
//!
//! The rate rule of the paper (002, 3.6): halve when too many of the recent requests were slow, double when most were fast,
//! else a small step as the last one was. What is steered is the *window*: the bytes that all requests ahead together may have
//! on the way. A demand that comes meanwhile waits about as long as those requests took, so this bounds its wait too.

use std::time::Duration;

/// The window at first: what takes 1.4 s at 1.5 Mbit/s, and half a round trip at 100.
const FIRST_BYTES: u64 = 256 << 10;
/// The least: one frame is always let through, however large.
pub(super) const LEAST_BYTES: u64 = 64 << 10;
/// The most: what 300 Mbit/s carry in 100 ms.
pub(super) const MOST_BYTES: u64 = 4 << 20;
/// The small step.
const STEP_BYTES: u64 = 64 << 10;
/// Requests in a window: the line stays busy while one is answered.
const REQUESTS: u64 = 4;
/// Requests that count as recent.
const RECENT: usize = 4;
/// Recent slow requests that are too many, and recent fast ones that are most.
const TOO_MANY: usize = 2;
const MOST: usize = 3;
/// A slow request: a guest that waited behind it would be noticed to hang.
const SLOW: Duration = Duration::from_millis(1000);
/// A fast one.
const FAST: Duration = Duration::from_millis(250);
/// The middle, for the small step.
const MIDDLE: Duration = Duration::from_millis(500);

/// The pace of fetching ahead.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    window_bytes: u64,
    recent: Vec<Duration>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { window_bytes: FIRST_BYTES, recent: Vec::with_capacity(RECENT) }
    }
}

impl Pace {
    /// Bytes that may be on the way, all together.
    pub fn window_bytes(&self) -> u64 {
        self.window_bytes
    }

    /// Bytes that one request should ask for.
    pub fn request_bytes(&self) -> u64 {
        (self.window_bytes / REQUESTS).max(LEAST_BYTES)
    }

    /// Learns from a request that was answered.
    pub fn answered(&mut self, took: Duration) {
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(took);
        let slow = self.recent.iter().filter(|took| **took > SLOW).count();
        let fast = self.recent.iter().filter(|took| **took < FAST).count();
        let window = if slow >= TOO_MANY {
            self.recent.clear();
            self.window_bytes / 2
        } else if fast >= MOST {
            self.recent.clear();
            self.window_bytes * 2
        } else if took < MIDDLE {
            self.window_bytes + STEP_BYTES
        } else {
            self.window_bytes.saturating_sub(STEP_BYTES)
        };
        self.window_bytes = window.clamp(LEAST_BYTES, MOST_BYTES);
    }
}

#[cfg(test)]
mod tests;
