//! Who may fetch next: demand always, then what a trace foretells, then what is only wished to be here.
//!
//! Demand has places of its own and never queues behind the others. What is fetched ahead shares a window of bytes (`pace`);
//! while any demand is under way a replay keeps to one request, so that it leaves the line to demand without standing still,
//! and a prefetch begins none; nor does it while a replay waits.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::pace::Pace;

/// The places for fetches.
#[derive(Debug)]
pub(super) struct Turns {
    demand: Arc<Semaphore>,
    ahead: Mutex<Ahead>,
    changed: Notify,
}

/// What is under way, and waits to be.
#[derive(Clone, Debug, Default)]
struct Ahead {
    pace: Pace,
    /// Demands that fetch or wait to.
    demands: usize,
    /// Replays that wait.
    replays_waiting: usize,
    /// Requests ahead that are under way, and their bytes.
    requests: usize,
    bytes: u64,
}

impl Ahead {
    /// Tells whether a request ahead may begin; one alone always may, however large.
    fn may_begin(&self, class: Class, bytes: u64) -> bool {
        let fits = self.requests == 0 || self.bytes + bytes <= self.pace.window_bytes();
        match class {
            Class::Demand => true,
            Class::Replay => fits && (self.demands == 0 || self.requests == 0),
            Class::Prefetch => fits && self.demands == 0 && self.replays_waiting == 0,
        }
    }
}

/// Why somebody fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A guest waits for it.
    Demand,
    /// A trace says that a guest will want it.
    Replay,
    /// Somebody wishes it to be here.
    Prefetch,
}

/// A place taken; free again when dropped.
pub(super) struct Turn {
    turns: Arc<Turns>,
    class: Class,
    bytes: u64,
    since: Instant,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub fn new(demand_places: usize) -> Self {
        Self {
            demand: Arc::new(Semaphore::new(demand_places.max(1))),
            ahead: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Bytes that one request ahead should ask for now.
    pub fn request_bytes(&self) -> u64 {
        self.change(|ahead| ahead.pace.request_bytes())
    }

    /// Waits for a place for so many stored bytes.
    pub async fn take(self: &Arc<Self>, class: Class, bytes: u64) -> Turn {
        if class == Class::Demand {
            self.change(|ahead| ahead.demands += 1);
            let mut turn = self.turn(class, bytes);
            // The semaphore is never closed; if it were, the fetch would only go ahead of its turn.
            turn._permit = Arc::clone(&self.demand).acquire_owned().await.ok();
            return turn;
        }
        let _waiting = (class == Class::Replay).then(|| Waiting::begin(self));
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let begins = self.change(|ahead| {
                let begins = ahead.may_begin(class, bytes);
                ahead.requests += usize::from(begins);
                ahead.bytes += if begins { bytes } else { 0 };
                begins
            });
            if begins {
                return self.turn(class, bytes);
            }
            changed.await;
        }
    }

    fn turn(self: &Arc<Self>, class: Class, bytes: u64) -> Turn {
        Turn { turns: Arc::clone(self), class, bytes, since: Instant::now(), _permit: None }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Ahead) -> T) -> T {
        change(&mut self.ahead.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Turn {
    /// Gives the place back after an answer, which the pace learns from.
    pub fn answered(self) {
        if self.class != Class::Demand {
            let took = self.since.elapsed();
            self.turns.change(|ahead| ahead.pace.answered(took));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.change(|ahead| match self.class {
            Class::Demand => ahead.demands -= 1,
            Class::Replay | Class::Prefetch => {
                ahead.requests -= 1;
                ahead.bytes -= self.bytes;
            }
        });
        self.turns.changed.notify_waiters();
    }
}

/// A replay in line.
struct Waiting<'a>(&'a Turns);

impl<'a> Waiting<'a> {
    fn begin(turns: &'a Turns) -> Self {
        turns.change(|ahead| ahead.replays_waiting += 1);
        Self(turns)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.change(|ahead| ahead.replays_waiting -= 1);
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;

    use super::super::pace::LEAST_BYTES;
    use super::{Ahead, Class, Turns};

    #[test]
    fn what_is_ahead_shares_a_window_and_leaves_the_line_to_demand() {
        let ahead = |demands, replays_waiting, requests| Ahead {
            demands,
            replays_waiting,
            requests,
            bytes: requests as u64 * LEAST_BYTES,
            ..Ahead::default()
        };
        let may = |class, ahead: Ahead| ahead.may_begin(class, LEAST_BYTES);
        assert!(may(Class::Replay, ahead(0, 0, 3)) && !may(Class::Replay, ahead(0, 0, 4)));
        assert!(may(Class::Replay, ahead(5, 0, 0)) && !may(Class::Replay, ahead(5, 0, 1)));
        assert!(may(Class::Prefetch, ahead(0, 0, 3)) && !may(Class::Prefetch, ahead(0, 0, 4)));
        assert!(!may(Class::Prefetch, ahead(1, 0, 0)) && !may(Class::Prefetch, ahead(0, 1, 0)));
        assert!(ahead(0, 0, 0).may_begin(Class::Prefetch, u64::MAX), "one alone always may");
    }

    #[tokio::test]
    async fn demand_finds_a_place_when_what_is_ahead_fills_the_window() {
        let turns = Arc::new(Turns::new(1));
        let first = turns.take(Class::Replay, u64::MAX / 2).await;
        let third = turns.take(Class::Replay, 1);
        let last = turns.take(Class::Prefetch, 1);
        tokio::pin!(third, last);
        assert!(third.as_mut().now_or_never().is_none());
        let demand = turns.take(Class::Demand, 1).await;
        assert!(turns.take(Class::Demand, 1).now_or_never().is_none());
        assert!(last.as_mut().now_or_never().is_none());
        drop(first);
        let third = third.await;
        assert!(last.as_mut().now_or_never().is_none());
        drop(demand);
        last.await.answered();
        third.answered();
    }
}
