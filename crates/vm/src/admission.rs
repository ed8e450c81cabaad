//! Who may run now: a pure queue in front of this computer's memory.
//!
//! Machines are admitted in the order in which they asked. The first in line is never overtaken, so a large machine is not starved by
//! small ones. Whoever was admitted holds its memory until it is released.

use std::collections::{BTreeMap, VecDeque};

use collective_model::{Error, ErrorKind, Result};

/// Machines that may wait: more is a mistake of whoever asks, and is refused.
pub const WAITING: usize = 64;

/// What this computer gives to machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Memory of all machines together, in MiB.
    pub memory_mib: u64,
    /// How many machines run at once.
    pub machines: usize,
}

/// The queue; `Id` names a machine.
#[derive(Clone, Debug)]
pub struct Admission<Id> {
    capacity: Capacity,
    running: BTreeMap<Id, u64>,
    waiting: VecDeque<Asked<Id>>,
}

#[derive(Clone, Debug)]
struct Asked<Id> {
    id: Id,
    memory_mib: u64,
}

impl<Id: Ord + Clone> Admission<Id> {
    /// Makes the queue of a computer on which nothing runs.
    #[must_use]
    pub fn new(capacity: Capacity) -> Self {
        Self { capacity, running: BTreeMap::new(), waiting: VecDeque::new() }
    }

    /// Puts a machine in line; asking again changes nothing. Who is admitted, [`Admission::admit`] says.
    ///
    /// # Errors
    /// `Invalid` when it would never fit; `Unavailable` when [`WAITING`] machines wait already.
    pub fn ask(&mut self, id: Id, memory_mib: u64) -> Result<()> {
        if self.running.contains_key(&id) || self.position(&id).is_some() {
            return Ok(());
        }
        if memory_mib > self.capacity.memory_mib || self.capacity.machines == 0 {
            let text = format!(
                "the machine wants {memory_mib} MiB, and this computer gives {} MiB to {} machines",
                self.capacity.memory_mib, self.capacity.machines
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        if self.waiting.len() >= WAITING {
            let text = format!("{WAITING} machines wait already");
            return Err(Error::new(ErrorKind::Unavailable, text)
                .with_hint("stop a machine, or start this one later"));
        }
        self.waiting.push_back(Asked { id, memory_mib });
        Ok(())
    }

    /// Takes note of a machine that runs already, as after a restart of the daemon; it counts even where it does not fit.
    pub fn adopt(&mut self, id: Id, memory_mib: u64) {
        self.waiting.retain(|asked| asked.id != id);
        self.running.insert(id, memory_mib);
    }

    /// Admits from the front of the line whoever fits, and returns them.
    pub fn admit(&mut self) -> Vec<Id> {
        let mut admitted = Vec::new();
        while let Some(first) = self.waiting.front() {
            let used: u64 = self.running.values().sum();
            let fits = used.saturating_add(first.memory_mib) <= self.capacity.memory_mib
                && self.running.len() < self.capacity.machines;
            if !fits {
                break;
            }
            if let Some(asked) = self.waiting.pop_front() {
                self.running.insert(asked.id.clone(), asked.memory_mib);
                admitted.push(asked.id);
            }
        }
        admitted
    }

    /// Gives back what a machine held, or takes it out of the line.
    pub fn release(&mut self, id: &Id) {
        self.running.remove(id);
        self.waiting.retain(|asked| asked.id != *id);
    }

    /// Returns how many are before a machine that waits; none if it does not wait.
    #[must_use]
    pub fn position(&self, id: &Id) -> Option<usize> {
        self.waiting.iter().position(|asked| asked.id == *id)
    }
}

#[cfg(test)]
mod tests {
    use collective_model::ErrorKind;
    use proptest::prelude::*;

    use super::{Admission, Capacity, WAITING};

    const SMALL: Capacity = Capacity { memory_mib: 1000, machines: 3 };

    #[test]
    fn a_large_machine_is_not_overtaken_by_small_ones() {
        let mut queue = Admission::new(SMALL);
        for (id, memory_mib) in [("a", 600), ("large", 800), ("small", 100)] {
            queue.ask(id, memory_mib).unwrap();
        }
        assert_eq!(queue.admit(), ["a"]);
        assert_eq!((queue.position(&"large"), queue.position(&"small")), (Some(0), Some(1)));
        queue.release(&"a");
        assert_eq!(queue.admit(), ["large", "small"]);
    }

    #[test]
    fn what_never_fits_and_what_is_too_many_is_refused() {
        let mut queue = Admission::new(SMALL);
        assert_eq!(queue.ask(0, 1001).unwrap_err().kind(), ErrorKind::Invalid);
        for id in 0..WAITING {
            queue.ask(id, 1000).unwrap();
        }
        assert_eq!(queue.ask(WAITING, 1).unwrap_err().kind(), ErrorKind::Unavailable);
        queue.ask(0, 1000).unwrap();
    }

    proptest! {
        #[test]
        fn what_runs_always_fits_and_everybody_gets_a_turn(
            asks in prop::collection::vec(1u64..=1000, 1..40)
        ) {
            let mut queue = Admission::new(SMALL);
            for (id, memory_mib) in asks.iter().enumerate() {
                queue.ask(id, *memory_mib).unwrap();
            }
            let mut served = Vec::new();
            while served.len() < asks.len() {
                let admitted = queue.admit();
                prop_assert!(!admitted.is_empty());
                prop_assert!(admitted.len() <= SMALL.machines);
                prop_assert!(admitted.iter().map(|id| asks[*id]).sum::<u64>() <= SMALL.memory_mib);
                admitted.iter().for_each(|id| queue.release(id));
                served.extend(admitted);
            }
            prop_assert!(served.is_sorted());
        }
    }
}
