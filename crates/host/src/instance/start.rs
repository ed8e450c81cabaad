//! The life of a start (DESIGN 5): resolve the version, wait for a place, take the lock, make the user disk ready, open the
//! system version and replay its boot, make fresh layers, record, launch, and wait until the agent answers.
//!
//! Also how a new daemon finds what an old one started.

use collective_api::host::{StartRequest, StartResult};
use collective_model::{DiskRole, Epoch, Error, ErrorKind, OperationId, Result, Version};
use collective_repository::{Descriptor, Kind, Repository, VersionReader};
use collective_vm::lifecycle::{Event, State};
use collective_vm::process::{self, Machine};
use collective_vm::qmp::Qmp;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Run;
use super::disks::Disks;
use super::machine::{Found, connect, find, pin_name};
use super::owner::{Fact, Owner};
use crate::admission::{Asked, Place};
use crate::now;
use crate::operation::{self, Handle};
use crate::remote::Subscribed;
use crate::session::Session;

/// Room that must be free on the host's disk for a start: layers grow as the guest writes.
const ROOM_BYTES: u64 = 256 << 20;

/// A start under way.
pub(super) struct Starting {
    pub(super) handle: Handle,
    request: StartRequest,
    since: Instant,
    /// Waits for the user disk to have a base.
    pub(super) opens_disk: bool,
    version: VersionReader,
    appliance: Descriptor,
    fetched_before: u64,
    /// In line for memory, until the machine has it.
    place: Option<Place>,
    _helpers: Vec<AbortOnDropHandle<()>>,
}

impl Owner {
    pub(super) async fn start(&mut self, request: StartRequest, handle: Handle) {
        if self.held.is_some() {
            self.recover().await;
        }
        if let Err(error) = self.may_start() {
            return handle.end(Err::<(), _>(error));
        }
        if self.machine.is_some() {
            return handle.end(self.runs_already(&request));
        }
        self.notice = None;
        self.asked = Some((request, handle));
        self.tell(Event::Start).await;
    }

    /// A start of what runs is done already, unless another version was asked for.
    fn runs_already(&self, request: &StartRequest) -> Result<Option<StartResult>> {
        let running = self.record.run.as_ref().map(|run| run.version);
        match (request.version, running) {
            (Some(wanted), Some(running)) if wanted != running => {
                let message = format!("version {running} of `{}` is running", self.appliance);
                Err(Error::new(ErrorKind::Conflict, message)
                    .with_hint(format!("stop it first: `collective stop {}`", self.appliance)))
            }
            _ => Ok(self.start_result().map(|result| StartResult { ran_already: true, ..result })),
        }
    }

    /// Looks up what is to be started, and stands in line for memory.
    pub(super) async fn queue(&mut self) {
        let Some((request, handle)) = self.asked.clone() else { return };
        self.show();
        let resolved = tokio::select! {
            resolved = self.resolve(request, &handle) => resolved,
            () = handle.cancelled() => Err(operation::cancelled("the start")),
        };
        match resolved {
            Ok(starting) => {
                self.asked = None;
                self.starting = Some(starting);
            }
            Err(error) => self.start_failed(error).await,
        }
    }

    fn may_start(&self) -> Result<()> {
        let busy = |what: &str| {
            let message = format!("`{}` is {what}", self.appliance);
            Err(Error::new(ErrorKind::Conflict, message).with_hint("wait for it and try again"))
        };
        match (&self.starting, self.life.state()) {
            (Some(_), _) => busy("already starting"),
            (None, State::Stopping { .. }) => busy("stopping"),
            (None, _) if self.held.is_some() => busy("running, and cannot be reached yet"),
            (None, _) => Ok(()),
        }
    }

    /// Finds the version and checks everything that can be known before anything is taken.
    async fn resolve(&self, request: StartRequest, handle: &Handle) -> Result<Starting> {
        handle.stage("looking up the version");
        let session = self.session()?;
        self.core.qemu().await?;
        self.ensure_room(ROOM_BYTES)?;
        let profile = self.core.profile(&session).await?;
        let entitled = profile.appliance(&self.appliance)?;
        let repository = self.core.repository(&session, &entitled.descriptor, Epoch(0)).await?;
        let version = self.choose(&repository, request.version).await?;
        let memory_mib = hardware(&version)?.memory_mib;
        handle.stage("waiting for memory");
        let Asked { place, admitted } =
            self.core.admission.ask(&self.known_as(), memory_mib).await?;
        if let Some(why) = self.core.admission.why(&place) {
            handle.stage(&why);
        }
        let id = handle.id();
        let admitted = self.helper(async move { admitted.await.ok().map(|()| Fact::Admitted(id)) });
        Ok(Starting {
            request,
            since: Instant::now(),
            opens_disk: false,
            version,
            appliance: entitled.descriptor.clone(),
            fetched_before: self.core.fetcher.stats().fetched_bytes,
            place: Some(place),
            _helpers: vec![admitted, self.heed_cancel(handle)],
            handle: handle.clone(),
        })
    }

    /// What others who wait for memory are told.
    fn known_as(&self) -> String {
        format!("`{}` of {}", self.appliance, self.user)
    }

    /// Why a start waits for memory, if it does.
    pub(super) fn why_queued(&self) -> Option<String> {
        let place = self.starting.as_ref()?.place.as_ref()?;
        self.core.admission.why(place)
    }

    async fn choose(
        &self,
        repository: &Repository,
        wanted: Option<Version>,
    ) -> Result<VersionReader> {
        let head = repository.head().await?;
        let version = wanted.or(head).ok_or_else(|| {
            let message = format!("no version of `{}` is published yet", self.appliance);
            Error::new(ErrorKind::NotFound, message)
        })?;
        repository.version(version).await
    }

    /// There is memory for a start, unless it was given up meanwhile.
    pub(super) async fn admitted(&mut self, start: OperationId) {
        if self.starting.as_ref().is_some_and(|starting| starting.handle.id() == start) {
            self.tell(Event::Admitted).await;
        }
    }

    /// The user disk is next.
    pub(super) async fn prepare(&mut self) {
        let Some(starting) = &mut self.starting else { return };
        let has_user_disk = starting.version.manifest().disk(DiskRole::User).is_ok();
        if !has_user_disk {
            return self.tell(Event::Prepared).await;
        }
        starting.handle.stage("taking the lock");
        let handle = starting.handle.clone();
        let ready = tokio::select! {
            ready = self.take_user_disk() => ready,
            () = handle.cancelled() => Err(operation::cancelled("the start")),
        };
        if let Err(error) = ready {
            return self.start_failed(error).await;
        }
        if let Some(starting) = &mut self.starting {
            starting.opens_disk = true;
            starting.handle.stage("opening the user disk");
        }
        self.pursue().await;
    }

    /// Gets the subscription and its lock.
    async fn take_user_disk(&mut self) -> Result<()> {
        let session = self.session()?;
        let breaks = self.starting.as_ref().is_some_and(|starting| starting.request.break_lock);
        let profile = self.core.profile(&session).await?;
        let entry = match profile.subscription(&self.appliance) {
            Some(entry) => entry.clone(),
            None => self.subscribe(&session).await?,
        };
        self.subscribed(&entry)?;
        if self.disk.as_ref().is_some_and(|disk| disk.lost.is_some()) {
            // What was lost goes aside before the lock is taken anew.
            self.pursue().await;
        }
        if breaks {
            self.change_disk(|disk| disk.epoch = Epoch(0))?;
        }
        match self.ensure_lock(breaks).await {
            Err(error) if error.kind() == ErrorKind::Unavailable && breaks => {
                tracing::warn!("{}: starts without the lock: {}", self.what(), error.chain());
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                Err(error.context("cannot take the lock of the user disk").with_hint(
                    "with --break-lock it starts all the same; if another host publishes meanwhile, what \
                     is written here will be kept aside on this host",
                ))
            }
            done => done,
        }
    }

    async fn subscribe(&self, session: &Session) -> Result<Subscribed> {
        let id = collective_model::RepositoryId(crate::random());
        let secret = session.repository_secret(id);
        let descriptor = Descriptor::private(id, Kind::UserDisk, &secret);
        let entry = session.remote.subscribe(&self.appliance, &descriptor).await?;
        let secret = session.repository_secret(entry.descriptor.id);
        let backend = session.remote.backend(entry.descriptor.id, Epoch(0))?;
        if backend.size(&collective_repository::backend::ObjectName::Descriptor).await?.is_none() {
            Repository::create(backend, entry.descriptor.clone(), Some(secret)).await?;
        }
        Ok(entry)
    }

    /// The template of the user disk, for the first publication.
    pub(super) fn template_of_start(&self) -> Option<VersionReader> {
        self.starting.as_ref().map(|starting| starting.version.clone())
    }

    /// The user disk is ready: launch.
    pub(super) async fn disk_opened(&mut self) {
        let Some(starting) = &mut self.starting else { return };
        starting.opens_disk = false;
        self.tell(Event::Prepared).await;
    }

    pub(super) async fn launch(&mut self) {
        let Some(starting) = &self.starting else { return };
        let handle = starting.handle.clone();
        handle.stage("launching");
        let launched = self.try_launch().await;
        match launched {
            Ok(()) => {
                handle.stage("booting");
                self.tell(Event::Launched).await;
            }
            Err(error) => {
                self.start_failed(error).await;
                self.pursue().await;
            }
        }
    }

    async fn try_launch(&mut self) -> Result<()> {
        let Some(starting) = &self.starting else { return Ok(()) };
        let (version, appliance) = (starting.version.clone(), starting.appliance.clone());
        let session = self.session()?;
        let manifest = version.manifest();
        let has_user = manifest.disk(DiskRole::User).is_ok();
        let disk = self.disk.as_ref().filter(|_| has_user);
        let run = Run {
            appliance,
            version: manifest.version,
            hardware: hardware(&version)?,
            user_base: disk.and_then(|disk| disk.base),
            user_disk: disk.map(|disk| disk.repository.clone()),
            started: now(),
        };
        let mut disks = Disks::open(&self.core, &self.paths, &run, &version, true).await?;
        if let (Some(base), Some(descriptor)) = (run.user_base, &run.user_disk) {
            disks.serve_user(&self.core, &session, descriptor, base).await?;
        }
        disks.replay(pin_name(&self.paths));
        disks.first_blocks().await?;
        let system_bytes = manifest.disk(DiskRole::System)?.size_bytes;
        self.local_layers(&run, system_bytes).await?;
        let probed = self.core.probe().await?;
        let spec = self.spec(&run, probed.accelerator);
        self.record.run = Some(run);
        self.record.boot_ms = None;
        self.record.foretold = None;
        self.store_record()?;
        let place = self.starting.as_mut().and_then(|starting| starting.place.take());
        let place =
            place.ok_or_else(|| Error::new(ErrorKind::Internal, "a start has no place in line"))?;
        let machine = process::launch(self.core.qemu().await?, &spec).await?;
        self.take_over(machine, disks, place);
        Ok(())
    }

    /// Gives a start up, with the reason.
    pub(super) async fn start_failed(&mut self, error: Error) {
        let asked = self.asked.take().map(|(_, handle)| handle);
        let handle = asked.or_else(|| self.starting.take().map(|starting| starting.handle));
        self.tell(Event::Gone { fault: Some(error.chain()) }).await;
        self.show();
        if let Some(handle) = handle {
            handle.end(Err::<(), _>(error));
        }
    }

    /// The guest is up.
    pub(super) async fn agent_answered(&mut self) {
        let Some(machine) = &mut self.machine else { return };
        machine.agent_seen = true;
        self.tell(Event::Ready).await;
        let Some(starting) = self.starting.take() else { return };
        let boot = starting.since.elapsed();
        self.record.boot_ms = u64::try_from(boot.as_millis()).ok();
        self.measure_start();
        if let Err(error) = self.store_record() {
            tracing::warn!("{}: {}", self.what(), error.chain());
        }
        self.show();
        let before = starting.fetched_before;
        let fetched = self.core.fetcher.stats().fetched_bytes - before;
        starting.handle.end(Ok(self
            .start_result()
            .map(|result| StartResult { fetched_bytes: fetched, ..result })));
    }

    fn start_result(&self) -> Option<StartResult> {
        let run = self.record.run.as_ref()?;
        Some(StartResult {
            version: run.version,
            ran_already: false,
            boot_seconds: self.record.boot_ms.map(|ms| ms as f64 / 1000.0),
            fetched_share: self.fetched_now().share,
            fetched_bytes: 0,
        })
    }

    /// Somebody cancelled: a start is taken back, waiting is ended.
    pub(super) async fn cancelled(&mut self, id: OperationId) {
        self.stop_waiting(id);
        let Some(starting) = self.starting.take_if(|starting| starting.handle.id() == id) else {
            return;
        };
        starting.handle.end(Err::<(), _>(operation::cancelled("the start")));
        self.tell(Event::Stop { force: true }).await;
        if self.machine.is_none() {
            self.pursue().await;
        }
    }

    /// Finds what an earlier daemon started, and puts right what a crash left.
    pub(super) async fn recover(&mut self) {
        if self.machine.is_some() || self.starting.is_some() || self.is_connecting() {
            return;
        }
        if let Err(error) = self.try_recover().await {
            self.not_recovered(&error).await;
        }
        self.measure_backlog().await;
        self.pursue().await;
    }

    async fn not_recovered(&mut self, error: &Error) {
        let reason = error.chain();
        if self.notice.as_ref() != Some(&reason) {
            tracing::error!("{}: {reason}", self.what());
        }
        self.notice = Some(reason.clone());
        // Says so where it is shown, if it runs.
        self.tell(Event::Late { reason }).await;
    }

    async fn try_recover(&mut self) -> Result<()> {
        let Some(run) = self.record.run.clone() else { return Ok(()) };
        let Some(process) = find(&self.paths).await? else {
            self.record.run = None;
            self.tell(Event::Gone { fault: None }).await;
            return self.store_record();
        };
        // Its reads wait until the exports are served again; that needs the session.
        if self.held.is_none() {
            let memory_mib = run.hardware.memory_mib;
            let place = self.core.admission.adopt(&self.known_as(), memory_mib).await?;
            let _mourner = self.mourn(&process);
            let (process, disks, connecting) = (process.clone(), None, None);
            self.held = Some(Found { process, place, disks, connecting, _mourner });
            let held = Some("it was found running, and its disks are not served yet".to_owned());
            self.tell(Event::Adopted { held }).await;
            self.show();
        }
        if self.held.as_ref().is_some_and(|found| found.disks.is_none()) {
            let disks = self.serve_again(&run).await?;
            if let Some(found) = &mut self.held {
                found.disks = Some(disks);
            }
        }
        // A monitor may be silent for long; nobody who asks or pulls the power cord has to wait for that.
        let paths = self.paths.clone();
        let connecting =
            self.helper(async move { Some(Fact::Connected(connect(&paths, &process).await)) });
        if let Some(found) = &mut self.held {
            found.connecting = Some(connecting);
        }
        let reason = "it was found running, and its monitor does not answer yet".to_owned();
        self.tell(Event::Late { reason }).await;
        Ok(())
    }

    /// Serves the disks of a machine that was found.
    async fn serve_again(&self, run: &Run) -> Result<Disks> {
        let session = self.session().map_err(|error| {
            error.context("it runs, and its disks can be served after the next log-in")
        })?;
        let repository = self.core.repository(&session, &run.appliance, Epoch(0)).await?;
        let version = repository.version(run.version).await?;
        let mut disks = Disks::open(&self.core, &self.paths, run, &version, false).await?;
        if let (Some(descriptor), Some(disk)) = (&run.user_disk, &self.disk) {
            for base in [run.user_base, disk.base, disk.published].into_iter().flatten() {
                disks.serve_user(&self.core, &session, descriptor, base).await?;
            }
        }
        Ok(disks)
    }

    /// Tells whether the monitor of a machine that was found is waited for.
    pub(super) fn is_connecting(&self) -> bool {
        self.held.as_ref().is_some_and(|found| found.connecting.is_some())
    }

    /// The monitor of a machine that was found answered, or did not.
    pub(super) async fn connected(&mut self, answer: Result<Option<Qmp>>) {
        let Some(mut found) = self.held.take_if(|found| found.connecting.is_some()) else { return };
        found.connecting = None;
        match (answer, found.disks.take()) {
            (Ok(Some(qmp)), Some(disks)) if !self.is_ending() => {
                self.notice = None;
                self.take_over(Machine { process: found.process, qmp }, disks, found.place);
                self.tell(Event::OnTime).await;
                if self.record.boot_ms.is_some() {
                    // Its agent had answered the daemon before.
                    self.tell(Event::Ready).await;
                }
            }
            (answer, disks) => {
                // It has ended, and that is heard of; or it is tried again.
                found.disks = disks;
                self.held = Some(found);
                if let Err(error) = answer {
                    self.not_recovered(&error).await;
                }
            }
        }
        self.measure_backlog().await;
        self.pursue().await;
    }

    fn is_ending(&self) -> bool {
        matches!(self.life.state(), State::Stopping { .. })
    }
}

fn hardware(version: &VersionReader) -> Result<collective_model::Hardware> {
    let manifest = version.manifest();
    let hardware = manifest.hardware.clone().ok_or_else(|| {
        let message = format!("version {} says nothing of the machine it wants", manifest.version);
        Error::new(ErrorKind::Corrupt, message)
    })?;
    hardware.check()?;
    Ok(hardware)
}
