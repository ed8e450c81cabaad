//! Brings frames from a repository into the cache: each once, however many want it, and as long as it takes.
//!
//! A frame on its way is a *flight*. Who wants the frame joins its flight; a flight goes on when those who wanted it are
//! gone. Demand goes before replay (`turns`). What is asked of whom, where there are mirrors, and when a slow one is raced:
//! `fetch` and `rating`. A fetch that fails everywhere is repeated for ever, with pauses that grow to a bound:
//! a guest never sees an I/O error, it waits, and [`Fetcher::late`] says since when and why (`late`).
//!
//! ```text
//! wanted ──not in the cache──> flight: waiting(reason) ──fetched──> landed ──stored──> gone
//!                                 └─fails─> pause ─┘  (a damaged frame nobody waits for: given up)
//! ```

mod fetch;
mod flight;
mod late;
mod pace;
mod rating;
mod turns;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use collective_model::{Digest, Error, ErrorKind, Result, ResultExt};
use collective_repository::backend::Backend;
use collective_repository::{DiskReader, FrameRef};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

pub use self::fetch::SourceStats;
use self::fetch::{Fetch, Sources};
use self::flight::{Aloft, Flights, Homeless};
pub use self::late::{Late, Reason};
pub(crate) use self::late::{ReadWait, Waits};
pub use self::rating::Dropped;
use self::turns::{Class, Turn, Turns};
use crate::cache::Cache;

/// How often a damaged frame is fetched ahead that no guest waits for.
const REPLAY_ATTEMPTS: u32 = 5;

/// How a fetcher works.
#[derive(Clone, Copy, Debug)]
pub struct FetchSettings {
    /// Fetches at once of what guests wait for.
    pub demand_places: usize,
    /// The pause after a first failure; it doubles with every further one.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// How long a read may wait before it counts as late.
    pub late_after: Duration,
}

impl Default for FetchSettings {
    fn default() -> Self {
        Self {
            demand_places: 16,
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(5),
            late_after: Duration::from_secs(5),
        }
    }
}

/// What a fetcher did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchStats {
    /// Stored bytes of the frames that were fetched.
    pub fetched_bytes: u64,
    /// Frames that were fetched.
    pub fetched_frames: u64,
    /// Frames that a guest waited for.
    pub demanded_frames: u64,
    /// Frames that were wanted while they were on their way already.
    pub joined_frames: u64,
    /// Fetches that failed and were repeated.
    pub failures: u64,
    /// Stored bytes that were asked for of two sources because the first was slow: no more were wasted.
    pub raced_bytes: u64,
}

/// Brings frames into a cache. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Fetcher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cache: Cache,
    settings: FetchSettings,
    /// Fetches run here, whoever asks: connections of HTTP clients live as long as their runtime.
    runtime: Handle,
    turns: Arc<Turns>,
    sources: Sources,
    flights: Flights,
    homeless: Homeless,
    waits: Waits,
    again: Notify,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    fetched_bytes: AtomicU64,
    fetched_frames: AtomicU64,
    demanded_frames: AtomicU64,
    joined_frames: AtomicU64,
    failures: AtomicU64,
}

/// Why frames are fetched that nobody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// A trace says that a guest will want them.
    Replay,
    /// Somebody wishes them to be here.
    Prefetch,
}

/// Where a disk's frames come from: a reader of its repository that may be exchanged while it is used, and mirrors of that.
/// It counts what came.
#[derive(Debug)]
pub(crate) struct Origin {
    reader: RwLock<DiskReader>,
    /// In the order of the fetcher's.
    mirrors: Vec<Arc<dyn Backend>>,
    pub fetched_bytes: AtomicU64,
    pub fetched_plain_bytes: AtomicU64,
}

impl Origin {
    pub fn new(reader: DiskReader, mirrors: Vec<Arc<dyn Backend>>) -> Self {
        Self {
            reader: RwLock::new(reader),
            mirrors,
            fetched_bytes: AtomicU64::new(0),
            fetched_plain_bytes: AtomicU64::new(0),
        }
    }

    /// Returns the reader to use now.
    pub fn reader(&self) -> DiskReader {
        self.reader.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn exchange(&self, reader: DiskReader) {
        *self.reader.write().unwrap_or_else(PoisonError::into_inner) = reader;
    }
}

impl Fetcher {
    /// Makes a fetcher that fills `cache`. Fetches run on the runtime that this is called in.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn new(cache: Cache, settings: FetchSettings) -> Self {
        Self::with_mirrors(cache, settings, Vec::new())
    }

    /// As [`new`](Self::new), with the names of mirrors that frames may come from too: what is known of each is shared by
    /// all disks that have it ([`VersionDisk::with_mirrors`](crate::VersionDisk::with_mirrors)).
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn with_mirrors(cache: Cache, settings: FetchSettings, mirrors: Vec<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                cache,
                settings,
                runtime: Handle::current(),
                turns: Arc::new(Turns::new(settings.demand_places)),
                sources: Sources::new(mirrors),
                flights: Flights::default(),
                homeless: Homeless::default(),
                waits: Waits::default(),
                again: Notify::new(),
                counters: Counters::default(),
            }),
        }
    }

    /// Returns the cache that is filled.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.inner.cache
    }

    /// Returns what tells of the oldest read, of any disk, that waits longer than the limit.
    #[must_use]
    pub fn late(&self) -> watch::Receiver<Option<Late>> {
        self.inner.waits.late()
    }

    /// Returns what came from the repository, and then from each mirror.
    #[must_use]
    pub fn sources(&self) -> Vec<SourceStats> {
        self.inner.sources.stats()
    }

    /// How many mirrors a disk may have.
    pub(crate) fn mirrors(&self) -> usize {
        self.inner.sources.mirrors()
    }

    /// Ends all pauses: for when the network came back, or somebody logged in.
    pub fn retry_now(&self) {
        self.inner.sources.forgive();
        self.inner.again.notify_waiters();
    }

    /// Returns what was done so far.
    #[must_use]
    pub fn stats(&self) -> FetchStats {
        let counters = &self.inner.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FetchStats {
            fetched_bytes: get(&counters.fetched_bytes),
            fetched_frames: get(&counters.fetched_frames),
            demanded_frames: get(&counters.demanded_frames),
            joined_frames: get(&counters.joined_frames),
            failures: get(&counters.failures),
            raced_bytes: self.inner.sources.raced_bytes(),
        }
    }

    /// Makes a request for something else than frames that nobody waits for, as a prefetch: when nothing more urgent is under
    /// way. `request` hears how many bytes it may ask for.
    ///
    /// # Errors
    /// What `request` returns.
    pub async fn beside<T, F>(&self, request: impl FnOnce(u64) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let bytes = self.request_bytes();
        let turn = self.inner.turns.take(Class::Prefetch, bytes).await;
        let answer = request(bytes).await?;
        turn.answered();
        Ok(answer)
    }

    /// Stored bytes that one request ahead should ask for now.
    pub(crate) fn request_bytes(&self) -> u64 {
        self.inner.turns.request_bytes()
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.inner.runtime
    }

    /// Begins the wait of a read of a disk, which shows in the disk's waits and in those of all.
    pub(crate) fn begin_wait(&self, disk: &Waits) -> ReadWait {
        ReadWait::new(&[&self.inner.waits, disk], self.inner.settings.late_after)
    }

    /// Tells whether a frame is in memory because the cache had no room for it.
    pub(crate) fn has_at_hand(&self, frame: &Digest) -> bool {
        self.inner.homeless.find(frame).is_some()
    }

    /// Sets frames off that a guest waits for, in one fetch; those that are on their way already stay as they are.
    pub(crate) fn demand(&self, origin: &Arc<Origin>, frames: &[FrameRef]) {
        self.inner.count(&self.inner.counters.demanded_frames, frames.len() as u64);
        let batch = self.inner.take_off(frames);
        if !batch.is_empty() {
            let flying =
                Arc::clone(&self.inner).fly(Arc::clone(origin), batch, Class::Demand, None);
            self.inner.runtime.spawn(flying);
        }
    }

    /// Waits for a frame that was set off; sets it off again if need be.
    pub(crate) async fn arrival(
        &self,
        origin: &Arc<Origin>,
        frame: &FrameRef,
        wait: &mut ReadWait,
    ) -> Bytes {
        loop {
            if let Some(mut flight) = self.inner.flights.find(&frame.hash) {
                if let Some(plain) = flight::landing(&mut flight, wait).await {
                    return plain;
                }
            } else if let Some(plain) = self.stored(frame).await {
                return plain;
            } else {
                self.demand(origin, std::slice::from_ref(frame));
            }
        }
    }

    /// Waits for a turn and sets frames off that nobody waits for, none that is here or on its way. What is put into `flights`
    /// is over when all have come or were given up, those too that somebody else had on the way; dropping it ends what was
    /// set off here.
    pub(crate) async fn ahead(
        &self,
        origin: &Arc<Origin>,
        frames: &[FrameRef],
        why: Why,
        flights: &mut JoinSet<()>,
    ) {
        let is_missing = |frame: &&FrameRef| !self.inner.has(&frame.hash);
        let mut missing: Vec<_> = frames.iter().filter(is_missing).copied().collect();
        if missing.is_empty() {
            return;
        }
        let class = match why {
            Why::Replay => Class::Replay,
            Why::Prefetch => Class::Prefetch,
        };
        let turn = self.inner.turns.take(class, stored_bytes(&missing)).await;
        let batch = self.inner.take_off(&missing);
        missing.retain(|frame| batch.iter().all(|aloft| aloft.frame.hash != frame.hash));
        if !batch.is_empty() {
            let flight = Arc::clone(&self.inner).fly(Arc::clone(origin), batch, class, Some(turn));
            flights.spawn_on(flight, &self.inner.runtime);
        }
        if missing.iter().any(|frame| is_missing(&frame)) {
            let waiting = self.clone().after_others(Arc::clone(origin), missing, why);
            flights.spawn_on(waiting, &self.inner.runtime);
        }
    }

    /// Waits for the flights of others, and sets off what those did not bring: one of them may have been ended. Boxed,
    /// because there may be others again.
    fn after_others(
        self,
        origin: Arc<Origin>,
        frames: Vec<FrameRef>,
        why: Why,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            for frame in &frames {
                self.inner.flights.over(&frame.hash).await;
            }
            let mut flights = JoinSet::new();
            self.ahead(&origin, &frames, why, &mut flights).await;
            while flights.join_next().await.is_some() {}
        })
    }

    /// Runs a call until it succeeds; the wait says why it does not.
    pub(crate) async fn insist<T, F>(&self, wait: &mut ReadWait, call: impl Fn() -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut pause = self.inner.settings.first_pause;
        loop {
            let attempt = wait.during(self.inner.runtime.spawn(call())).await;
            let cut_short = || "reading the index was cut short".to_owned();
            match attempt.or_error(ErrorKind::Internal, cut_short).flatten() {
                Ok(value) => return value,
                Err(error) => wait.explain(&reason(&error)),
            }
            self.inner.count(&self.inner.counters.failures, 1);
            wait.during(self.inner.pause(&mut pause)).await;
        }
    }

    /// Looks where a frame lands: in the cache, or in memory if that had no room.
    async fn stored(&self, frame: &FrameRef) -> Option<Bytes> {
        if let Some(plain) = self.inner.homeless.find(&frame.hash) {
            return Some(plain);
        }
        let (cache, frame) = (self.inner.cache.clone(), *frame);
        let reading = self.inner.runtime.spawn_blocking(move || {
            let mut plain = vec![0; frame.plain_bytes()];
            cache.read(&frame.hash, 0, &mut plain).then(|| plain.into())
        });
        reading.await.ok().flatten()
    }
}

impl Inner {
    /// Registers flights for those frames that have none, and have not come since they were missed.
    fn take_off(self: &Arc<Self>, frames: &[FrameRef]) -> Vec<Aloft> {
        let mut batch: Vec<_> =
            frames.iter().filter_map(|frame| self.flights.take_off(frame)).collect();
        self.count(&self.counters.joined_frames, (frames.len() - batch.len()) as u64);
        // A flight is over when its frame is stored: what has none now may be here.
        batch.retain(|aloft| !self.has(&aloft.frame.hash));
        batch
    }

    /// Tells whether a frame is in the cache, or in memory because that had no room.
    fn has(&self, frame: &Digest) -> bool {
        self.cache.contains(frame) || self.homeless.find(frame).is_some()
    }

    /// Fetches frames until all have landed or were given up.
    async fn fly(
        self: Arc<Self>,
        origin: Arc<Origin>,
        mut batch: Vec<Aloft>,
        class: Class,
        mut turn: Option<Turn>,
    ) {
        let mut pause = self.settings.first_pause;
        for attempt in 1_u32.. {
            let held = match turn.take() {
                Some(turn) => turn,
                None => {
                    let frames: Vec<_> = batch.iter().map(|aloft| aloft.frame).collect();
                    self.turns.take(class, stored_bytes(&frames)).await
                }
            };
            let (left, error) = Fetch::new(&self, &origin, batch).run().await;
            batch = left;
            let Some(error) = error else { return held.answered() };
            drop(held);
            self.count(&self.counters.failures, 1);
            tracing::debug!("frames are late: {}", error.chain());
            let reason = reason(&error);
            batch.iter().for_each(|aloft| aloft.delay(reason.clone()));
            let unreachable = error.kind() == ErrorKind::Unavailable;
            if batch.len() > 1 && !unreachable {
                // One of them is at fault: the others must not wait for it.
                return self.part(origin, batch, class).await;
            }
            let needless = class == Class::Demand || (!unreachable && attempt >= REPLAY_ATTEMPTS);
            if needless && self.flights.give_up(&batch) {
                return;
            }
            self.pause(&mut pause).await;
        }
    }

    /// Lets each frame fly by itself. Boxed, because a flight that parts holds flights.
    fn part(
        self: Arc<Self>,
        origin: Arc<Origin>,
        batch: Vec<Aloft>,
        class: Class,
    ) -> BoxFuture<'static, ()> {
        let flights = batch
            .into_iter()
            .map(move |aloft| Arc::clone(&self).fly(Arc::clone(&origin), vec![aloft], class, None));
        let flights: FuturesUnordered<_> = flights.collect();
        Box::pin(flights.collect())
    }

    /// Hands a frame to those who wait, and then to the cache; its flight is over when it is there.
    fn land(&self, origin: &Origin, aloft: Aloft, plain: Bytes, storing: &mut JoinSet<()>) {
        // Counted first: who waits may look at the figures as soon as the frame is there.
        let stored_bytes = u64::from(aloft.frame.stored_bytes);
        self.count(&self.counters.fetched_bytes, stored_bytes);
        self.count(&self.counters.fetched_frames, 1);
        self.count(&origin.fetched_bytes, stored_bytes);
        self.count(&origin.fetched_plain_bytes, plain.len() as u64);
        aloft.land(plain.clone());
        let (cache, homeless) = (self.cache.clone(), self.homeless.clone());
        storing.spawn_blocking_on(
            move || {
                let hash = aloft.frame.hash;
                if !cache.insert(hash, &plain) {
                    homeless.keep(hash, plain);
                }
                drop(aloft);
            },
            &self.runtime,
        );
    }

    async fn pause(&self, pause: &mut Duration) {
        // Either way it is time to try again.
        let _ = tokio::time::timeout(*pause, self.again.notified()).await;
        *pause = (*pause * 2).min(self.settings.longest_pause);
    }

    fn count(&self, counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

fn stored_bytes(frames: &[FrameRef]) -> u64 {
    frames.iter().map(|frame| u64::from(frame.stored_bytes)).sum()
}

/// Why a frame is late, in the words of a person who waits for it; the log has the details.
fn reason(error: &Error) -> Reason {
    let text = match (error.kind(), error.hint()) {
        (ErrorKind::Unavailable, Some(hint)) => format!("the repository cannot be reached: {hint}"),
        (ErrorKind::Unavailable, None) => "the repository cannot be reached".to_owned(),
        _ => error.chain(),
    };
    Reason { kind: error.kind(), text }
}
