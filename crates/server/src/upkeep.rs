//! What the server does for its repositories by itself: it prunes them by their rules, and reads them again and again.
//!
//! Two tasks, one repository each at a time. What is due is in the database, so a restart forgets nothing: a check goes on where
//! it was. A check never takes more than a quarter of a disk's and a processor's time, nor more than its rate. An appliance without a
//! rule is never pruned; a user disk is left alone while a publication may be under way that builds on an old version ([`is_at_rest`]).

pub mod record;

use std::sync::Arc;
use std::time::{Duration, Instant};

use collective_model::{ErrorKind, RepositoryId, Result, Timestamp, Version};
use collective_repository::{
    Damage, Descriptor, Kind, PruneOptions, PruneReport, Repository, Retention, Trust, VerifyReport,
};
use tokio_util::sync::CancellationToken;

use crate::database::Value;
use crate::lock::LockState;
use crate::popularity;
use crate::routes::repository::bring_up_latest;
use crate::routes::subscription::peek_lock;
use crate::state::State;

/// How long an object must have been unreached before it is swept: longer than the longest upload or start.
const SWEEP_GRACE: Duration = Duration::from_secs(24 * 3600);
/// A check rests for so many times what a step took.
const REST: u32 = 3;
/// Bytes between two notes of how far a check is: what is read again after a restart.
const NOTE_BYTES: u64 = 256 << 20;
/// How long after its computer took a user disk an undo is surely over if there is nothing left to back up.
const UNDO_USUAL: Duration = Duration::from_secs(3600);
/// How long a user disk in use, with something to back up, may keep its old versions: an undo needs its computer at rest, which after
/// so long is not what it waits for.
const UNDO_LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often the server looks after its repositories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpkeepSettings {
    /// How often it looks what is due.
    pub look_every: Duration,
    /// Each repository that has a rule is pruned so often.
    pub prune_every: Duration,
    /// Each repository is read whole so often.
    pub verify_every: Duration,
    /// Bytes of checks in a second at most; 0: the server checks nothing by itself.
    pub verify_bytes_s: u64,
}

impl Default for UpkeepSettings {
    fn default() -> Self {
        let (look_every, day) = (Duration::from_secs(600), Duration::from_secs(24 * 3600));
        Self { look_every, prune_every: day, verify_every: 30 * day, verify_bytes_s: 8 << 20 }
    }
}

/// Prunes what is due until the server stops.
pub async fn keep_pruned(state: Arc<State>, settings: UpkeepSettings, stop: CancellationToken) {
    while is_time(settings.look_every, &stop).await {
        if let Err(error) = prune_due(&state, settings, &stop).await {
            tracing::error!("{}", error.chain());
        }
    }
}

/// Checks what is due until the server stops.
pub async fn keep_checked(state: Arc<State>, settings: UpkeepSettings, stop: CancellationToken) {
    if settings.verify_bytes_s == 0 {
        return;
    }
    while is_time(settings.look_every, &stop).await {
        if let Err(error) = check_due(&state, settings, &stop).await {
            tracing::error!("{}", error.chain());
        }
    }
}

/// Waits; returns false if the server stops meanwhile.
async fn is_time(wait: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(wait) => true,
    }
}

/// Opens a repository as its keeper: it is believed because the database names it.
pub async fn open(state: &State, descriptor: &Descriptor) -> Result<Repository> {
    let trust = Trust { id: descriptor.id, publisher: descriptor.publisher, secret: None };
    Repository::open(state.objects.repository(descriptor.id)?, trust).await
}

/// Prunes a repository.
pub async fn prune(
    state: &State,
    descriptor: &Descriptor,
    rule: Retention,
    keep: Vec<Version>,
    dry_run: bool,
) -> Result<PruneReport> {
    bring_up_latest(state, descriptor.id).await?;
    let repository = open(state, descriptor).await?;
    let (grace, now) = (SWEEP_GRACE, state.now());
    let report = repository.prune(PruneOptions { rule, keep, grace, now, dry_run }).await?;
    if !dry_run {
        popularity::keep_only(state, descriptor.id, &report.kept_versions).await?;
    }
    Ok(report)
}

async fn prune_due(
    state: &State,
    settings: UpkeepSettings,
    stop: &CancellationToken,
) -> Result<()> {
    let user_disks = record::user_disk_retention(state).await?;
    let sql = "select repositories.descriptor, appliances.name, appliances.retention \
        from repositories left join upkeep on upkeep.repository = repositories.id \
        left join appliances on appliances.repository = repositories.id \
        left join subscriptions on subscriptions.repository = repositories.id \
        where head > 0 and coalesce(pruned, 0) <= $1 \
        and (retention is not null or subscriptions.id is not null)";
    let before = Value::from(before(state.now(), settings.prune_every));
    for row in state.database.read(sql, &[before]).await? {
        let descriptor: Descriptor = row.json(0)?;
        let rule = match descriptor.kind {
            Kind::Appliance => row.json_optional(2)?,
            Kind::UserDisk => user_disks,
        };
        let Some(rule) = rule else { continue };
        let pruned = tokio::select! {
            // It can be broken off anywhere, and is done again after the next start.
            () = stop.cancelled() => return Ok(()),
            pruned = prune_one(state, &descriptor, rule, row.optional_text(1)?) => pruned,
        };
        if let Err(error) = pruned {
            tracing::error!(repository = %descriptor.id, "not pruned: {}", error.chain());
        }
    }
    Ok(())
}

async fn prune_one(
    state: &State,
    descriptor: &Descriptor,
    rule: Retention,
    appliance: Option<String>,
) -> Result<()> {
    let id = descriptor.id;
    let _turn = state.turn(&state.repository_work).await?;
    if descriptor.kind == Kind::UserDisk && !is_at_rest(&peek_lock(state, id).await?, state.now()) {
        return Ok(());
    }
    let report = prune(state, descriptor, rule, Vec::new(), false).await?;
    let count = report.removed_versions.len();
    let freed_bytes = report.removed_bytes;
    tracing::info!(repository = %id, versions = count, freed_bytes, "pruned by its rule");
    if let Some(name) = appliance.filter(|_| count > 0) {
        let mut transaction = state.database.begin().await?;
        let what = format!("pruned {count} versions of {name} by its rule");
        state.audit(&mut transaction, "the server", what).await?;
        transaction.commit().await?;
    }
    record::pruned(state, id).await
}

/// Tells whether nobody can be publishing from an old version of a user disk. Only an undo does, whose computer holds the lock and is not
/// done: it has something to back up, or is away.
fn is_at_rest(lock: &LockState, now: Timestamp) -> bool {
    lock.held.as_ref().is_none_or(|held| {
        let is_heard_of = now < held.expires;
        let is_done = held.backlog_bytes == Some(0) && now.since(held.since) > UNDO_USUAL;
        is_heard_of && (is_done || now.since(held.since) > UNDO_LIMIT)
    })
}

async fn check_due(
    state: &State,
    settings: UpkeepSettings,
    stop: &CancellationToken,
) -> Result<()> {
    let sql = "select repositories.descriptor from repositories \
        left join upkeep on upkeep.repository = repositories.id \
        where head > 0 and (coalesce(checked, 0) <= $1 or checking is not null) \
        order by case when checking is null then 1 else 0 end, coalesce(checked, 0)";
    let before = Value::from(before(state.now(), settings.verify_every));
    for row in state.database.read(sql, &[before]).await? {
        let descriptor: Descriptor = row.json(0)?;
        if let Err(error) = check(state, &descriptor, settings.verify_bytes_s, stop).await {
            tracing::error!(repository = %descriptor.id, "not checked: {}", error.chain());
        }
        if stop.is_cancelled() {
            break;
        }
    }
    Ok(())
}

async fn check(
    state: &State,
    descriptor: &Descriptor,
    bytes_s: u64,
    stop: &CancellationToken,
) -> Result<()> {
    let id = descriptor.id;
    let repository = match open(state, descriptor).await {
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
            let damage = Damage { object: "repository.json".to_owned(), what: error.chain() };
            let report = VerifyReport { damages: vec![damage], ..VerifyReport::default() };
            return finish(state, id, &report).await;
        }
        opened => opened?,
    };
    let mut verification = repository.verification(record::so_far(state, id).await?).await?;
    let mut noted_bytes = None;
    loop {
        let (begin, bytes_before) = (Instant::now(), verification.state().report.bytes);
        if !verification.step().await? {
            return finish(state, id, &verification.state().report).await;
        }
        let bytes = verification.state().report.bytes;
        if noted_bytes.is_none_or(|noted| bytes >= noted + NOTE_BYTES) {
            record::under_way(state, id, verification.state()).await?;
            noted_bytes = Some(bytes);
        }
        if !is_time(rest(begin.elapsed(), bytes - bytes_before, bytes_s), stop).await {
            return record::under_way(state, id, verification.state()).await;
        }
    }
}

async fn finish(state: &State, id: RepositoryId, report: &VerifyReport) -> Result<()> {
    match report.damages.first() {
        None => tracing::info!(repository = %id, bytes = report.bytes, "checked; all is well"),
        Some(first) => {
            tracing::error!(repository = %id, "damaged: {}: {}", first.object, first.what);
        }
    }
    record::finished(state, id, report).await
}

/// How long to wait after a step that took a time and read some bytes.
fn rest(took: Duration, bytes: u64, bytes_s: u64) -> Duration {
    let by_rate = Duration::from_secs_f64(bytes as f64 / bytes_s as f64);
    by_rate.saturating_sub(took).max(took * REST)
}

fn before(now: Timestamp, every: Duration) -> i64 {
    now.0.saturating_sub(i64::try_from(every.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
