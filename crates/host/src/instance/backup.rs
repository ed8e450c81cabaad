//! The executor beside the planner of `subscription`: gathers the facts, performs the next step, records it, asks again.
//!
//! Uploads run beside the owner; everything else is short. What fails because the server is away is tried again, later
//! and later; what fails because the lock is another's ends in `kept/`.

use std::path::Path;
use std::time::Duration;

use collective_model::{
    ByteCount, DiskRole, Epoch, Error, ErrorKind, IoResultExt, OperationId, Result, Version,
};
use collective_repository::backend::Backend;
use collective_vm::layer;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::aside::lost;
use super::owner::{Fact, Owner};
use super::upload::Upload;
use crate::operation::{self, Handle};
use crate::subscription::{Facts, Head, Step, Subscription, Want, What, next};
use crate::{now, record};

/// The first pause after a failure; doubles up to [`RETRY_LONGEST`].
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// Longest pause between attempts: a server that is back is noticed within this.
const RETRY_LONGEST: Duration = Duration::from_secs(120);
/// How often the server hears that the lock is still held: three times in a lease (90 s), so that two may be missed.
const RENEW: Duration = Duration::from_secs(30);
/// How long a question to the server may take before it counts as away.
const SERVER_LIMIT: Duration = Duration::from_secs(20);

/// Where the backup of the user disk stands.
pub(super) struct Backup {
    /// The upload under way.
    pub(super) upload: Option<AbortOnDropHandle<()>>,
    /// Who waits for the backup, or for an old version to come back.
    pub(super) waiting: Vec<(Want, Handle, AbortOnDropHandle<()>)>,
    /// Whether the interval has passed, or the machine has stopped.
    pub(super) due: bool,
    next: Option<Instant>,
    /// The server's refusal of the publication under way.
    refused: Option<Error>,
    pub(super) problem: Option<String>,
    failures: u32,
    retry_at: Option<Instant>,
    renewed: Option<Instant>,
    pub(super) backlog_bytes: u64,
}

impl Backup {
    pub(super) fn new() -> Self {
        Self {
            upload: None,
            waiting: Vec::new(),
            due: false,
            next: None,
            refused: None,
            problem: None,
            failures: 0,
            retry_at: None,
            renewed: None,
            backlog_bytes: 0,
        }
    }

    pub(super) fn retry_now(&mut self) {
        self.retry_at = None;
        self.failures = 0;
    }

    fn failed(&mut self, error: &Error) {
        self.problem = Some(error.chain());
        let pause = RETRY_FIRST * 2_u32.saturating_pow(self.failures.min(8));
        self.failures += 1;
        self.retry_at = Some(Instant::now() + pause.min(RETRY_LONGEST));
    }

    fn succeeded(&mut self) {
        self.problem = None;
        self.retry_now();
    }
}

impl Owner {
    /// Waits, as an operation, until everything written so far is at the server.
    pub(super) async fn publish_now(&mut self, handle: Handle) {
        if self.disk.is_none() {
            return handle.end(Ok(()));
        }
        handle.stage("backing up the user disk");
        self.backup.retry_now();
        self.wait_for(Want::Backup, handle).await;
    }

    /// Adds somebody who waits for a wish, and pursues it.
    pub(super) async fn wait_for(&mut self, want: Want, handle: Handle) {
        let heed = self.heed_cancel(&handle);
        self.backup.waiting.push((want, handle, heed));
        self.pursue().await;
    }

    /// Stops waiting; what is under way goes on.
    pub(super) fn stop_waiting(&mut self, id: OperationId) {
        self.backup.waiting.retain(|(_, handle, _)| {
            let stays = handle.id() != id;
            if !stays {
                handle.end(Err::<(), _>(operation::cancelled("waiting for the backup")));
            }
            stays
        });
    }

    /// Does what is due by the clock.
    pub(super) async fn backup_when_due(&mut self) {
        let every = Duration::from_secs(60 * u64::from(self.core.options.publish_minutes));
        let present = Instant::now();
        if self.machine.is_some() && !every.is_zero() {
            match self.backup.next {
                Some(at) if at <= present => {
                    self.backup.due = true;
                    self.backup.next = Some(present + every);
                }
                None => self.backup.next = Some(present + every),
                Some(_) => {}
            }
        }
        if self.backup.retry_at.is_none_or(|at| at <= present) {
            self.pursue().await;
        }
    }

    fn want(&self) -> Want {
        if self.starting.as_ref().is_some_and(|starting| starting.opens_disk) {
            return Want::Open;
        }
        let waiting = self.backup.waiting.first().map(|(want, _, _)| *want);
        let stopped = self.machine.is_none() && self.starting.is_none();
        let unpublished = self.disk.as_ref().is_some_and(Subscription::has_unpublished);
        match waiting {
            Some(want) => want,
            None if self.backup.due || (stopped && unpublished) => Want::Backup,
            None => Want::Rest,
        }
    }

    /// Performs steps until there is none, one is under way, or one fails.
    pub(super) async fn pursue(&mut self) {
        // A machine that cannot be asked writes to the newest layer.
        while self.backup.upload.is_none() && self.disk.is_some() && self.held.is_none() {
            let want = self.want();
            match self.advance(want).await {
                Ok(true) => {}
                Ok(false) => return self.came_to_rest(want).await,
                Err(error) => return self.pursuit_failed(error).await,
            }
        }
    }

    async fn pursuit_failed(&mut self, error: Error) {
        tracing::warn!("{}: backup: {}", self.what(), error.chain());
        self.backup.failed(&error);
        if self.starting.as_ref().is_some_and(|starting| starting.opens_disk) {
            return self.start_failed(error).await;
        }
        for (_, handle, _) in self.backup.waiting.drain(..) {
            let mut error = Error::from(collective_api::failure::Failure::from(&error));
            if error.kind() == ErrorKind::Unavailable && error.hint().is_none() {
                error = error.with_hint(
                    "nothing is lost: what is not backed up stays here, and is tried again",
                );
            }
            handle.end(Err::<(), _>(error));
        }
    }

    /// Takes one step; false if there is none or the server is waited for.
    async fn advance(&mut self, want: Want) -> Result<bool> {
        let facts = self.gather(want).await?;
        let Some(disk) = &self.disk else { return Ok(false) };
        let Some(step) = next(disk, &facts) else {
            return match (&facts.head, want) {
                (None, Want::Backup | Want::Undo(_)) if disk.has_unpublished() => {
                    let message = "the server cannot be asked for the user disk's latest version";
                    let error = Error::new(ErrorKind::Unavailable, message);
                    match self.session().ok().as_ref().and_then(|session| session.link()) {
                        Some(link) => link.explain(Err(error)),
                        None => Err(error),
                    }
                }
                (None, Want::Open) if disk.is_replaced() => Err(Error::new(
                    ErrorKind::Unavailable,
                    "an undo of the user disk is under way, and the server cannot be asked about it",
                )
                .with_hint("start again when the server is there")),
                _ => Ok(false),
            };
        };
        tracing::debug!("{}: {step:?}", self.what());
        self.perform(step).await
    }

    /// There is nothing to do: whoever waited for that has it.
    async fn came_to_rest(&mut self, want: Want) {
        self.backup.succeeded();
        self.measure_backlog().await;
        self.show();
        match want {
            Want::Open => return Box::pin(self.disk_opened()).await,
            Want::Backup => {
                self.backup.due = false;
                let (done, waiting) = std::mem::take(&mut self.backup.waiting)
                    .into_iter()
                    .partition(|(wanted, _, _)| *wanted == Want::Backup);
                self.backup.waiting = waiting;
                // First the lock: who hears that all is backed up goes to the next computer.
                self.release_when_clean().await;
                self.tell_backed_up(done);
            }
            Want::Undo(_) | Want::Rest => self.release_when_clean().await,
        }
        if !self.backup.waiting.is_empty() {
            Box::pin(self.pursue()).await;
        }
    }

    fn tell_backed_up(&self, waited: Vec<(Want, Handle, AbortOnDropHandle<()>)>) {
        for (_, handle, _) in waited {
            handle.end(self.backed_up());
        }
    }

    /// What a finished backup came to: the latest version, unless the disk may not be published any more.
    fn backed_up(&self) -> Result<Option<Version>> {
        let Some(disk) = &self.disk else { return Ok(None) };
        match &disk.lost {
            Some(why) => Err(lost(why)),
            None => Ok(disk.base),
        }
    }

    async fn gather(&mut self, want: Want) -> Result<Facts> {
        let guest = match &self.machine {
            Some(machine) => Some(machine.guest().await?),
            None => None,
        };
        let head = self.head(want).await?;
        let top = self.disk.as_ref().and_then(|disk| disk.layers.last().copied());
        let top_dirty = match top {
            Some(number) if want == Want::Backup => {
                !layer::map(&self.paths.user_layer(number)).await?.is_empty()
            }
            _ => false,
        };
        Ok(Facts { guest, head, want, top_dirty })
    }

    /// Asks for the head of the user disk's repository, where the planner may need it.
    async fn head(&self, want: Want) -> Result<Option<Head>> {
        let Some(disk) = &self.disk else { return Ok(None) };
        if want == Want::Rest && disk.publishing.is_none() {
            return Ok(None);
        }
        let Ok(session) = self.session() else { return Ok(None) };
        let descriptor = disk.repository.clone();
        let asked = async {
            let backend = session.remote.backend(descriptor.id, disk.epoch)?;
            match backend.head().await {
                Ok(head) => Ok(head),
                // Nothing lies on a version yet, so one that was heard of will do.
                Err(error)
                    if error.kind() == ErrorKind::Unavailable
                        && disk.base.is_none()
                        && disk.layers.is_empty() =>
                {
                    match self.core.replica(&session, &descriptor, Epoch(0))?.head().await? {
                        Some(head) => Ok(Some(head)),
                        None => Err(error),
                    }
                }
                Err(error) => Err(error),
            }
        };
        let asked = tokio::time::timeout(SERVER_LIMIT, asked).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Unavailable, "the server does not answer"))
        });
        session.saw_server(&asked);
        let version = match asked {
            Ok(version) => version,
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                return if disk.base.is_none() { Err(error) } else { Ok(None) };
            }
            Err(error) => return Err(error),
        };
        let id = match version {
            Some(version) if disk.publishing.is_some() => {
                let repository = self.core.repository(&session, &descriptor, disk.epoch).await?;
                repository.version(version).await?.manifest().id.clone()
            }
            _ => String::new(),
        };
        Ok(Some(Head { version, id }))
    }

    /// Performs a step and records it; false if it goes on beside the owner.
    async fn perform(&mut self, step: Step) -> Result<bool> {
        let upload = match step {
            Step::Upload(what) => Some(what),
            _ => None,
        };
        if let Some(what) = upload {
            if let Some(why) = self.backup.refused.take() {
                return self.refused(why).await;
            }
            self.ensure_lock(false).await?;
            self.upload(what)?;
            return Ok(true);
        }
        match step {
            Step::KeepAside => self.keep_aside()?,
            Step::DeleteFile(number) => {
                record::remove(&self.paths.user_layer(number))?;
                self.change_disk(|disk| disk.deleted(number))?;
            }
            Step::AddLayer(number) => self.add_layer(number).await?,
            Step::Freeze { new, .. } => self.freeze(new).await?,
            Step::Begin(what) => {
                self.ensure_lock(false).await?;
                let id = OperationId(crate::random()).to_string();
                self.change_disk(|disk| disk.begun(id, what))?;
            }
            Step::Settle(version) => {
                let undone = self.undoing();
                self.change_disk(|disk| disk.settled(version, now()))?;
                self.undone(undone, version);
            }
            Step::Rebase { version, gone } => self.rebase(version, &gone).await?,
            Step::Finish => self.change_disk(Subscription::finished)?,
            Step::Adopt(version) => self.change_disk(|disk| disk.adopted(version))?,
            Step::Lose(why) => self.lose(&why)?,
            Step::Upload(_) => {}
        }
        Ok(true)
    }

    /// The server refused a publication: because the lock is another's, or for something that the next attempt may mend.
    async fn refused(&mut self, why: Error) -> Result<bool> {
        let Some(disk) = &self.disk else { return Ok(false) };
        let (id, epoch, session) = (disk.id, disk.epoch, self.session()?);
        match session.remote.renew(id, epoch, self.backup.backlog_bytes).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                self.lose(&why.chain())?;
                Ok(true)
            }
            Ok(()) => Err(why),
            Err(error) => Err(error),
        }
    }

    fn undoing(&self) -> Option<Version> {
        match self.disk.as_ref()?.publishing.as_ref()?.what {
            What::Undo(version) => Some(version),
            _ => None,
        }
    }

    /// An old version is back: whoever wished for it has it, and it must not be wished again.
    fn undone(&mut self, undone: Option<Version>, version: Version) {
        let Some(undone) = undone else { return };
        self.show();
        self.backup.waiting.retain(|(want, handle, _)| {
            let is = *want == Want::Undo(undone);
            if is {
                handle.end(Ok(version));
            }
            !is
        });
    }

    pub(super) fn change_disk(&mut self, change: impl FnOnce(&mut Subscription)) -> Result<()> {
        let Some(disk) = self.disk.as_mut() else { return Ok(()) };
        let before = disk.clone();
        change(disk);
        let stored = self.store_disk();
        if stored.is_err() {
            self.disk = Some(before);
        }
        stored
    }

    pub(super) async fn add_layer(&mut self, number: u64) -> Result<()> {
        let size = self.user_disk_size().await?;
        self.create_layer(&self.paths.user_layer(number), size).await?;
        self.change_disk(|disk| disk.layer_added(number))
    }

    pub(super) async fn create_layer(&self, path: &Path, size_bytes: u64) -> Result<()> {
        record::make_directory(&self.paths.layers())?;
        record::remove(path)?;
        layer::create(path, size_bytes).await
    }

    fn upload(&mut self, what: What) -> Result<()> {
        let Some(disk) = self.disk.clone() else { return Ok(()) };
        let session = self.session()?;
        let watch = self.backup.waiting.first().map(|(_, handle, _)| handle.clone());
        let starting = self.starting.as_ref().map(|starting| starting.handle.clone());
        let watch = watch.or(starting);
        if let Some(handle) = &watch {
            handle.stage(match what {
                What::Template => "making the user disk",
                What::Layers(_) => "backing up the user disk",
                What::Undo(_) => "bringing the old version back",
            });
        }
        let upload = Upload {
            core: std::sync::Arc::clone(&self.core),
            template: self.template_of_start(),
            paths: self.paths.clone(),
            session,
            disk,
            watch,
        };
        self.backup.upload =
            Some(self.helper(async move { Some(Fact::Uploaded(upload.run(what).await)) }));
        Ok(())
    }

    /// An upload ended: committed, or to be tried again, or refused because the lock is another's.
    pub(super) async fn uploaded(&mut self, result: Result<Version>) {
        self.backup.upload = None;
        match result {
            Ok(version) => {
                let undone = self.undoing();
                if let Err(error) = self.change_disk(|disk| disk.settled(version, now())) {
                    return self.pursuit_failed(error).await;
                }
                self.undone(undone, version);
                self.backup.succeeded();
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {
                self.backup.refused = Some(error);
            }
            Err(error) => return self.pursuit_failed(error).await,
        }
        self.pursue().await;
    }

    /// Takes the lock if it is not held.
    pub(super) async fn ensure_lock(&mut self, take: bool) -> Result<()> {
        let Some(disk) = &self.disk else { return Ok(()) };
        if disk.epoch != Epoch(0) {
            return Ok(());
        }
        let (id, session) = (disk.id, self.session()?);
        let locked = session.remote.lock(id, take).await;
        session.saw_server(&locked);
        let epoch = locked?;
        self.backup.renewed = Some(Instant::now());
        self.change_disk(|disk| disk.epoch = epoch)
    }

    /// Says now and then that the lock is held, and what is not backed up.
    pub(super) async fn hold_lock(&mut self) {
        let Some(disk) = &self.disk else { return };
        let due = self.backup.renewed.is_none_or(|at| at.elapsed() >= RENEW);
        let (Ok(session), true) = (self.session(), due && disk.epoch != Epoch(0)) else { return };
        self.backup.renewed = Some(Instant::now());
        let (id, epoch, backlog) = (disk.id, disk.epoch, self.backup.backlog_bytes);
        let renewed = session.remote.renew(id, epoch, backlog);
        let renewed = tokio::time::timeout(SERVER_LIMIT, renewed).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Unavailable, "the server does not answer"))
        });
        session.saw_server(&renewed);
        let Err(error) = renewed else { return };
        if error.kind() == ErrorKind::Conflict {
            let lost = if self.disk.as_ref().is_some_and(Subscription::has_unpublished) {
                self.lose(&error.chain())
            } else {
                self.change_disk(|disk| disk.epoch = Epoch(0))
            };
            if let Err(error) = lost {
                tracing::error!("{}: {}", self.what(), error.chain());
            }
        }
    }

    /// Gives the lock back when nothing here needs it.
    async fn release_when_clean(&mut self) {
        let Some(disk) = &self.disk else { return };
        let busy = self.machine.is_some() || self.starting.is_some() || disk.has_unpublished();
        if busy || disk.epoch == Epoch(0) || !self.backup.waiting.is_empty() {
            return;
        }
        let Ok(session) = self.session() else { return };
        let released = session.remote.release(disk.id, disk.epoch).await;
        session.saw_server(&released);
        match released {
            Err(error) if error.kind() == ErrorKind::Unavailable => self.backup.failed(&error),
            // Conflict: another has it already, which is as good.
            _ => {
                if let Err(error) = self.change_disk(|disk| disk.epoch = Epoch(0)) {
                    tracing::error!("{}: {}", self.what(), error.chain());
                }
            }
        }
    }

    /// Counts the bytes that wait: what the layers hold.
    pub(super) async fn measure_backlog(&mut self) {
        let Some(disk) = &self.disk else {
            self.backup.backlog_bytes = 0;
            return;
        };
        let mut bytes = 0;
        for number in &disk.layers[disk.published.map_or(0, |_| disk.published_layers())..] {
            match layer::map(&self.paths.user_layer(*number)).await {
                Ok(extents) => {
                    bytes += extents.iter().map(|extent| extent.range.length_bytes()).sum::<u64>();
                }
                Err(error) => tracing::warn!("{}: {}", self.what(), error.chain()),
            }
        }
        self.backup.backlog_bytes = bytes;
    }

    /// Checks that the host's disk has room for what a start writes.
    pub(super) fn ensure_room(&self, bytes: u64) -> Result<()> {
        let status = rustix::fs::statvfs(&self.core.paths.dir)
            .map_err(std::io::Error::from)
            .or_io(|| format!("cannot ask for the room in {}", self.core.paths.dir.display()))?;
        let free = status.f_bavail * status.f_frsize;
        if free >= bytes {
            return Ok(());
        }
        let message = format!(
            "{} has {} left, and {} are needed to start `{}`",
            self.core.paths.dir.display(),
            ByteCount(free),
            ByteCount(bytes),
            self.appliance
        );
        Err(Error::new(ErrorKind::Unavailable, message).with_hint("make room on this disk"))
    }

    async fn user_disk_size(&self) -> Result<u64> {
        let Some(disk) = &self.disk else {
            return Err(Error::new(ErrorKind::Internal, "there is no user disk"));
        };
        let version = disk.base.ok_or_else(|| {
            Error::new(ErrorKind::Internal, "the user disk lies on no version yet")
        })?;
        let session = self.session()?;
        let repository = self.core.repository(&session, &disk.repository, disk.epoch).await?;
        let reader = repository.version(version).await?;
        Ok(reader.manifest().disk(DiskRole::User)?.size_bytes)
    }
}
