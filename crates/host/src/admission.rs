//! Who may run now: the one task that owns the queue in front of the memory for guests.
//!
//! An owner asks and gets a [`Place`] in line; it hears when the place is admitted, and gives it back by dropping it, whether it
//! waits or runs. The order of service is the queue's, in `vm::admission`.

use std::collections::BTreeMap;

use collective_model::{Error, ErrorKind, Result};
use collective_vm::admission::{Admission, Capacity};
use tokio::sync::{mpsc, oneshot, watch};

/// Machines that run at once, however small: each has a process, sockets and an export here.
const MACHINES: usize = 64;

/// The way to the queue. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    requests: mpsc::UnboundedSender<Request>,
    taken: watch::Receiver<Taken>,
    memory_mib: u64,
}

/// Who has memory, by the number of their place.
type Taken = BTreeMap<Number, Holder>;

/// A machine with memory, or one that waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    /// What people call it.
    name: String,
    memory_mib: u64,
}

/// Names a place; never used again.
type Number = u64;

/// What the queue is told. There are at most two of them for each place, and an owner has one place: so nobody has to wait
/// to say that he leaves.
#[derive(Debug)]
enum Request {
    Ask { holder: Holder, answer: oneshot::Sender<Result<Asked>> },
    Adopt { holder: Holder, answer: oneshot::Sender<Place> },
    Release(Number),
}

/// A place in line.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) place: Place,
    /// Answers when the machine may run.
    pub(crate) admitted: oneshot::Receiver<()>,
}

/// The memory of a machine, waited for or held; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    number: Number,
    memory_mib: u64,
    requests: mpsc::UnboundedSender<Request>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // The queue is gone only when the daemon is.
        let _ = self.requests.send(Request::Release(self.number));
    }
}

impl Desk {
    /// Opens the queue of a computer that gives guests `memory_mib`.
    pub(crate) fn open(memory_mib: u64) -> Self {
        let (requests, incoming) = mpsc::unbounded_channel();
        let (shown, taken) = watch::channel(Taken::new());
        let queue = Queue {
            admission: Admission::new(Capacity { memory_mib, machines: MACHINES }),
            holders: BTreeMap::new(),
            shown,
            waiting: BTreeMap::new(),
            last: 0,
            requests: requests.downgrade(),
        };
        tokio::spawn(queue.run(incoming));
        Self { requests, taken, memory_mib }
    }

    /// Stands in line; `name` is what those who wait behind are told.
    ///
    /// # Errors
    /// `Invalid` if the machine wants more than there is: it would wait for ever; `Unavailable` if too many wait.
    pub(crate) async fn ask(&self, name: &str, memory_mib: u64) -> Result<Asked> {
        let (answer, answered) = oneshot::channel();
        let holder = Holder { name: name.to_owned(), memory_mib };
        let _ = self.requests.send(Request::Ask { holder, answer });
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Takes note of a machine that runs already, whether there is room or not.
    pub(crate) async fn adopt(&self, name: &str, memory_mib: u64) -> Result<Place> {
        let (answer, answered) = oneshot::channel();
        let holder = Holder { name: name.to_owned(), memory_mib };
        let _ = self.requests.send(Request::Adopt { holder, answer });
        answered.await.map_err(|_| closed())
    }

    /// Says what a place waits for and who has it; nothing if it does not wait.
    pub(crate) fn why(&self, place: &Place) -> Option<String> {
        let taken = self.taken.borrow();
        if taken.contains_key(&place.number) {
            return None;
        }
        let holders: Vec<String> = taken
            .values()
            .map(|holder| format!("{} has {} MiB", holder.name, holder.memory_mib))
            .collect();
        (!holders.is_empty()).then(|| {
            format!(
                "waits for {} MiB of memory: of {} MiB {}",
                place.memory_mib,
                self.memory_mib,
                holders.join(", ")
            )
        })
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Internal, "the queue for memory is closed")
}

/// The task's own.
struct Queue {
    admission: Admission<Number>,
    /// Everybody with a place.
    holders: BTreeMap<Number, Holder>,
    shown: watch::Sender<Taken>,
    waiting: BTreeMap<Number, oneshot::Sender<()>>,
    last: Number,
    requests: mpsc::WeakUnboundedSender<Request>,
}

impl Queue {
    async fn run(mut self, mut incoming: mpsc::UnboundedReceiver<Request>) {
        while let Some(request) = incoming.recv().await {
            self.handle(request);
            let admitted = self.admission.admit();
            let admitted: Vec<_> =
                admitted.iter().filter_map(|number| self.waiting.remove(number)).collect();
            let taken =
                self.holders.iter().filter(|(number, _)| !self.waiting.contains_key(number));
            let taken: Taken = taken.map(|(number, holder)| (*number, holder.clone())).collect();
            // Shown first: who is admitted does not wait any more.
            self.shown.send_if_modified(|shown| {
                let changed = *shown != taken;
                *shown = taken;
                changed
            });
            for admitted in admitted {
                // Who does not listen any more has dropped the place too, which comes next.
                let _ = admitted.send(());
            }
        }
    }

    fn handle(&mut self, request: Request) {
        let place = match &request {
            Request::Release(number) => {
                self.waiting.remove(number);
                self.holders.remove(number);
                return self.admission.release(number);
            }
            Request::Ask { holder, .. } | Request::Adopt { holder, .. } => self.place(holder),
        };
        // Nobody is there to be answered.
        let Some(place) = place else { return };
        let number = place.number;
        match request {
            Request::Ask { holder, answer } => {
                let asked =
                    self.admission.ask(number, holder.memory_mib).map_err(hinted).map(|()| {
                        let (admit, admitted) = oneshot::channel();
                        self.waiting.insert(number, admit);
                        self.holders.insert(number, holder);
                        Asked { place, admitted }
                    });
                let _ = answer.send(asked);
            }
            Request::Adopt { holder, answer } => {
                self.admission.adopt(number, holder.memory_mib);
                self.holders.insert(number, holder);
                let _ = answer.send(place);
            }
            Request::Release(_) => {}
        }
    }

    fn place(&mut self, holder: &Holder) -> Option<Place> {
        self.last += 1;
        let requests = self.requests.upgrade()?;
        Some(Place { number: self.last, memory_mib: holder.memory_mib, requests })
    }
}

fn hinted(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Invalid => error.with_hint("give guests more with --memory"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use collective_model::ErrorKind;

    use super::Desk;

    #[tokio::test]
    async fn a_place_that_is_dropped_lets_the_next_in() {
        let desk = Desk::open(100);
        let first = desk.ask("m0", 60).await.unwrap();
        first.admitted.await.unwrap();
        let cancelled = desk.ask("m1", 50).await.unwrap();
        let mut third = desk.ask("m2", 40).await.unwrap();
        assert!(third.admitted.try_recv().is_err(), "the second in line is overtaken");
        drop(cancelled);
        third.admitted.await.unwrap();
        let last = desk.ask("m3", 60).await.unwrap();
        drop(first.place);
        last.admitted.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_found_running_counts_and_what_never_fits_is_refused() {
        let desk = Desk::open(100);
        let found = desk.adopt("found", 150).await.unwrap();
        let mut asked = desk.ask("small", 1).await.unwrap();
        assert!(asked.admitted.try_recv().is_err());
        let why = desk.why(&asked.place).unwrap();
        assert_eq!(why, "waits for 1 MiB of memory: of 100 MiB found has 150 MiB");
        assert_eq!(desk.ask("huge", 101).await.unwrap_err().kind(), ErrorKind::Invalid);
        drop(found);
        asked.admitted.await.unwrap();
        assert_eq!(desk.why(&asked.place), None);
    }
}
