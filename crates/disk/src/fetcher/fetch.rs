//! One fetch of some frames: asked of the best source, raced at the next if that is slow, until all are here or nobody has them.
//!
//! ```text
//! ask the best ──a frame──> it lands ──all landed──> done; who is still asked is cancelled
//!      ├─nothing for as long as the patience lasts──> the next is asked as well, for what is left
//!      └─failed, lied, lacks a pack──> the next is asked for what that leaves
//! ```
//!
//! Who is asked next, and what that does to a source's name, is `rating`'s to say. Without mirrors this asks the repository once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use collective_model::{Digest, Error, ErrorKind};
use collective_repository::{FrameRef, FramesArriving};
use futures::future;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::flight::Aloft;
use super::rating::{Dropped, Fault, Rating, SourceId, Wanted};
use super::{Inner, Origin};

/// Packs that a mirror is asked for at once.
const PACKS_AT_ONCE: usize = 4;

/// What came from one source of frames since the fetcher was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStats {
    /// The mirror's name; none for the repository itself.
    pub mirror: Option<String>,
    /// Stored bytes of the frames that came from it first.
    pub fetched_bytes: u64,
    /// Those frames.
    pub fetched_frames: u64,
    /// How often it failed, or gave wrong bytes.
    pub failures: u64,
    /// How often another was faster that was asked later.
    pub late: u64,
    /// Why it is not asked now, if it is not.
    pub dropped: Option<Dropped>,
}

/// The sources of frames. Clones are one.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    mirrors: Arc<[String]>,
    rating: Arc<Mutex<Rating>>,
}

impl Sources {
    pub fn new(mirrors: Vec<String>) -> Self {
        let rating = Rating::new(mirrors.len());
        Self { mirrors: mirrors.into(), rating: Arc::new(Mutex::new(rating)) }
    }

    pub fn mirrors(&self) -> usize {
        self.mirrors.len()
    }

    pub fn stats(&self) -> Vec<SourceStats> {
        let names = std::iter::once(None).chain(self.mirrors.iter().cloned().map(Some));
        let rating = self.rating();
        let stats = names.zip(rating.sources()).map(|(mirror, rated)| SourceStats {
            mirror,
            fetched_bytes: rated.fetched_bytes,
            fetched_frames: rated.fetched_frames,
            failures: rated.failures,
            late: rated.late,
            dropped: rated.dropped.clone(),
        });
        stats.collect()
    }

    pub fn raced_bytes(&self) -> u64 {
        self.rating().raced_bytes()
    }

    pub fn forgive(&self) {
        self.rating().forgive(now());
    }

    fn rating(&self) -> MutexGuard<'_, Rating> {
        self.rating.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops a source, and says so.
    fn fault(&self, id: SourceId, fault: &Fault) {
        if let Some(at) = id.0.checked_sub(1) {
            tracing::warn!("{} is not asked for a while: {fault}", self.mirrors[at]);
        }
        self.rating().fault(id, fault, now());
    }
}

/// A source that was asked for some of the frames.
struct Asking {
    source: SourceId,
    /// Which, by their places; those of a pack that it lacks are taken out.
    places: Vec<usize>,
    arriving: BoxStream<'static, Arrival>,
    since: Instant,
    /// When its last frame came.
    moved: Instant,
    got_bytes: u64,
    /// Whether its time was over, and another asked as well if that could be.
    is_raced: bool,
    _under_way: UnderWay,
}

/// A frame with its place among those of the fetch; or a failure, and the pack that was asked for if it is about one alone.
type Arrival = Result<(usize, Bytes), (Option<Digest>, Error)>;

/// Counts a request until it is dropped.
struct UnderWay(Sources, SourceId);

impl UnderWay {
    fn begin(sources: &Sources, id: SourceId) -> Self {
        sources.rating().begun(id);
        Self(sources.clone(), id)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.rating().ended(self.1);
    }
}

/// A frame of a fetch.
struct Wish {
    /// None once it has landed.
    aloft: Option<Aloft>,
    /// Who has not been asked for it yet.
    fresh: Vec<SourceId>,
}

/// A fetch under way.
pub(super) struct Fetch<'a> {
    inner: &'a Inner,
    origin: &'a Origin,
    frames: Vec<FrameRef>,
    wishes: Vec<Wish>,
    storing: JoinSet<()>,
    askings: Vec<Asking>,
    failure: Option<Error>,
}

impl<'a> Fetch<'a> {
    pub fn new(inner: &'a Inner, origin: &'a Origin, batch: Vec<Aloft>) -> Self {
        let fresh: Vec<_> = (0..=origin.mirrors.len()).map(SourceId).collect();
        Self {
            inner,
            origin,
            frames: batch.iter().map(|aloft| aloft.frame).collect(),
            wishes: batch
                .into_iter()
                .map(|aloft| Wish { aloft: Some(aloft), fresh: fresh.clone() })
                .collect(),
            storing: JoinSet::new(),
            askings: Vec::new(),
            failure: None,
        }
    }

    /// Fetches the frames, each of which lands as soon as it is there; returns those that did not come, and why.
    pub async fn run(mut self) -> (Vec<Aloft>, Option<Error>) {
        self.ask(&(0..self.wishes.len()).collect::<Vec<_>>());
        while !self.askings.is_empty() && self.wishes.iter().any(|wish| wish.aloft.is_some()) {
            let deadline = self.deadline();
            let arriving = self.askings.iter_mut().map(|asking| asking.arriving.next());
            tokio::select! {
                biased;
                (arrival, at, _) = future::select_all(arriving) => self.arrived(at, arrival),
                () = sleep_until(deadline) => self.race(),
            }
        }
        // What was cut short is not in the cache, which costs another fetch.
        while self.storing.join_next().await.is_some() {}
        let left: Vec<_> = self.wishes.into_iter().filter_map(|wish| wish.aloft).collect();
        let short =
            || Error::new(ErrorKind::Corrupt, "a fetch brought fewer frames than asked for");
        let failure = (!left.is_empty()).then(|| self.failure.unwrap_or_else(short));
        (left, failure)
    }

    /// Asks for frames, each of the best source that was not asked for it yet. Where there is none it is left.
    fn ask(&mut self, places: &[usize]) {
        for (source, places) in self.choose(places) {
            let since = Instant::now();
            for place in &places {
                self.wishes[*place].fresh.retain(|fresh| *fresh != source);
            }
            self.askings.push(Asking {
                source,
                arriving: self.arriving(source, &places),
                places,
                since,
                moved: since,
                got_bytes: 0,
                is_raced: false,
                _under_way: UnderWay::begin(&self.inner.sources, source),
            });
        }
    }

    fn choose(&self, places: &[usize]) -> BTreeMap<SourceId, Vec<usize>> {
        let (rating, now) = (self.inner.sources.rating(), now());
        let bytes = self.bytes_left(places);
        let mut chosen: BTreeMap<SourceId, Vec<usize>> = BTreeMap::new();
        for place in places.iter().filter(|place| self.wishes[**place].aloft.is_some()) {
            let (pack, sources) = (self.frames[*place].pack, &self.wishes[*place].fresh);
            if let Some(source) = rating.choose(&Wanted { sources, pack, bytes }, now) {
                chosen.entry(source).or_default().push(*place);
            }
        }
        chosen
    }

    fn arriving(&self, source: SourceId, places: &[usize]) -> BoxStream<'static, Arrival> {
        let reader = self.origin.reader();
        let Some(mirror) = source.0.checked_sub(1).map(|at| &self.origin.mirrors[at]) else {
            let arriving = reader.fetch_each(&self.at(places));
            return in_place(arriving, places.to_vec(), None);
        };
        // Pack by pack: a mirror may lack one and have the others.
        let mut packs: BTreeMap<Digest, Vec<usize>> = BTreeMap::new();
        for place in places {
            packs.entry(self.frames[*place].pack).or_default().push(*place);
        }
        let packs = packs.into_iter().map(|(pack, places)| {
            in_place(reader.fetch_each_from(mirror, &self.at(&places)), places, Some(pack))
        });
        stream::iter(packs.collect::<Vec<_>>()).flatten_unordered(PACKS_AT_ONCE).boxed()
    }

    fn arrived(&mut self, at: usize, arrival: Option<Arrival>) {
        let asking = &mut self.askings[at];
        match arrival {
            Some(Ok((place, plain))) => {
                asking.moved = Instant::now();
                let bytes = u64::from(self.frames[place].stored_bytes);
                asking.got_bytes += bytes;
                if let Some(aloft) = self.wishes[place].aloft.take() {
                    self.inner.sources.rating().landed(asking.source, bytes);
                    self.inner.land(self.origin, aloft, plain, &mut self.storing);
                    self.part_with_idle();
                }
            }
            Some(Err((Some(pack), error))) if error.kind() == ErrorKind::NotFound => {
                self.inner.sources.rating().lacks(asking.source, pack, now());
                let frames = &self.frames;
                let lacking = asking.places.extract_if(.., |place| frames[*place].pack == pack);
                let lacking = lacking.collect();
                self.failure.get_or_insert(error);
                self.ask_instead(lacking);
            }
            Some(Err((_, error))) => {
                let asking = self.askings.swap_remove(at);
                self.failed(asking.source, error);
                self.ask_instead(asking.places);
            }
            None => {
                let asking = self.askings.swap_remove(at);
                self.learn(&asking);
                self.ask_instead(asking.places);
            }
        }
    }

    /// Asks the next for what one did not bring, unless another is asked for it already: its time is looked at anew.
    fn ask_instead(&mut self, places: Vec<usize>) {
        let (mut left, others) = (places, &mut self.askings);
        left.retain(|place| !others.iter().any(|other| other.places.contains(place)));
        others.iter_mut().for_each(|other| other.is_raced = false);
        self.ask(&left);
    }

    fn failed(&mut self, source: SourceId, error: Error) {
        if source == SourceId::REPOSITORY {
            if error.kind() == ErrorKind::Unavailable {
                self.inner.sources.fault(source, &Fault::Failed(error.chain()));
            }
            // What it says matters more than what mirrors do.
            self.failure = Some(error);
            return;
        }
        let fault = match error.kind() {
            ErrorKind::Corrupt => Fault::Lied(error.chain()),
            _ => Fault::Failed(error.chain()),
        };
        self.inner.sources.fault(source, &fault);
        self.failure.get_or_insert(error);
    }

    /// When the patience with somebody is over for whom another could be asked.
    fn deadline(&self) -> Option<Instant> {
        let rating = self.inner.sources.rating();
        let could_race = |asking: &&Asking| {
            let is_open = |place: &usize| {
                self.wishes[*place].aloft.is_some() && !self.wishes[*place].fresh.is_empty()
            };
            !asking.is_raced && asking.places.iter().any(is_open)
        };
        let until = |asking: &Asking| {
            let bytes = self.bytes_left(&asking.places);
            asking.moved + rating.patience(asking.source, bytes, now())
        };
        self.askings.iter().filter(could_race).map(until).min()
    }

    /// Asks others as well for what is awaited too long, if that may cost so much.
    fn race(&mut self) {
        let (mut awaited, now) = (Vec::new(), now());
        for at in 0..self.askings.len() {
            let asking = &self.askings[at];
            let bytes = self.bytes_left(&asking.places);
            let patience = self.inner.sources.rating().patience(asking.source, bytes, now);
            if !asking.is_raced && asking.moved + patience <= Instant::now() {
                self.askings[at].is_raced = true;
                awaited.extend_from_slice(&self.askings[at].places);
            }
        }
        awaited.sort_unstable();
        awaited.dedup();
        let bytes = self.choose(&awaited).values().map(|places| self.bytes_left(places)).sum();
        if self.inner.sources.rating().race(bytes) {
            self.ask(&awaited);
        }
    }

    /// Cancels those who have nothing more to bring, and judges them by who brought what.
    fn part_with_idle(&mut self) {
        let is_idle =
            |asking: &Asking| asking.places.iter().all(|place| self.wishes[*place].aloft.is_none());
        for asking in self.askings.iter().filter(|asking| is_idle(asking)) {
            let outran = |other: &Asking| {
                let has_same = other.places.iter().any(|place| asking.places.contains(place));
                has_same && other.since > asking.since && other.moved > asking.moved
            };
            if asking.is_raced && self.askings.iter().any(outran) {
                self.inner.sources.fault(asking.source, &Fault::Late);
            } else {
                self.learn(asking);
            }
        }
        let wishes = &self.wishes;
        self.askings
            .retain(|asking| asking.places.iter().any(|place| wishes[*place].aloft.is_some()));
    }

    fn learn(&self, asking: &Asking) {
        if asking.got_bytes > 0 {
            let took = asking.moved - asking.since;
            self.inner.sources.rating().answered(asking.source, asking.got_bytes, took, now());
        }
    }

    fn at(&self, places: &[usize]) -> Vec<FrameRef> {
        places.iter().map(|place| self.frames[*place]).collect()
    }

    fn bytes_left(&self, places: &[usize]) -> u64 {
        let left = places.iter().filter(|place| self.wishes[**place].aloft.is_some());
        left.map(|place| u64::from(self.frames[*place].stored_bytes)).sum()
    }
}

/// Gives frames their places in the fetch.
fn in_place(
    arriving: FramesArriving,
    places: Vec<usize>,
    pack: Option<Digest>,
) -> BoxStream<'static, Arrival> {
    let arriving = arriving.map(move |arrived| match arrived {
        Ok((at, plain)) => Ok((places[at], plain)),
        Err(error) => Err((pack, error)),
    });
    arriving.boxed()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => future::pending().await,
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
