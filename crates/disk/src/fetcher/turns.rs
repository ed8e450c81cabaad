//! Who may fetch next: demand always before replay.
//!
//! Demand and replay have places of their own, so demand never queues behind replay; and while any demand waits, replay
//! keeps to one place, so that it leaves the line to demand without standing still.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The places for fetches.
#[derive(Debug)]
pub(super) struct Turns {
    demand: Arc<Semaphore>,
    replay_places: usize,
    counts: Mutex<Counts>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Demands that fetch or wait to.
    demands: usize,
    /// Replays that fetch.
    replays: usize,
}

impl Counts {
    fn replay_may_begin(self, places: usize) -> bool {
        self.replays < if self.demands == 0 { places } else { 1 }
    }
}

/// Why somebody fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A guest waits for it.
    Demand,
    /// A trace says that a guest will want it.
    Replay,
}

/// A place taken; free again when dropped.
pub(super) struct Turn {
    turns: Arc<Turns>,
    class: Class,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub fn new(demand_places: usize, replay_places: usize) -> Self {
        Self {
            demand: Arc::new(Semaphore::new(demand_places.max(1))),
            replay_places: replay_places.max(1),
            counts: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Waits for a place.
    pub async fn take(self: &Arc<Self>, class: Class) -> Turn {
        match class {
            Class::Demand => self.take_demand().await,
            Class::Replay => self.take_replay().await,
        }
    }

    async fn take_demand(self: &Arc<Self>) -> Turn {
        self.change(|counts| counts.demands += 1);
        let mut turn = Turn { turns: Arc::clone(self), class: Class::Demand, _permit: None };
        // The semaphore is never closed; if it were, the fetch would only go ahead of its turn.
        turn._permit = Arc::clone(&self.demand).acquire_owned().await.ok();
        turn
    }

    async fn take_replay(self: &Arc<Self>) -> Turn {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let begins = self.change(|counts| {
                let begins = counts.replay_may_begin(self.replay_places);
                counts.replays += usize::from(begins);
                begins
            });
            if begins {
                return Turn { turns: Arc::clone(self), class: Class::Replay, _permit: None };
            }
            changed.await;
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Counts) -> T) -> T {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.change(|counts| match self.class {
            Class::Demand => counts.demands -= 1,
            Class::Replay => counts.replays -= 1,
        });
        self.turns.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;

    use super::{Class, Counts, Turns};

    #[test]
    fn replay_keeps_to_one_place_while_demand_waits() {
        let may = |demands, replays| Counts { demands, replays }.replay_may_begin(4);
        assert!(may(0, 3) && !may(0, 4));
        assert!(may(5, 0) && !may(5, 1));
    }

    #[tokio::test]
    async fn demand_finds_a_place_when_replay_has_all_of_its_own() {
        let turns = Arc::new(Turns::new(1, 2));
        let first = turns.take(Class::Replay).await;
        let _second = turns.take(Class::Replay).await;
        let third = turns.take(Class::Replay);
        tokio::pin!(third);
        assert!(third.as_mut().now_or_never().is_none());
        let demand = turns.take(Class::Demand).await;
        assert!(turns.take(Class::Demand).now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_none());
        drop(demand);
        third.await;
    }
}
