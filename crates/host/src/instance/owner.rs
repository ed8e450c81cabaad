//! The owner task of one instance: its state, and the loop that takes commands, facts and the passing of time.
//!
//! What each of them does is in the sibling files; here is who waits for what. Only this task changes the records, the
//! machine and the disks of the instance.

use std::sync::Arc;
use std::time::Duration;

use collective_api::host::{ApplianceStatus, Event, Fetched, StartRequest, UserDiskStatus};
use collective_model::{ApplianceName, Error, ErrorKind, OperationId, Result, UserName, Version};
use collective_vm::lifecycle::{self, Lifecycle};
use collective_vm::qmp::{Qmp, QmpEvent};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::life::{Hold, Holds};
use super::machine::{Found, Running};
use super::reads::{Outbox, Sent};
use super::start::Starting;
use super::{COMMANDS_WAITING, Command, InstanceRecord};
use crate::core::Core;
use crate::operation::Handle;
use crate::paths::InstancePaths;
use crate::record;
use crate::session::Session;
use crate::subscription::Subscription;

/// Facts that wait for the owner; helpers wait when there are more.
const FACTS_WAITING: usize = 64;

/// How often an owner looks around when nothing happens: figures, the lock, retries.
const LOOK_AROUND: Duration = Duration::from_secs(5);

/// Something that helpers of the owner found out.
#[derive(Debug)]
pub(super) enum Fact {
    /// The start that is this operation has its memory.
    Admitted(OperationId),
    /// Somebody cancelled an operation.
    Cancelled(OperationId),
    /// The guest's agent answered for the first time.
    AgentAnswered,
    /// QEMU said something.
    Machine(QmpEvent),
    /// QEMU has ended.
    Exited,
    /// The guest's agent cannot be asked to shut down.
    AgentSilent,
    /// The monitor of a machine that was found answered; none if the machine has ended.
    Connected(Result<Option<Qmp>>),
    /// Something holds the guest, or no longer does.
    Held(Hold, Option<String>),
    /// An upload ended.
    Uploaded(Result<Version>),
    /// Reports were sent, or not.
    Reported(Sent),
}

/// The owner of an instance.
pub(super) struct Owner {
    pub(super) core: Arc<Core>,
    pub(super) user: UserName,
    pub(super) appliance: ApplianceName,
    pub(super) paths: InstancePaths,
    shown: watch::Sender<ApplianceStatus>,
    pub(super) record: InstanceRecord,
    /// Why nothing can be done here: a record is damaged.
    pub(super) broken: Option<Error>,
    pub(super) disk: Option<Subscription>,
    pub(super) machine: Option<Running>,
    /// A process that was found and cannot be taken over yet: its disks cannot be served, or its monitor is silent.
    pub(super) held: Option<Found>,
    /// What was asked for while the monitor of a found machine is waited for.
    deferred: Vec<Command>,
    /// Whether the process was killed already.
    pub(super) killed: bool,
    pub(super) life: Lifecycle,
    pub(super) holds: Holds,
    /// What people should know besides the state.
    pub(super) notice: Option<String>,
    /// A start that is being looked up.
    pub(super) asked: Option<(StartRequest, Handle)>,
    pub(super) starting: Option<Starting>,
    pub(super) stopping: Vec<Handle>,
    pub(super) backup: super::backup::Backup,
    pub(super) outbox: Outbox,
    pub(super) facts: mpsc::Sender<Fact>,
    incoming: Option<mpsc::Receiver<Fact>>,
}

impl Owner {
    pub(super) fn new(
        core: &Arc<Core>,
        user: &UserName,
        appliance: &ApplianceName,
        shown: watch::Sender<ApplianceStatus>,
    ) -> Self {
        let (facts, incoming) = mpsc::channel(FACTS_WAITING);
        Self {
            core: Arc::clone(core),
            user: user.clone(),
            appliance: appliance.clone(),
            paths: core.paths.instance(user, appliance),
            shown,
            record: InstanceRecord::default(),
            broken: None,
            disk: None,
            machine: None,
            held: None,
            deferred: Vec::new(),
            killed: false,
            life: Lifecycle::default(),
            holds: Holds::new(),
            notice: None,
            asked: None,
            starting: None,
            stopping: Vec::new(),
            backup: super::backup::Backup::new(),
            outbox: Outbox::default(),
            facts,
            incoming: Some(incoming),
        }
    }

    /// Works until the daemon goes down.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut incoming = self.incoming.take().expect("an owner runs once");
        if let Err(error) = self.load() {
            tracing::error!("{}: {}", self.what(), error.chain());
            self.broken = Some(error);
        } else {
            self.recover().await;
        }
        let mut look_around = Instant::now() + LOOK_AROUND;
        loop {
            self.show();
            tokio::select! {
                command = commands.recv() => match command {
                    None => return,
                    Some(Command::Leave(left)) => {
                        self.leave().await;
                        let _ = left.send(());
                        return;
                    }
                    Some(command) => self.command(command).await,
                },
                Some(fact) = incoming.recv() => self.fact(fact).await,
                () = reached(self.life.deadline()) => self.tell(lifecycle::Event::Tick).await,
                () = tokio::time::sleep_until(look_around) => {
                    look_around = Instant::now() + LOOK_AROUND;
                    self.look_around().await;
                }
            }
        }
    }

    fn load(&mut self) -> Result<()> {
        self.record = record::load(&self.paths.record())?.unwrap_or_default();
        self.disk = record::load(&self.paths.subscription())?;
        self.load_reports();
        Ok(())
    }

    async fn command(&mut self, command: Command) {
        if let Some(error) = &self.broken {
            let error =
                Error::new(error.kind(), format!("`{}` cannot be used here", self.appliance))
                    .with_source(Error::new(error.kind(), error.chain()));
            return refuse(command, error);
        }
        if self.is_connecting() && waits_for_monitor(&command) {
            if self.deferred.len() < COMMANDS_WAITING {
                return self.deferred.push(command);
            }
            let message = format!("the machine of `{}` does not answer yet", self.appliance);
            return refuse(command, Error::new(ErrorKind::Unavailable, message));
        }
        match command {
            Command::Start(request, handle) => self.start(request, handle).await,
            Command::Stop(request, handle) => self.stop(request, handle).await,
            Command::Reset(handle) => {
                let done = self.reset();
                handle.end(done);
            }
            Command::Undo(request, handle) => self.undo(request, handle).await,
            Command::Publish(handle) => self.publish_now(handle).await,
            Command::Delete(request, handle) => {
                let done = self.delete(request, &handle).await;
                handle.end(done);
            }
            Command::Exec(request, reply) => self.exec(request, reply),
            Command::SessionCame => {
                self.backup.retry_now();
                self.retry_reports();
                self.recover().await;
            }
            Command::Leave(left) => {
                let _ = left.send(());
            }
        }
    }

    async fn fact(&mut self, fact: Fact) {
        match fact {
            Fact::Admitted(start) => self.admitted(start).await,
            Fact::Cancelled(id) => self.cancelled(id).await,
            Fact::AgentAnswered => self.agent_answered().await,
            Fact::Machine(event) => self.machine_said(&event).await,
            Fact::Exited => self.exited().await,
            Fact::AgentSilent => self.tell(lifecycle::Event::AgentSilent).await,
            Fact::Connected(answer) => self.connected(answer).await,
            Fact::Held(hold, reason) => self.holds(hold, reason).await,
            Fact::Uploaded(result) => self.uploaded(result).await,
            Fact::Reported(sent) => self.reported(&sent),
        }
        if !self.is_connecting() {
            for command in std::mem::take(&mut self.deferred) {
                self.command(command).await;
            }
        }
    }

    /// What the passing of time brings.
    async fn look_around(&mut self) {
        if self.broken.is_some() {
            return;
        }
        if let Some(machine) = &self.machine {
            machine.bound_logs(&self.paths);
        }
        if self.held.is_some() {
            self.recover().await;
        }
        self.report_when_due();
        self.resume_with_room().await;
        self.measure_backlog().await;
        self.hold_lock().await;
        self.backup_when_due().await;
    }

    /// The daemon goes down: the machine stays up, and what was begun goes on after the next start.
    async fn leave(&mut self) {
        self.backup.upload = None;
        if let Some(machine) = self.machine.take() {
            machine.leave().await;
        }
        if let Some(found) = self.held.take() {
            found.leave().await;
        }
    }

    pub(super) fn session(&self) -> Result<Arc<Session>> {
        self.core.sessions.get(&self.user).ok_or_else(|| {
            Error::new(ErrorKind::Denied, format!("`{}` is not logged in on this host", self.user))
                .with_hint("log in with `collective login`")
        })
    }

    pub(super) fn store_record(&self) -> Result<()> {
        record::make_directory(&self.paths.dir)?;
        record::store(&self.paths.record(), &self.record)
    }

    pub(super) fn store_disk(&self) -> Result<()> {
        record::make_directory(&self.paths.dir)?;
        match &self.disk {
            Some(disk) => record::store(&self.paths.subscription(), disk),
            None => record::remove(&self.paths.subscription()),
        }
    }

    /// Names the instance in logs.
    pub(super) fn what(&self) -> String {
        format!("{}/{}", self.user, self.appliance)
    }

    /// Runs `work` beside the owner and hands its fact in; stops when the returned handle is dropped.
    pub(super) fn helper(
        &self,
        work: impl Future<Output = Option<Fact>> + Send + 'static,
    ) -> AbortOnDropHandle<()> {
        let facts = self.facts.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            if let Some(fact) = work.await {
                // The owner is gone only when the daemon goes down.
                let _ = facts.send(fact).await;
            }
        }))
    }

    /// Tells the owner when an operation is cancelled.
    pub(super) fn heed_cancel(&self, handle: &Handle) -> AbortOnDropHandle<()> {
        let handle = handle.clone();
        self.helper(async move {
            handle.cancelled().await;
            Some(Fact::Cancelled(handle.id()))
        })
    }

    /// Shows the state as it is; also done before an operation ends, so that who waited for it sees no older one.
    pub(super) fn show(&self) {
        let status = self.status();
        let changed = self.shown.send_if_modified(|shown| {
            let changed = *shown != status;
            shown.clone_from(&status);
            changed
        });
        if changed {
            self.core.operations.tell(Event::Appliance(Box::new(status)));
        }
    }

    fn status(&self) -> ApplianceStatus {
        let run = self.record.run.as_ref().filter(|_| self.machine.is_some());
        let broken = self.broken.as_ref().map(Error::chain);
        ApplianceStatus {
            state: self.state(),
            reason: broken.or_else(|| self.reason()),
            running: run.map(|run| run.version),
            boot_seconds: self.record.boot_ms.map(|ms| ms as f64 / 1000.0),
            fetched: self.machine.as_ref().map(Running::fetched),
            foretold: self.record.foretold,
            user_disk: self.disk.as_ref().map(|disk| self.user_disk_status(disk)),
            screen: run.map(|_| self.paths.runtime_file("vnc.sock").display().to_string()),
            operation: self.starting.as_ref().map(|starting| starting.handle.id()),
            ..crate::core::stopped(&self.user, &self.appliance)
        }
    }

    fn user_disk_status(&self, disk: &Subscription) -> UserDiskStatus {
        let kept = disk.kept.iter().flat_map(|kept| {
            let directory = self.paths.kept().join(&kept.name);
            let names = kept.layers.iter().map(|layer| crate::paths::user_layer_name(*layer));
            names.map(move |name| directory.join(name).display().to_string())
        });
        UserDiskStatus {
            version: disk.published.or(disk.base),
            published: disk.last_published,
            backlog_bytes: self.backup.backlog_bytes,
            problem: disk.lost.clone().or_else(|| self.backup.problem.clone()),
            kept: kept.collect(),
        }
    }

    pub(super) fn fetched_now(&self) -> Fetched {
        self.machine.as_ref().map(Running::fetched).unwrap_or_default()
    }
}

/// Waits for a deadline; for ever if there is none.
async fn reached(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Whether a command is better carried out when the monitor of a found machine has answered.
fn waits_for_monitor(command: &Command) -> bool {
    match command {
        Command::Stop(request, _) => !request.force,
        Command::SessionCame | Command::Leave(_) => false,
        _ => true,
    }
}

fn refuse(command: Command, error: Error) {
    match command {
        Command::Start(_, handle)
        | Command::Stop(_, handle)
        | Command::Reset(handle)
        | Command::Undo(_, handle)
        | Command::Publish(handle)
        | Command::Delete(_, handle) => handle.end(Err::<(), _>(error)),
        Command::Exec(_, reply) => {
            let _ = reply.send(Err(error));
        }
        Command::SessionCame | Command::Leave(_) => {}
    }
}
