//! Which reads wait for data too long, and why: what the host shows when it pauses a guest.
//!
//! Every waiting read holds a [`Wait`]. When it has waited longer than the limit it marks itself late; the oldest late one
//! is published, and withdrawn when it ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use collective_model::ErrorKind;
use tokio::sync::watch;

/// The oldest read that waits longer than the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    /// When it began to wait.
    pub since: Instant,
    /// Why.
    pub reason: Reason,
}

/// Why a read waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What can be done about it.
    pub kind: ErrorKind,
    /// What it is, in words for people.
    pub text: String,
}

/// The waits of one disk, or of all.
#[derive(Clone, Debug)]
pub(crate) struct Waits {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    late: watch::Sender<Option<Late>>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// In the order in which the waits began.
    waits: BTreeMap<u64, Late>,
}

impl Default for Waits {
    fn default() -> Self {
        let shared = Shared { state: Mutex::default(), late: watch::channel(None).0 };
        Self { shared: Arc::new(shared) }
    }
}

impl Waits {
    /// Returns what tells of the oldest late wait.
    pub fn late(&self) -> watch::Receiver<Option<Late>> {
        self.shared.late.subscribe()
    }

    fn begin(&self, since: Instant) -> Wait {
        let mut state = self.shared.lock();
        state.next += 1;
        Wait { shared: Arc::clone(&self.shared), number: state.next, since }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: &State) {
        let oldest = state.waits.values().next();
        self.late.send_if_modified(|shown| {
            let changed = shown.as_ref() != oldest;
            if changed {
                *shown = oldest.cloned();
            }
            changed
        });
    }
}

/// One wait in one list. Ends when dropped.
#[derive(Debug)]
struct Wait {
    shared: Arc<Shared>,
    number: u64,
    since: Instant,
}

impl Wait {
    /// Says that this wait is late, and why.
    fn mark(&self, reason: Reason) {
        let mut state = self.shared.lock();
        let late = Late { since: self.since, reason };
        state.waits.insert(self.number, late);
        self.shared.publish(&state);
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.waits.remove(&self.number).is_some() {
            self.shared.publish(&state);
        }
    }
}

/// The wait of one read, in every list that shows it.
#[derive(Debug)]
pub(crate) struct ReadWait {
    waits: Vec<Wait>,
    late_at: Instant,
    late: bool,
    reason: Option<Reason>,
}

impl ReadWait {
    /// Begins a wait that is late after `late_after`.
    pub fn new(lists: &[&Waits], late_after: Duration) -> Self {
        let since = Instant::now();
        let waits = lists.iter().map(|list| list.begin(since)).collect();
        Self { waits, late_at: since + late_after, late: false, reason: None }
    }

    /// Waits for a future, and says so if it takes too long.
    pub async fn during<F: Future>(&mut self, future: F) -> F::Output {
        tokio::pin!(future);
        loop {
            tokio::select! {
                biased;
                output = &mut future => return output,
                () = tokio::time::sleep_until(self.late_at.into()), if !self.late => {
                    self.late = true;
                    self.show();
                }
            }
        }
    }

    /// Says why it has to wait.
    pub fn explain(&mut self, reason: &Reason) {
        if self.reason.as_ref() != Some(reason) {
            self.reason = Some(reason.clone());
            if self.late {
                self.show();
            }
        }
    }

    fn show(&self) {
        let reason = self.reason.clone().unwrap_or_else(|| Reason {
            kind: ErrorKind::Unavailable,
            text: "the data has not come yet".to_owned(),
        });
        self.waits.iter().for_each(|wait| wait.mark(reason.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use collective_model::ErrorKind;

    use super::{Reason, Waits};

    #[test]
    fn the_oldest_late_wait_is_shown_until_it_ends() {
        let (waits, start) = (Waits::default(), Instant::now());
        let mut shown = waits.late();
        let reason = |shown: &mut tokio::sync::watch::Receiver<Option<super::Late>>| {
            shown.borrow_and_update().as_ref().map(|late| late.reason.text.clone())
        };
        let why = |text: &str| Reason { kind: ErrorKind::Unavailable, text: text.to_owned() };
        let first = waits.begin(start);
        let second = waits.begin(start + Duration::from_secs(1));
        assert_eq!(reason(&mut shown), None);
        second.mark(why("second"));
        assert_eq!(reason(&mut shown).as_deref(), Some("second"));
        first.mark(why("first"));
        assert_eq!(reason(&mut shown).as_deref(), Some("first"));
        drop(first);
        assert_eq!(reason(&mut shown).as_deref(), Some("second"));
        drop(second);
        assert_eq!(reason(&mut shown), None);
    }

    #[test]
    fn a_wait_that_ends_in_time_tells_nobody() {
        let waits = Waits::default();
        let shown = waits.late();
        drop(waits.begin(Instant::now()));
        assert!(!shown.has_changed().unwrap());
    }
}
