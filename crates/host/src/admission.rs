//! Who may run now: the one task that owns the queue in front of the memory for guests.
//!
//! An owner asks and gets a [`Place`] in line; it hears when the place is admitted, and gives it back by dropping it, whether it
//! waits or runs. The order of service is the queue's, in `vm::admission`.

use std::collections::BTreeMap;

use collective_model::{Error, ErrorKind, Result};
use collective_vm::admission::{Admission, Capacity};
use tokio::sync::{mpsc, oneshot};

/// Machines that run at once, however small: each has a process, sockets and an export here.
const MACHINES: usize = 64;

/// The way to the queue. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Desk(mpsc::UnboundedSender<Request>);

/// Names a place; never used again.
type Number = u64;

/// What the queue is told. There are at most two of them for each place, and an owner has one place: so nobody has to wait
/// to say that he leaves.
#[derive(Debug)]
enum Request {
    Ask { memory_mib: u64, answer: oneshot::Sender<Result<Asked>> },
    Adopt { memory_mib: u64, answer: oneshot::Sender<Place> },
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
        let desk = Queue {
            admission: Admission::new(Capacity { memory_mib, machines: MACHINES }),
            waiting: BTreeMap::new(),
            last: 0,
            requests: requests.downgrade(),
        };
        tokio::spawn(desk.run(incoming));
        Self(requests)
    }

    /// Stands in line.
    ///
    /// # Errors
    /// `Invalid` if the machine wants more than there is: it would wait for ever; `Unavailable` if too many wait.
    pub(crate) async fn ask(&self, memory_mib: u64) -> Result<Asked> {
        let (answer, answered) = oneshot::channel();
        let _ = self.0.send(Request::Ask { memory_mib, answer });
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Takes note of a machine that runs already, whether there is room or not.
    pub(crate) async fn adopt(&self, memory_mib: u64) -> Result<Place> {
        let (answer, answered) = oneshot::channel();
        let _ = self.0.send(Request::Adopt { memory_mib, answer });
        answered.await.map_err(|_| closed())
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Internal, "the queue for memory is closed")
}

/// The task's own.
struct Queue {
    admission: Admission<Number>,
    waiting: BTreeMap<Number, oneshot::Sender<()>>,
    last: Number,
    requests: mpsc::WeakUnboundedSender<Request>,
}

impl Queue {
    async fn run(mut self, mut incoming: mpsc::UnboundedReceiver<Request>) {
        while let Some(request) = incoming.recv().await {
            self.handle(request);
            for number in self.admission.admit() {
                if let Some(admitted) = self.waiting.remove(&number) {
                    // Who does not listen any more has dropped the place too, which comes next.
                    let _ = admitted.send(());
                }
            }
        }
    }

    fn handle(&mut self, request: Request) {
        let place = match &request {
            Request::Release(number) => {
                self.waiting.remove(number);
                return self.admission.release(number);
            }
            Request::Ask { .. } | Request::Adopt { .. } => self.place(),
        };
        // Nobody is there to be answered.
        let Some(place) = place else { return };
        let number = place.number;
        match request {
            Request::Ask { memory_mib, answer } => {
                let asked = self.admission.ask(number, memory_mib).map_err(hinted).map(|()| {
                    let (admit, admitted) = oneshot::channel();
                    self.waiting.insert(number, admit);
                    Asked { place, admitted }
                });
                let _ = answer.send(asked);
            }
            Request::Adopt { memory_mib, answer } => {
                self.admission.adopt(number, memory_mib);
                let _ = answer.send(place);
            }
            Request::Release(_) => {}
        }
    }

    fn place(&mut self) -> Option<Place> {
        self.last += 1;
        Some(Place { number: self.last, requests: self.requests.upgrade()? })
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
        let first = desk.ask(60).await.unwrap();
        first.admitted.await.unwrap();
        let cancelled = desk.ask(50).await.unwrap();
        let mut third = desk.ask(40).await.unwrap();
        assert!(third.admitted.try_recv().is_err(), "the second in line is overtaken");
        drop(cancelled);
        third.admitted.await.unwrap();
        let last = desk.ask(60).await.unwrap();
        drop(first.place);
        last.admitted.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_found_running_counts_and_what_never_fits_is_refused() {
        let desk = Desk::open(100);
        let found = desk.adopt(150).await.unwrap();
        let mut asked = desk.ask(1).await.unwrap();
        assert!(asked.admitted.try_recv().is_err());
        assert_eq!(desk.ask(101).await.unwrap_err().kind(), ErrorKind::Invalid);
        drop(found);
        asked.admitted.await.unwrap();
    }
}
