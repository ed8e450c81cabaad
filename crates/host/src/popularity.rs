//! What is read most of an appliance, as the server counted it: asked for, kept for when it is away, and put in order.
//!
//! Counts are advice. What is fetched or packed by them is checked like everything else, so wrong ones cost time only.

use std::cmp::Reverse;
use std::time::Duration;

use collective_api::server::{PopularRun, Popularity};
use collective_model::{BlockRange, RepositoryId, Version};
use collective_repository::Trace;

use crate::core::Core;
use crate::record;
use crate::session::Session;

/// How long the server may take to say what is popular; then what it said last is used.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Blocks that are fetched after a start because they are popular, at most: 128 MiB.
const AHEAD_BLOCKS: u64 = 1 << 15;
/// What is put into a trace because it was reported is at most this part of what was recorded.
const REPORTED_PART: u64 = 4;
/// Reports without which nothing goes into a trace: one person's habits are nobody's boot.
const REPORTS_MIN: u64 = 2;

/// Asks what is read most of a version, or returns what was heard last.
pub(crate) async fn of(
    core: &Core,
    session: &Session,
    repository: RepositoryId,
    version: Version,
) -> Option<Popularity> {
    let asked = session.remote.popularity(repository, version);
    let path = core.paths.popularity(repository);
    match tokio::time::timeout(ANSWER_LIMIT, asked).await {
        Ok(Ok(Some(popularity))) => {
            if let Err(error) = record::store(&path, &popularity) {
                tracing::debug!("what is popular is not kept: {}", error.chain());
            }
            Some(popularity)
        }
        Ok(Ok(None)) => None,
        Ok(Err(_)) | Err(_) => record::load(&path).ok().flatten(),
    }
}

/// Everything that was read by somebody, the most first.
pub(crate) fn ranked(popularity: &Popularity) -> Vec<BlockRange> {
    let mut runs: Vec<_> = popularity.runs.iter().collect();
    runs.sort_by_key(|run| Reverse(readers(run)));
    ranges(popularity, runs)
}

/// What at least half of the guests read, the most first: worth fetching before anybody asks.
pub(crate) fn likely(popularity: &Popularity) -> Vec<BlockRange> {
    let guests = popularity.reads.starts.max(popularity.reads.uses);
    let mut runs: Vec<_> =
        popularity.runs.iter().filter(|run| is_half(readers(run), guests)).collect();
    runs.sort_by_key(|run| Reverse(readers(run)));
    bounded(ranges(popularity, runs), AHEAD_BLOCKS)
}

/// Puts what at least half of the starts, and then of the uses, read besides after what was recorded.
pub(super) fn merged(recorded: &Trace, popularity: &Popularity) -> Trace {
    let mut starts: Vec<&PopularRun> = Vec::new();
    let mut uses: Vec<&PopularRun> = Vec::new();
    for run in &popularity.runs {
        if popularity.reads.starts >= REPORTS_MIN && is_half(run.starts, popularity.reads.starts) {
            starts.push(run);
        } else if popularity.reads.uses >= REPORTS_MIN && is_half(run.uses, popularity.reads.uses) {
            uses.push(run);
        }
    }
    starts.sort_by_key(|run| Reverse(run.starts));
    uses.sort_by_key(|run| Reverse(run.uses));
    let recorded_blocks: u64 = recorded.recorded().iter().map(|range| range.count).sum();
    let reported = ranges(popularity, starts.into_iter().chain(uses));
    recorded.with_reported(&bounded(reported, recorded_blocks / REPORTED_PART))
}

/// Guests that read in a run: each region is read for the first time once, at the start or later.
fn readers(run: &PopularRun) -> u64 {
    run.starts.saturating_add(run.uses)
}

fn is_half(part: u64, of: u64) -> bool {
    part > 0 && part >= of.div_ceil(2)
}

/// The blocks of runs; those that no disk has are left out.
fn ranges<'a>(
    popularity: &Popularity,
    runs: impl IntoIterator<Item = &'a PopularRun>,
) -> Vec<BlockRange> {
    let range = |run: &PopularRun| {
        let start = run.first.checked_mul(popularity.region_blocks)?;
        let count = run.count.checked_mul(popularity.region_blocks)?;
        start.checked_add(count).map(|_| BlockRange::new(start, count))
    };
    runs.into_iter().filter_map(range).collect()
}

/// The first of some ranges, up to so many blocks.
fn bounded(mut ranges: Vec<BlockRange>, mut blocks: u64) -> Vec<BlockRange> {
    for range in &mut ranges {
        range.count = range.count.min(blocks);
        blocks -= range.count;
    }
    ranges.retain(|range| !range.is_empty());
    ranges
}

#[cfg(test)]
mod tests {
    use collective_api::server::{PopularRun, Popularity, VersionReads};
    use collective_model::{BlockRange, Version};
    use collective_repository::Trace;

    use super::{AHEAD_BLOCKS, likely, merged, ranked};

    /// Of runs of regions of 64 blocks: the first, how many, starts and uses.
    fn popularity(starts: u64, uses: u64, runs: &[(u64, u64, u64, u64)]) -> Popularity {
        let runs = runs.iter().map(|&(first, count, starts, uses)| PopularRun {
            first,
            count,
            starts,
            uses,
        });
        let version = Version::FIRST;
        let reads = VersionReads { version, starts, uses, read_bytes: 0, foretold_bytes: 0 };
        Popularity { reads, region_blocks: 64, runs: runs.collect() }
    }

    /// The regions in some ranges: the first and how many.
    fn regions(ranges: &[BlockRange]) -> Vec<(u64, u64)> {
        ranges.iter().map(|range| (range.start / 64, range.count / 64)).collect()
    }

    #[test]
    fn what_more_guests_read_comes_first_and_neighbours_in_the_order_of_the_disk() {
        let counts = popularity(4, 4, &[(0, 2, 1, 0), (2, 1, 1, 2), (7, 3, 0, 3), (20, 1, 4, 0)]);
        assert_eq!(regions(&ranked(&counts)), [(20, 1), (2, 1), (7, 3), (0, 2)]);
        assert_eq!(regions(&likely(&counts)), [(20, 1), (2, 1), (7, 3)]);
    }

    #[test]
    fn what_is_fetched_after_a_start_is_bounded_and_nonsense_is_left_out() {
        let far = u64::MAX / 64;
        let counts = popularity(1, 1, &[(0, far, 0, 1), (far, 2, 0, 1), (u64::MAX, 1, 0, 1)]);
        assert_eq!(likely(&counts), [BlockRange::new(0, AHEAD_BLOCKS)]);
        assert_eq!(ranked(&counts), [BlockRange::new(0, far * 64)]);
    }

    #[test]
    fn a_trace_is_merged_with_what_half_of_the_starts_and_then_of_the_uses_read_besides() {
        let recorded = Trace { ranges: vec![BlockRange::new(1000, 64 * 32)] };
        let runs = [(0, 1, 0, 2), (3, 1, 1, 3), (5, 2, 3, 0), (9, 1, 2, 1), (11, 3, 0, 4)];
        let reported = |trace: &Trace| regions(&trace.ranges[trace.recorded().len()..]);
        let trace = merged(&recorded, &popularity(4, 4, &runs));
        assert_eq!(trace.recorded(), recorded.ranges);
        // The mark, and then as much as a quarter of what was recorded.
        let mark = ((1000 + 64 * 32) / 64, 0);
        assert_eq!(reported(&trace), [mark, (5, 2), (9, 1), (11, 3), (3, 1), (0, 1)]);
        let small = Trace { ranges: vec![BlockRange::new(0, 64 * 16)] };
        assert_eq!(
            reported(&merged(&small, &popularity(4, 4, &runs)))[1..],
            [(5, 2), (9, 1), (11, 1)]
        );
        // One guest says nothing about the next.
        assert_eq!(merged(&recorded, &popularity(1, 1, &[(0, 1, 1, 0)])), recorded);
    }
}
