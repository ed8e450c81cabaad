//! What the guest reads of its system disk: measured against the boot trace, and said to the server, coarsely.
//!
//! ```text
//! starting ──agent answers──▶ started ──some minutes──▶ start reported ──machine ends──▶ use reported
//! ```
//!
//! A machine that an earlier daemon started begins as one whose start was reported. Reports wait in `reports.json`
//! until the server took them or does not want them; nobody waits for that. docs/guide/person.md says what is in them.

use std::sync::Arc;
use std::time::Duration;

use collective_api::host::Foretold;
use collective_api::server::{REPORT_RUNS_MAX, ReadPart, ReadReport, RegionRun};
use collective_disk::{BlockSet, ReadMap, Source, VersionDisk};
use collective_model::{BLOCK_BYTES, ErrorKind, Regions, RepositoryId, Version};
use collective_repository::Trace;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::owner::{Fact, Owner};
use crate::record;
use crate::session::Session;

/// How long after a start it is reported, if the machine does not end before.
const REPORT_AFTER: Duration = Duration::from_secs(180);
/// Pause after the server did not answer.
const RETRY_PAUSE: Duration = Duration::from_secs(300);
/// Reports of one appliance that wait for the server, at most: those of a week without it. The oldest go first.
const REPORTS_WAITING: usize = 16;

/// What the guest of one machine read.
pub(super) struct Reads {
    map: Arc<ReadMap>,
    trace: Arc<Trace>,
    version: Version,
    regions: Regions,
    stage: Stage,
}

enum Stage {
    Starting,
    /// With what was read until then, and the report until it is due.
    Started {
        before: BlockSet,
        report: Option<(ReadReport, Instant)>,
    },
}

impl Reads {
    /// Begins with nothing read; `starting` unless the machine runs already.
    pub(super) fn new(disk: &VersionDisk, version: Version, trace: Trace, starting: bool) -> Self {
        let stage = match starting {
            true => Stage::Starting,
            false => Stage::Started { before: BlockSet::default(), report: None },
        };
        let (map, regions) = (ReadMap::new(disk.size_bytes()), Regions::of_disk(disk.size_bytes()));
        Self { map: Arc::new(map), trace: Arc::new(trace), version, regions, stage }
    }

    /// Where it is noted what is read.
    pub(super) fn map(&self) -> Arc<ReadMap> {
        Arc::clone(&self.map)
    }

    /// What the start was foretold to read.
    pub(super) fn trace(&self) -> Arc<Trace> {
        Arc::clone(&self.trace)
    }

    /// The guest is up: says how much of what it read the trace had foretold.
    fn start_is_over(&mut self) -> Option<Foretold> {
        if !matches!(self.stage, Stage::Starting) {
            return None;
        }
        let read = self.map.snapshot();
        let surprises = read.clone().outside(&self.trace.ranges).count();
        let foretold = Foretold {
            read_bytes: read.count() * BLOCK_BYTES,
            foretold_bytes: (read.count() - surprises) * BLOCK_BYTES,
        };
        let report = ReadReport {
            foretold_bytes: foretold.foretold_bytes,
            ..self.report(ReadPart::Start, read.clone())
        };
        self.stage = Stage::Started { before: read, report: Some((report, Instant::now())) };
        Some(foretold)
    }

    /// The report of the start, once, when it is due.
    fn due(&mut self, after: Duration) -> Option<ReadReport> {
        let Stage::Started { report, .. } = &mut self.stage else { return None };
        report.take_if(|(_, since)| since.elapsed() >= after).map(|(report, _)| report)
    }

    /// What is still to be said when the machine has ended; nothing of a start that did not come up.
    fn rest(&mut self) -> Vec<ReadReport> {
        let start = self.due(Duration::ZERO);
        let Stage::Started { before, .. } = &self.stage else { return Vec::new() };
        let later = self.map.snapshot().without(before);
        start.into_iter().chain([self.report(ReadPart::Use, later)]).collect()
    }

    fn report(&self, part: ReadPart, read: BlockSet) -> ReadReport {
        let read_bytes = read.count() * BLOCK_BYTES;
        let unrecorded = read.outside(self.trace.recorded());
        let mut runs: Vec<RegionRun> = Vec::new();
        for region in unrecorded.regions(self.regions) {
            match runs.last_mut() {
                Some(last) if last.first + last.count == region => last.count += 1,
                _ => runs.push(RegionRun { first: region, count: 1 }),
            }
        }
        runs.truncate(REPORT_RUNS_MAX);
        ReadReport { version: self.version, part, regions: runs, read_bytes, foretold_bytes: 0 }
    }
}

/// A report on its way, in `reports.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    repository: RepositoryId,
    report: ReadReport,
}

/// Reports on their way, the oldest first.
#[derive(Default)]
pub(super) struct Outbox {
    pending: Vec<Pending>,
    sending: Option<AbortOnDropHandle<()>>,
    /// When it is tried again after the server did not answer.
    pause: Option<Instant>,
}

impl Owner {
    /// The guest is up: measures the start, and brings what is popular besides.
    pub(super) fn measure_start(&mut self) {
        let Some(machine) = &mut self.machine else { return };
        let foretold = machine.disks.reads.start_is_over();
        let Some(foretold) = foretold else { return };
        self.record.foretold = Some(foretold);
        let (Ok(session), Some(run)) = (self.session(), &self.record.run) else { return };
        if self.core.fetches_ahead()
            && let Some(machine) = &mut self.machine
        {
            machine.disks.bring_popular(&self.core, session, run.appliance.id, run.version);
        }
    }

    /// Reads the reports that an earlier daemon did not get rid of.
    pub(super) fn load_reports(&mut self) {
        let path = self.paths.reports();
        let loaded = match self.core.options.reports {
            true => record::load(&path).map(Option::unwrap_or_default),
            false => record::remove(&path).map(|()| Vec::new()),
        };
        match loaded {
            Ok(pending) => self.outbox.pending = pending,
            // Nobody misses them.
            Err(error) => tracing::warn!("{}: {}", self.what(), error.chain()),
        }
    }

    /// Reports the start of what runs when it is time, and tries again what could not be sent.
    pub(super) fn report_when_due(&mut self) {
        let due = self.machine.as_mut().and_then(|machine| machine.disks.reads.due(REPORT_AFTER));
        self.report(due.into_iter().collect());
    }

    /// The machine has ended: reports what is left to be said.
    pub(super) fn report_rest(&mut self) {
        let reads = self.machine.as_mut().map(|machine| &mut machine.disks.reads);
        let rest = reads.map(Reads::rest).unwrap_or_default();
        self.report(rest);
    }

    /// Somebody logged in, so the server may answer.
    pub(super) fn retry_reports(&mut self) {
        self.outbox.pause = None;
        self.send_reports();
    }

    fn report(&mut self, reports: Vec<ReadReport>) {
        let Some(run) = self.record.run.as_ref().filter(|_| !reports.is_empty()) else {
            return self.send_reports();
        };
        if !self.core.options.reports {
            return;
        }
        let repository = run.appliance.id;
        let pending = &mut self.outbox.pending;
        pending.extend(reports.into_iter().map(|report| Pending { repository, report }));
        pending.drain(..pending.len().saturating_sub(REPORTS_WAITING));
        self.store_reports();
        self.send_reports();
    }

    fn store_reports(&self) {
        let path = self.paths.reports();
        let stored = match self.outbox.pending.is_empty() {
            true => record::remove(&path),
            false => record::store(&path, &self.outbox.pending),
        };
        if let Err(error) = stored {
            tracing::debug!("{}: {}", self.what(), error.chain());
        }
    }

    /// Sends what waits, beside the owner.
    fn send_reports(&mut self) {
        let outbox = &self.outbox;
        let is_time = outbox.pause.is_none_or(|pause| pause <= Instant::now());
        if outbox.pending.is_empty() || outbox.sending.is_some() || !is_time {
            return;
        }
        let Ok(session) = self.session() else { return };
        let pending = outbox.pending.clone();
        let sending =
            self.helper(async move { Some(Fact::Reported(send(&session, pending).await)) });
        self.outbox.sending = Some(sending);
    }

    /// Reports were sent, or not.
    pub(super) fn reported(&mut self, sent: &Sent) {
        self.outbox.sending = None;
        self.outbox.pending.retain(|pending| !sent.gone.contains(pending));
        self.store_reports();
        self.outbox.pause = (!sent.is_all).then(|| Instant::now() + RETRY_PAUSE);
        // Some may have come meanwhile.
        self.send_reports();
    }
}

/// What became of reports.
#[derive(Debug)]
pub(super) struct Sent {
    /// They need not be sent again: the server took them, or never will.
    gone: Vec<Pending>,
    /// Whether that is all of them.
    is_all: bool,
}

async fn send(session: &Session, pending: Vec<Pending>) -> Sent {
    let mut gone = Vec::new();
    for pending in pending {
        match session.remote.report(pending.repository, &pending.report).await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                return Sent { gone, is_all: false };
            }
            Err(error) => tracing::debug!("a report is not wanted: {}", error.chain()),
            Ok(()) => {}
        }
        gone.push(pending);
    }
    Sent { gone, is_all: true }
}
