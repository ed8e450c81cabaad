//! Removes versions, and later what only they reached.
use std::time::Duration;

use collective_model::{Result, Timestamp, Version};

use crate::Repository;

/// What to keep.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// The newest versions, this many; the head is always kept.
    pub keep_last: u64,
    /// These versions as well.
    pub keep: Vec<Version>,
    /// How long an object must have been unreached before it is removed: longer than the longest publish or start.
    pub grace: Duration,
    /// The time.
    pub now: Timestamp,
    /// Whether only to say what would be done.
    pub dry_run: bool,
}

/// What was done, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// Versions removed.
    pub removed_versions: Vec<Version>,
    /// Versions that stay.
    pub kept_versions: Vec<Version>,
    /// Objects removed.
    pub removed_objects: u64,
    /// Bytes that they had.
    pub removed_bytes: u64,
    /// Objects that nothing reaches and that a later prune will remove.
    pub waiting_objects: u64,
    /// Bytes that they have.
    pub waiting_bytes: u64,
}

impl Repository {
    /// Removes versions, and objects that were unreached for as long as `grace`.
    ///
    /// # Errors
    /// `NotFound` for a version to keep that is not there; `Corrupt` if a manifest cannot be read: then nothing is removed.
    pub async fn prune(&self, options: PruneOptions) -> Result<PruneReport> {
        let _ = options;
        Err(collective_model::Error::new(collective_model::ErrorKind::Internal, "not built yet"))
    }
}
