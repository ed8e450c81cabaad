//! Which of several sources of the same frames is asked, how long it may take, and which is asked no more. Pure.
//!
//! The first source is the repository itself, and always the last resort; the further ones are mirrors. Of each it is known
//! how long a byte took lately, how often it failed, and which packs it lacks.
//!
//! ```text
//! unknown ──an answer──> known ──late or failed──> dropped for a while, which doubles ──over──> unknown
//!    └one request at a time        └──wrong bytes──> dropped for a day
//! ```
//!
//! One figure says how fast a source is: the time for a byte, where each request counts as [`REQUEST_BYTES`] more than it asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use collective_model::Digest;

/// What a request costs beside its bytes, in bytes: what a slow line moves in one round trip.
const REQUEST_BYTES: u64 = 64 << 10;
/// The weight of the last answer in what is known of a source.
const NEWEST: f64 = 0.25;
/// What was learned is forgotten after so long: lines change.
const FORGET: Duration = Duration::from_secs(60);
/// A mirror is used until the repository is that much faster: it spares the server and the line to it.
const MARGIN: f64 = 2.0;
/// Answers of a mirror that come this soon are fast, as for the pace: no better ones are looked for.
const GOOD_ENOUGH: Duration = Duration::from_millis(250);
/// How long a source of which nothing is known may show nothing before it is raced.
const FIRST_PATIENCE: Duration = Duration::from_millis(750);
/// What a known one may take beyond twice what is expected.
const GRACE: Duration = Duration::from_millis(250);
/// The longest that a source may show nothing before it is raced, however slow it was.
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes that races may ask for twice: some, and a share of what was fetched. A guest behind a line that is slow as a whole
/// must not pay twice for all of it.
const RACED_BYTES: u64 = 4 << 20;
const RACED_SHARE: u64 = 8;
/// How long a source is dropped that was late or failed; twice as long each time, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(10 * 60);
/// Answers after which the pauses of a source begin anew.
const PROVEN: u32 = 16;
/// How long a source is dropped that gave wrong bytes: they do not come by chance.
const LIE_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// How long a pack is not asked for again where it was lacking: copies are brought up to date.
const LACK_PAUSE: Duration = Duration::from_secs(10 * 60);
/// Packs that are remembered to lack, for each source: 64 GiB of them. Beyond, they are asked for in vain.
const LACKING_PACKS: usize = 4096;
/// Signs of a reason that are kept.
const REASON_SIGNS: usize = 300;

/// A source, by its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SourceId(pub usize);

impl SourceId {
    /// The repository itself.
    pub const REPOSITORY: Self = Self(0);
}

/// Why a source is not asked any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Since when; from then on it gave nothing.
    pub since: Instant,
    /// From when on it may be asked again.
    pub until: Instant,
    /// Why, in words for people.
    pub reason: String,
}

/// What became of asking a source, beside frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Another was faster, though it began later.
    Late,
    /// It cannot be reached, or gives no answer that can be used.
    Failed(String),
    /// It gave wrong bytes.
    Lied(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late => f.write_str("it was slower than another that was asked later"),
            Self::Failed(why) => f.write_str(why),
            Self::Lied(why) => write!(f, "it gave wrong bytes: {why}"),
        }
    }
}

/// What is wanted of a source.
#[derive(Clone, Debug)]
pub(super) struct Wanted<'a> {
    /// Who may be asked.
    pub sources: &'a [SourceId],
    /// Which pack it is about.
    pub pack: Digest,
    /// How many bytes go with one request.
    pub bytes: u64,
}

/// What is known of all sources.
#[derive(Clone, Debug)]
pub(super) struct Rating {
    sources: Vec<Rated>,
    fetched_bytes: u64,
    raced_bytes: u64,
}

/// What is known of one.
#[derive(Clone, Debug, Default)]
pub(super) struct Rated {
    /// Seconds that a byte takes, and when the last came.
    pace: Option<(f64, Instant)>,
    /// Requests under way.
    under_way: usize,
    /// Drops since it was last proven, and answers since the last drop.
    drops: u32,
    answers: u32,
    pub dropped: Option<Dropped>,
    /// When it was last dropped.
    dropped_at: Option<Instant>,
    lacking: BTreeMap<Digest, Instant>,
    pub fetched_bytes: u64,
    pub fetched_frames: u64,
    pub failures: u64,
    pub late: u64,
}

impl Rating {
    /// Of the repository and so many mirrors nothing is known.
    pub fn new(mirrors: usize) -> Self {
        Self { sources: vec![Rated::default(); 1 + mirrors], fetched_bytes: 0, raced_bytes: 0 }
    }

    pub fn sources(&self) -> &[Rated] {
        &self.sources
    }

    /// Bytes that were asked for twice: no more than that was wasted.
    pub fn raced_bytes(&self) -> u64 {
        self.raced_bytes
    }

    /// Chooses who is asked: the fastest; but one that is unknown is tried by one request at a time, unless a mirror does well.
    pub fn choose(&self, wanted: &Wanted<'_>, now: Instant) -> Option<SourceId> {
        let is_usable = |id: &SourceId| self.sources[id.0].is_usable(&wanted.pack, now);
        let usable: Vec<SourceId> = wanted.sources.iter().copied().filter(is_usable).collect();
        let last_resort = wanted.sources.iter().copied().find(|id| *id == SourceId::REPOSITORY);
        let is_mirror = |id: &SourceId| *id != SourceId::REPOSITORY;
        let cost = |id: &SourceId| {
            let pace = self.sources[id.0].pace(now)?;
            Some((*id, if is_mirror(id) { pace } else { pace * MARGIN }))
        };
        let fastest = |known: Vec<(SourceId, f64)>| {
            known.into_iter().min_by(|one, other| one.1.total_cmp(&other.1)).map(|(id, _)| id)
        };
        let is_good = |id: &&SourceId| {
            let takes = self.expected(**id, wanted.bytes, now);
            is_mirror(id) && takes.is_some_and(|takes| takes <= GOOD_ENOUGH)
        };
        let good = fastest(usable.iter().filter(is_good).filter_map(cost).collect());
        if good.is_some() {
            return good;
        }
        let best = fastest(usable.iter().filter_map(cost).collect());
        let is_untried = |id: &SourceId| {
            self.sources[id.0].pace(now).is_none() && self.sources[id.0].under_way == 0
        };
        // Mirrors first.
        let untried = usable
            .iter()
            .copied()
            .filter(is_untried)
            .max_by_key(|id| (is_mirror(id), std::cmp::Reverse(*id)));
        untried.or(best).or(last_resort).or(usable.first().copied())
    }

    /// How long a source may show nothing of so many bytes before another is asked for them as well.
    pub fn patience(&self, id: SourceId, bytes: u64, now: Instant) -> Duration {
        match self.expected(id, bytes, now) {
            Some(takes) => takes.saturating_mul(2).saturating_add(GRACE).min(LONGEST_PATIENCE),
            None => FIRST_PATIENCE,
        }
    }

    /// Tells whether so many bytes may be asked for twice, and if so counts them.
    pub fn race(&mut self, bytes: u64) -> bool {
        let may = self.raced_bytes + bytes <= RACED_BYTES + self.fetched_bytes / RACED_SHARE;
        self.raced_bytes += if may { bytes } else { 0 };
        may
    }

    pub fn begun(&mut self, id: SourceId) {
        self.sources[id.0].under_way += 1;
    }

    pub fn ended(&mut self, id: SourceId) {
        self.sources[id.0].under_way -= 1;
    }

    /// A frame came that nobody had brought before.
    pub fn landed(&mut self, id: SourceId, bytes: u64) {
        self.sources[id.0].fetched_bytes += bytes;
        self.sources[id.0].fetched_frames += 1;
        self.fetched_bytes += bytes;
    }

    /// Learns from so many bytes that came.
    pub fn answered(&mut self, id: SourceId, bytes: u64, took: Duration, now: Instant) {
        let source = &mut self.sources[id.0];
        let newest = pace_of(bytes, took);
        let pace = source.pace(now).map_or(newest, |pace| pace + (newest - pace) * NEWEST);
        source.pace = Some((pace, now));
        if source.dropped_at.is_some_and(|at| now < at + took) {
            // It was asked before it was dropped.
            return;
        }
        source.dropped = None;
        source.answers = source.answers.saturating_add(1);
        if source.answers >= PROVEN {
            source.drops = 0;
        }
    }

    /// Drops a source. The repository too is then asked only when nobody else has what is wanted.
    pub fn fault(&mut self, id: SourceId, fault: &Fault, now: Instant) {
        let source = &mut self.sources[id.0];
        match fault {
            Fault::Late => source.late += 1,
            Fault::Failed(_) | Fault::Lied(_) => source.failures += 1,
        }
        let is_dropped = source.dropped.as_ref().is_some_and(|dropped| now < dropped.until);
        let until = match fault {
            Fault::Lied(_) => now + LIE_PAUSE,
            // Several were on the way.
            Fault::Late | Fault::Failed(_) if is_dropped => return,
            Fault::Late | Fault::Failed(_) => now + source.next_pause(),
        };
        source.drops = source.drops.saturating_add(1);
        source.answers = 0;
        source.pace = None;
        source.dropped_at = Some(now);
        let since = source.dropped.as_ref().map_or(now, |dropped| dropped.since);
        let reason = fault.to_string().chars().take(REASON_SIGNS).collect();
        source.dropped = Some(Dropped { since, until, reason });
    }

    /// A source has no such pack.
    pub fn lacks(&mut self, id: SourceId, pack: Digest, now: Instant) {
        let lacking = &mut self.sources[id.0].lacking;
        lacking.retain(|_, until| now < *until);
        if lacking.len() < LACKING_PACKS {
            lacking.insert(pack, now + LACK_PAUSE);
        }
    }

    /// Forgives all that may be the line's fault: it is said to be back.
    pub fn forgive(&mut self, now: Instant) {
        for source in &mut self.sources {
            let lied = |dropped: &Dropped| dropped.until > now + LONGEST_PAUSE;
            if !source.dropped.as_ref().is_some_and(lied) {
                (source.dropped, source.drops) = (None, 0);
            }
        }
    }

    fn expected(&self, id: SourceId, bytes: u64, now: Instant) -> Option<Duration> {
        let pace = self.sources[id.0].pace(now)?;
        Some(Duration::try_from_secs_f64(pace * weight(bytes)).unwrap_or(Duration::MAX))
    }
}

impl Rated {
    fn pace(&self, now: Instant) -> Option<f64> {
        self.pace.filter(|(_, at)| now < *at + FORGET).map(|(pace, _)| pace)
    }

    fn is_usable(&self, pack: &Digest, now: Instant) -> bool {
        let lacks = self.lacking.get(pack).is_some_and(|until| now < *until);
        !lacks && self.dropped.as_ref().is_none_or(|dropped| dropped.until <= now)
    }

    fn next_pause(&self) -> Duration {
        FIRST_PAUSE.saturating_mul(1 << self.drops.min(16)).min(LONGEST_PAUSE)
    }
}

fn pace_of(bytes: u64, took: Duration) -> f64 {
    took.as_secs_f64() / weight(bytes)
}

fn weight(bytes: u64) -> f64 {
    (bytes + REQUEST_BYTES) as f64
}

#[cfg(test)]
mod tests;
