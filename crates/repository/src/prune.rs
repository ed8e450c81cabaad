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
//! manifest names yet, so have `grace` to finish; a commit that is later still is refused, because it names what is not there.
//!
//! Manifests are read beside publications; only while a few objects at a time are removed are commits kept away, and versions that were
//! published meanwhile are looked at first. The plan is pure; carrying it out can be broken off anywhere and repeated. In memory are one
//! manifest, and for each object its name and what is known of it: some 250 bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use collective_model::{Error, ErrorKind, Result, Timestamp, Version};
use serde::{Deserialize, Serialize};

use crate::backend::{Exclusive, Listed, ObjectName};
use crate::manifest::Manifest;
use crate::repository::Repository;
use crate::retention::{Candidate, Reason, Retention, replaces};

/// Objects that are removed before a publication that waits gets its turn: at two syncs each, less than a second.
const REMOVED_AT_ONCE: usize = 32;

/// Objects that are noted at a time: `sweep.json` may have 64 MiB. What is beyond is noted when these are gone.
const MAX_NOTED: usize = 500_000;

/// What to keep.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// Which versions stay; the head always does.
    pub rule: Retention,
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
    /// Versions that stay, and why.
    pub kept_versions: BTreeMap<Version, Reason>,
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

/// What versions that stay reach, as far as they were looked at.
#[derive(Debug, Default)]
struct Reached {
    objects: BTreeSet<ObjectName>,
    /// The head when it was last looked at; versions after it are new, and stay.
    head: Option<Version>,
}

/// What a prune will do, with nothing left to decide.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// What goes: objects noted long ago, then the manifests of versions that are not kept.
    remove: Vec<Listed>,
    noted: Noted,
    report: PruneReport,
}

impl Repository {
    /// Removes versions, and objects that were unreached for as long as `grace`. The secret of a private repository is not needed.
    ///
    /// # Errors
    /// `NotFound` for a version to keep that is not there; `Corrupt` if the manifest of a version to keep cannot be read: then nothing is
    /// removed.
    pub async fn prune(&self, options: PruneOptions) -> Result<PruneReport> {
        let (head, candidates) = self.candidates().await?;
        check_named(&candidates, &options.keep)?;
        let kind = self.descriptor().kind;
        let kept = options.rule.keep(kind, &candidates, &options.keep, options.now);
        drop(candidates);
        let mut reached = Reached { head, ..Reached::default() };
        for version in kept.keys() {
            let reader = self.version(*version).await?;
            reached.objects.extend(needed(reader.manifest()));
        }
        let mut listed = self.backend().list("versions/").await?;
        listed.extend(self.backend().list("packs/").await?);
        let mut plan = plan(listed, &reached, &self.noted().await?, kept, &options);
        if !options.dry_run {
            self.carry_out(&mut plan, &mut reached).await?;
            let before = Timestamp(options.now.0.saturating_sub(millis(options.grace)));
            self.backend().remove_leftovers(before).await?;
        }
        plan.finish();
        Ok(plan.report)
    }

    /// Reads of every version up to the head what a rule looks at. One whose manifest is damaged is as old as the file.
    async fn candidates(&self) -> Result<(Option<Version>, Vec<Candidate>)> {
        let head = self.head().await?;
        let mut candidates = Vec::new();
        for listed in self.backend().list("versions/").await? {
            let ObjectName::Manifest(version) = listed.name else { continue };
            if head.is_none_or(|head| version > head) {
                continue;
            }
            let stored = listed.modified;
            let (time, replaces) = match self.version(version).await {
                Ok(reader) => (reader.manifest().time, replaces(&reader.manifest().notes)),
                Err(error) if error.kind() == ErrorKind::Corrupt => (stored, false),
                Err(error) => return Err(error),
            };
            candidates.push(Candidate { version, time, stored, replaces });
        }
        Ok((head, candidates))
    }

    async fn carry_out(&self, plan: &mut Plan, reached: &mut Reached) -> Result<()> {
        for batch in std::mem::take(&mut plan.remove).chunks(REMOVED_AT_ONCE) {
            let _exclusive = self.exclusive_and_up_to_date(reached).await?;
            for object in batch.iter().filter(|object| !reached.objects.contains(&object.name)) {
                self.backend().delete(&object.name).await?;
                plan.remove.push(object.clone());
            }
        }
        // Last: a prune that is broken off before has noted less, and so waits longer.
        let _exclusive = self.exclusive_and_up_to_date(reached).await?;
        plan.noted.since.retain(|name, _| !reached.objects.contains(name));
        let text = serde_json::to_vec(&plan.noted)
            .map_err(|error| Error::new(ErrorKind::Internal, "cannot write").with_source(error))?;
        self.backend().write(&ObjectName::Sweep, text.into()).await
    }

    /// Keeps commits away, and adds what those reach that were made since the last time.
    async fn exclusive_and_up_to_date(&self, reached: &mut Reached) -> Result<Exclusive> {
        let exclusive = self.backend().exclusive().await?;
        let head = self.head().await?;
        let (from, to) = (Version::after(reached.head).number(), head.map_or(0, Version::number));
        for version in (from..=to).filter_map(Version::new) {
            match self.version(version).await {
                Ok(reader) => reached.objects.extend(needed(reader.manifest())),
                // Somebody else pruned it meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        reached.head = head;
        Ok(exclusive)
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

fn check_named(candidates: &[Candidate], named: &[Version]) -> Result<()> {
    let is_there = |version: &&Version| candidates.iter().any(|it| it.version == **version);
    match named.iter().find(|version| !is_there(version)) {
        None => Ok(()),
        Some(missing) => {
            let message = format!("version {missing}, which is to be kept, does not exist");
            Err(Error::new(ErrorKind::NotFound, message))
        }
    }
}

fn plan(
    listed: Vec<Listed>,
    reached: &Reached,
    noted: &Noted,
    kept: BTreeMap<Version, Reason>,
    options: &PruneOptions,
) -> Plan {
    let mut plan = Plan::default();
    let mut forget = Vec::new();
    for object in listed.into_iter().filter(|object| !reached.objects.contains(&object.name)) {
        if let ObjectName::Manifest(version) = object.name
            && reached.head.is_some_and(|head| version <= head)
        {
            forget.push(object);
            continue;
        }
        let known = noted.since.get(&object.name).copied();
        // A clock that jumped back must not make anything look old.
        let since = known.unwrap_or(options.now).max(object.modified);
        if known.is_some() && options.now.since(since) >= options.grace {
            plan.remove.push(object);
        } else {
            plan.report.waiting_objects += 1;
            plan.report.waiting_bytes += object.size_bytes;
            if plan.noted.since.len() < MAX_NOTED {
                plan.noted.since.insert(object.name, since);
            }
        }
    }
    plan.remove.extend(forget);
    plan.report.kept_versions = kept;
    plan
}

impl Plan {
    /// Counts what was removed, or would be.
    fn finish(&mut self) {
        for object in &self.remove {
            if let ObjectName::Manifest(version) = object.name
                && self
                    .report
                    .kept_versions
                    .last_key_value()
                    .is_some_and(|(head, _)| version < *head)
            {
                self.report.removed_versions.push(version);
            }
            self.report.removed_objects += 1;
            self.report.removed_bytes += object.size_bytes;
        }
        self.report.removed_versions.sort_unstable();
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
