//! Frames on their way: who wants one joins it, so that none is fetched twice at a time.
//!
//! A flight is in the table from take-off until its frame is stored, or until whoever flies it drops it, for whatever
//! reason: nobody can wait for a flight that is over.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use collective_model::Digest;
use collective_repository::FrameRef;
use tokio::sync::{Notify, watch};

use super::late::{ReadWait, Reason};

/// Frames kept in memory because the cache had no room for them, at most; without them each block of such a frame
/// would cost a fetch of the whole.
const HOMELESS_FRAMES: usize = 32;

/// How far a frame on its way is.
#[derive(Clone, Debug)]
pub(super) enum Flight {
    /// Not here, and why not.
    Waiting(Option<Reason>),
    /// Here.
    Landed(Bytes),
}

type Table = HashMap<Digest, watch::Receiver<Flight>>;

/// All frames on their way. Clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Flights {
    table: Arc<Mutex<Table>>,
    /// Told whenever a flight is over.
    over: Arc<Notify>,
}

impl Flights {
    /// Registers a flight for a frame; none if it has one.
    pub fn take_off(&self, frame: &FrameRef) -> Option<Aloft> {
        let mut table = self.lock();
        if table.contains_key(&frame.hash) {
            return None;
        }
        let (sender, receiver) = watch::channel(Flight::Waiting(None));
        table.insert(frame.hash, receiver);
        Some(Aloft { frame: *frame, sender, flights: self.clone() })
    }

    /// Joins the flight of a frame.
    pub fn find(&self, frame: &Digest) -> Option<watch::Receiver<Flight>> {
        self.lock().get(frame).cloned()
    }

    /// Waits until a frame has no flight, without joining it: who waits so keeps nobody from giving it up.
    pub async fn over(&self, frame: &Digest) {
        loop {
            let over = self.over.notified();
            tokio::pin!(over);
            over.as_mut().enable();
            if !self.lock().contains_key(frame) {
                return;
            }
            over.await;
        }
    }

    /// Ends flights that nobody joined; false, and nothing is ended, if somebody did.
    pub fn give_up(&self, batch: &[Aloft]) -> bool {
        let mut table = self.lock();
        // The table holds a receiver of its own.
        let needless = batch.iter().all(|aloft| aloft.sender.receiver_count() <= 1);
        if needless {
            for aloft in batch {
                table.remove(&aloft.frame.hash);
            }
        }
        needless
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A frame on its way, in the hands of whoever fetches it.
pub(super) struct Aloft {
    pub frame: FrameRef,
    sender: watch::Sender<Flight>,
    flights: Flights,
}

impl Aloft {
    /// Tells those who wait why they do.
    pub fn delay(&self, reason: Reason) {
        self.sender.send_replace(Flight::Waiting(Some(reason)));
    }

    /// Gives the frame to those who wait.
    pub fn land(&self, plain: Bytes) {
        self.sender.send_replace(Flight::Landed(plain));
    }
}

impl Drop for Aloft {
    fn drop(&mut self) {
        let mut table = self.flights.lock();
        // After it was given up somebody else may have set the frame off again.
        let own = |flight: &watch::Receiver<Flight>| flight.same_channel(&self.sender.subscribe());
        if table.get(&self.frame.hash).is_some_and(own) {
            table.remove(&self.frame.hash);
        }
        drop(table);
        self.flights.over.notify_waiters();
    }
}

/// Waits for a frame to land; none if its flight is over without.
pub(super) async fn landing(
    flight: &mut watch::Receiver<Flight>,
    wait: &mut ReadWait,
) -> Option<Bytes> {
    loop {
        match &*flight.borrow_and_update() {
            Flight::Landed(plain) => return Some(plain.clone()),
            Flight::Waiting(Some(reason)) => wait.explain(reason),
            Flight::Waiting(None) => {}
        }
        wait.during(flight.changed()).await.ok()?;
    }
}

/// The last frames that the cache had no room for. Clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Homeless {
    frames: Arc<Mutex<VecDeque<(Digest, Bytes)>>>,
}

impl Homeless {
    pub fn keep(&self, frame: Digest, plain: Bytes) {
        let mut frames = self.lock();
        if frames.len() == HOMELESS_FRAMES {
            frames.pop_front();
        }
        frames.push_back((frame, plain));
    }

    pub fn find(&self, frame: &Digest) -> Option<Bytes> {
        let frames = self.lock();
        frames.iter().find(|(hash, _)| hash == frame).map(|(_, plain)| plain.clone())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Digest, Bytes)>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use collective_model::Digest;
    use collective_repository::{Codec, FrameRef};
    use futures::FutureExt;

    use super::Flights;

    #[tokio::test]
    async fn the_end_of_a_flight_is_heard_by_who_did_not_join_it_however_it_ends() {
        let hash = Digest([7; 32]);
        let (pack, codec) = (Digest([0; 32]), Codec::Raw);
        let frame = FrameRef { hash, pack, offset: 0, stored_bytes: 1, blocks: 1, codec };
        let flights = Flights::default();
        assert!(flights.over(&hash).now_or_never().is_some(), "there is none");
        for is_given_up in [false, true] {
            let aloft = flights.take_off(&frame).unwrap();
            let over = flights.over(&hash);
            tokio::pin!(over);
            assert!(over.as_mut().now_or_never().is_none());
            if is_given_up {
                assert!(flights.give_up(std::slice::from_ref(&aloft)), "somebody joined it");
            }
            drop(aloft);
            over.await;
        }
    }
}
