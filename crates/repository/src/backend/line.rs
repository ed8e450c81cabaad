//! A backend at the far end of a slow line: what tests wrap around another to see what goes over it, and what waits.
//!
//! All that is read shares the line piece by piece, as connections do; every call waits for a round trip first. What has
//! crossed is counted, so that tests can also say what must not have.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{Result, Timestamp, Version};
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Backend, Commit, Exclusive, Listed, ObjectName, Pieces};

/// Bytes that travel as one.
const PIECE_BYTES: usize = 4096;
/// The shortest time that the runtime sleeps.
const TICK: Duration = Duration::from_millis(1);

/// Passes calls on to another backend, and the bytes back at a rate.
pub struct Line {
    inner: Arc<dyn Backend>,
    wire: Arc<Wire>,
}

/// The way back.
struct Wire {
    bytes_per_second: f64,
    round_trip: Duration,
    free_at: Mutex<Instant>,
    requests: AtomicU64,
    under_way: AtomicU64,
    most_under_way: AtomicU64,
    carried_bytes: AtomicU64,
}

/// A read under way; over when dropped.
struct UnderWay(Arc<Wire>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Line {
    /// Lays a line to a backend.
    pub fn new(inner: Arc<dyn Backend>, bytes_per_second: u64, round_trip: Duration) -> Self {
        let wire = Wire {
            bytes_per_second: bytes_per_second as f64,
            round_trip,
            free_at: Mutex::new(Instant::now()),
            requests: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
            most_under_way: AtomicU64::new(0),
            carried_bytes: AtomicU64::new(0),
        };
        Self { inner, wire: Arc::new(wire) }
    }

    /// Returns how many requests there were.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.wire.requests.load(Ordering::SeqCst)
    }

    /// Returns how many reads were under way at once, at most.
    #[must_use]
    pub fn most_under_way(&self) -> u64 {
        self.wire.most_under_way.load(Ordering::SeqCst)
    }

    /// Returns how many bytes of objects have come over it.
    #[must_use]
    pub fn carried_bytes(&self) -> u64 {
        self.wire.carried_bytes.load(Ordering::SeqCst)
    }
}

impl Wire {
    async fn request(&self) {
        self.requests.fetch_add(1, Ordering::SeqCst);
        sleep(self.round_trip).await;
    }

    async fn begin_read(self: &Arc<Self>) -> UnderWay {
        let under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_under_way.fetch_max(under_way, Ordering::SeqCst);
        let read = UnderWay(Arc::clone(self));
        self.request().await;
        read
    }

    /// Takes the line for a piece, after all that were there before.
    async fn carry(&self, piece: &Bytes) {
        let takes = Duration::from_secs_f64(piece.len() as f64 / self.bytes_per_second);
        let arrives = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            *free_at = (*free_at).max(Instant::now()) + takes;
            *free_at
        };
        // What is shorter than a tick of the timer adds up.
        if arrives > Instant::now() + TICK {
            sleep_until(arrives).await;
        }
        self.carried_bytes.fetch_add(piece.len() as u64, Ordering::SeqCst);
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Line").field(&self.inner).finish()
    }
}

#[async_trait]
impl Backend for Line {
    async fn read(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes> {
        let _read = self.wire.begin_read().await;
        let bytes = self.inner.read(name, range).await?;
        for start in (0..bytes.len()).step_by(PIECE_BYTES) {
            self.wire.carry(&bytes.slice(start..bytes.len().min(start + PIECE_BYTES))).await;
        }
        Ok(bytes)
    }

    async fn stream(&self, name: &ObjectName, range: Range<u64>) -> Result<Pieces> {
        let read = Arc::new(self.wire.begin_read().await);
        let pieces = self.inner.stream(name, range).await?;
        let cut = |bytes: Bytes| {
            let starts = (0..bytes.len()).step_by(PIECE_BYTES);
            stream::iter(
                starts
                    .map(move |start| Ok(bytes.slice(start..bytes.len().min(start + PIECE_BYTES)))),
            )
        };
        let carry = move |piece: Bytes| {
            let read = Arc::clone(&read);
            async move {
                read.0.carry(&piece).await;
                Ok(piece)
            }
        };
        Ok(pieces.map_ok(cut).try_flatten().and_then(carry).boxed())
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.wire.request().await;
        self.inner.size(name).await
    }

    async fn write(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        self.wire.request().await;
        self.inner.write(name, bytes).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.wire.request().await;
        self.inner.list(prefix).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.wire.request().await;
        self.inner.delete(name).await
    }

    async fn head(&self) -> Result<Option<Version>> {
        self.wire.request().await;
        self.inner.head().await
    }

    async fn commit(&self, commit: Commit) -> Result<()> {
        self.wire.request().await;
        self.inner.commit(commit).await
    }

    async fn exclusive(&self) -> Result<Exclusive> {
        self.inner.exclusive().await
    }

    async fn remove_leftovers(&self, before: Timestamp) -> Result<u64> {
        self.inner.remove_leftovers(before).await
    }
}
