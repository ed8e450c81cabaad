//! What is read of an appliance's system disk: reports of hosts, and the counts that come of them.
//!
//! Both speak of [regions](collective_model::Regions) of the disk. Only what the recorded start of a version did not touch is
//! reported: that is known already. A report says nothing of who read, when, or what of it is on a user disk.

use collective_model::Version;
use serde::{Deserialize, Serialize};

/// Runs of regions in a report, at most: every second region of the largest number that there is.
pub const REPORT_RUNS_MAX: usize = 1 << 15;

/// What one guest read of its system disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadReport {
    /// The version that ran.
    pub version: Version,
    /// Which part of its life this is about.
    pub part: ReadPart,
    /// Where something was read for the first time that the recorded start had not touched; in order, none twice.
    pub regions: Vec<RegionRun>,
    /// Bytes that were read in this part, each counted once.
    pub read_bytes: u64,
    /// How many of them the version's boot trace had foretold; of a start only, else 0.
    pub foretold_bytes: u64,
}

/// A part of a guest's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadPart {
    /// Until its agent answered.
    Start,
    /// From then on until it ended.
    Use,
}

/// Regions that lie one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionRun {
    /// The number of the first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// What was reported of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Popularity {
    /// Of the version that was asked for, or of the last before it of which something was reported.
    #[serde(flatten)]
    pub reads: VersionReads,
    /// Blocks in a region.
    pub region_blocks: u64,
    /// Regions in which somebody read, in order.
    pub runs: Vec<PopularRun>,
}

/// Regions that lie one after another and were read equally often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PopularRun {
    /// The number of the first.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Starts that read in each of them.
    pub starts: u64,
    /// Uses that read in each of them.
    pub uses: u64,
}

/// How well the boot trace of a version foretells starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionReads {
    /// The version.
    pub version: Version,
    /// Starts that were reported.
    pub starts: u64,
    /// Uses that were reported.
    pub uses: u64,
    /// Bytes that those starts read together.
    pub read_bytes: u64,
    /// How many of them the boot trace had foretold.
    pub foretold_bytes: u64,
}
