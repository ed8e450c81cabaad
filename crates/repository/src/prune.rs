//! Pruning: removes versions at once, and what only they reached in two phases, so that nobody is cut off.
//!
//! ```text
//! reached ──version removed, or upload broken off──▶ unreached ──first prune: noted──▶ noted ──a prune after `grace`──▶ removed
//!    ▲                                                                                  │
//!    └──────────────────────────── a publication reaches it again ◀─────────────────────┘
//! ```
//!
//! What was noted, and when, is kept in `sweep.json`. An object is removed only if an earlier prune noted it at least `grace` ago, it was not
//! written since, and nothing reaches it now. A reader of a removed version, and a publisher who builds on one or uploads what no
//! manifest names yet, so have `grace` to finish; a commit that is later still is refused, because it names what is not there. The plan is
//! pure; carrying it out can be broken off anywhere and repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use collective_model::{Error, ErrorKind, Result, Timestamp, Version};
use serde::{Deserialize, Serialize};

use crate::backend::{Listed, ObjectName};
use crate::manifest::Manifest;
use crate::repository::Repository;

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
    /// Objects removed, the manifests of removed versions among them.
    pub removed_objects: u64,
    /// Bytes that they had.
    pub removed_bytes: u64,
    /// Objects that nothing reaches and that a later prune will remove.
    pub waiting_objects: u64,
    /// Bytes that they have.
    pub waiting_bytes: u64,
}

/// The content of `sweep.json`: what nothing reached, and since when that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Noted {
    since: BTreeMap<ObjectName, Timestamp>,
}

/// What a prune will do, with nothing left to decide.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Objects noted long ago.
    sweep: Vec<ObjectName>,
    /// Manifests of versions that are not kept.
    forget: Vec<ObjectName>,
    noted: Noted,
    report: PruneReport,
}

impl Repository {
    /// Removes versions, and objects that were unreached for as long as `grace`.
    ///
    /// # Errors
    /// `NotFound` for a version to keep that is not there; `Corrupt` if the manifest of a version to keep cannot be read: then nothing is
    /// removed.
    pub async fn prune(&self, options: PruneOptions) -> Result<PruneReport> {
        let _exclusive = self.backend().exclusive().await?;
        let versions = self.versions().await?;
        let kept = kept_versions(&versions, &options)?;
        let mut reached = BTreeSet::new();
        for version in &kept {
            let reader = self.version(*version).await?;
            reached.extend(needed(reader.manifest()));
        }
        let mut listed = self.backend().list("versions/").await?;
        listed.extend(self.backend().list("packs/").await?);
        let plan = plan(&listed, &reached, &self.noted().await?, &kept, &options);
        if !options.dry_run {
            self.carry_out(&plan).await?;
            let before = Timestamp(options.now.0.saturating_sub(millis(options.grace)));
            self.backend().remove_leftovers(before).await?;
        }
        Ok(plan.report)
    }

    async fn carry_out(&self, plan: &Plan) -> Result<()> {
        for name in plan.sweep.iter().chain(&plan.forget) {
            self.backend().delete(name).await?;
        }
        // Last: a prune that is broken off before has noted less, and so waits longer.
        let text = serde_json::to_vec(&plan.noted)
            .map_err(|error| Error::new(ErrorKind::Internal, "cannot write").with_source(error))?;
        self.backend().write(&ObjectName::Sweep, text.into()).await
    }

    /// Reads what the last prune noted. If it is damaged, waiting begins anew.
    async fn noted(&self) -> Result<Noted> {
        match self.backend().read(&ObjectName::Sweep, None).await {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                Ok(Noted::default())
            }
            Err(error) => Err(error),
        }
    }
}

/// Names what a version needs, and its manifest.
fn needed(manifest: &Manifest) -> impl Iterator<Item = ObjectName> {
    let objects = manifest.objects().into_iter().map(|object| object.name);
    objects.chain([ObjectName::Manifest(manifest.version)])
}

fn kept_versions(versions: &[Version], options: &PruneOptions) -> Result<Vec<Version>> {
    if let Some(missing) = options.keep.iter().find(|version| !versions.contains(version)) {
        let message = format!("version {missing}, which is to be kept, does not exist");
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    let last = usize::try_from(options.keep_last.max(1)).unwrap_or(usize::MAX);
    let newest = &versions[versions.len().saturating_sub(last)..];
    let kept = versions.iter().filter(|it| newest.contains(it) || options.keep.contains(it));
    Ok(kept.copied().collect())
}

fn plan(
    listed: &[Listed],
    reached: &BTreeSet<ObjectName>,
    noted: &Noted,
    kept: &[Version],
    options: &PruneOptions,
) -> Plan {
    let mut plan = Plan::default();
    plan.report.kept_versions = kept.to_vec();
    let head = kept.last();
    for object in listed.iter().filter(|object| !reached.contains(&object.name)) {
        let report = &mut plan.report;
        if let ObjectName::Manifest(version) = object.name
            && head.is_some_and(|head| version <= *head)
        {
            report.removed_versions.push(version);
            report.removed_objects += 1;
            report.removed_bytes += object.size_bytes;
            plan.forget.push(object.name);
            continue;
        }
        let known = noted.since.get(&object.name).copied();
        // A clock that jumped back must not make anything look old.
        let since = known.unwrap_or(options.now).max(object.modified);
        if known.is_some() && options.now.since(since) >= options.grace {
            report.removed_objects += 1;
            report.removed_bytes += object.size_bytes;
            plan.sweep.push(object.name);
        } else {
            report.waiting_objects += 1;
            report.waiting_bytes += object.size_bytes;
            plan.noted.since.insert(object.name, since);
        }
    }
    plan.report.removed_versions.sort_unstable();
    plan
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
