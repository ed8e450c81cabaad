//! A machine that runs: its process, monitor and agent, the disks it reads from, and the helpers that listen to it.
//!
//! Dropping it leaves QEMU alone; that is how the daemon goes down while guests run.

use std::path::PathBuf;
use std::time::Duration;

use collective_api::host::Fetched;
use collective_model::{DiskRole, Error, ErrorKind, Result, Version};
use collective_vm::agent::Agent;
use collective_vm::process::{self, Machine, Process};
use collective_vm::qmp::Qmp;
use collective_vm::spec::{Backing, DiskSpec, MachineSpec, NbdExport, Sockets};
use collective_vm::{graph, layer};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Run;
use super::disks::{Disks, export_name};
use super::life::Hold;
use super::owner::{Fact, Owner};
use crate::admission::Place;
use crate::paths::{InstancePaths, user_layer_number};
use crate::subscription::Guest;

/// Bytes of the serial log; a longer one is cut: the guest may write for ever.
const LOG_BYTES: u64 = 16 << 20;
/// Pause between questions to an agent that does not answer yet.
const AGENT_PAUSE: Duration = Duration::from_millis(250);
/// How long an adopted QEMU may take to answer on its monitor.
const ADOPT_LIMIT: Duration = Duration::from_secs(20);

/// A running machine.
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) qmp: Qmp,
    pub(super) agent: Agent,
    pub(super) disks: Disks,
    /// The memory that it has.
    _place: Place,
    helpers: Vec<AbortOnDropHandle<()>>,
    pub(super) agent_seen: bool,
    /// Whether QEMU said that it ends.
    pub(super) takes_leave: bool,
    pub(super) ending: Option<AbortOnDropHandle<()>>,
    pub(super) resuming: Option<AbortOnDropHandle<()>>,
}

/// A process that an earlier daemon started.
pub(super) struct Found {
    pub(super) process: Process,
    pub(super) place: Place,
    /// Its disks, once they are served.
    pub(super) disks: Option<Disks>,
    /// Waits for its monitor.
    pub(super) connecting: Option<AbortOnDropHandle<()>>,
    pub(super) _mourner: AbortOnDropHandle<()>,
}

impl Found {
    /// Lets go of the machine; it goes on.
    pub(super) async fn leave(self) {
        drop(self.connecting);
        if let Some(disks) = self.disks {
            disks.shutdown().await;
        }
    }
}

impl Running {
    pub(super) fn fetched(&self) -> Fetched {
        self.disks.fetched()
    }

    pub(super) fn bound_logs(&self, paths: &InstancePaths) {
        for log in [paths.serial_log(), paths.runtime_file("qemu.log")] {
            if let Err(error) = process::bound_log(&log, LOG_BYTES) {
                tracing::warn!("{}", error.chain());
            }
        }
    }

    /// Lets go of the machine; it goes on, and its reads wait for the next daemon.
    pub(super) async fn leave(self) {
        drop(self.helpers);
        self.disks.shutdown().await;
    }

    /// What the guest's user disk is made of, as QEMU has it.
    pub(super) async fn guest(&self) -> Result<Guest> {
        let chain = graph::nodes(&self.qmp, DiskRole::User).await?;
        let numbers = chain.layers.iter().map(|layer| {
            user_layer_number(&layer.file).ok_or_else(|| {
                let message = format!("{} is not one of our layers", layer.file.display());
                Error::new(ErrorKind::Internal, message)
            })
        });
        Ok(Guest { layers: numbers.collect::<Result<_>>()? })
    }
}

impl Owner {
    /// Describes the machine of a run.
    pub(super) fn spec(
        &self,
        run: &Run,
        accelerator: collective_vm::accelerator::Accelerator,
    ) -> MachineSpec {
        let export = |role: DiskRole, version: Version| {
            Backing::Nbd(NbdExport {
                socket: self.paths.export_socket(),
                export: export_name(role, version),
            })
        };
        let mut disks = vec![DiskSpec {
            role: DiskRole::System,
            backing: export(DiskRole::System, run.version),
            layers: vec![self.paths.system_layer()],
        }];
        if let (Some(base), Some(disk)) = (run.user_base, &self.disk) {
            let layers: Vec<PathBuf> =
                disk.layers.iter().map(|number| self.paths.user_layer(*number)).collect();
            disks.push(DiskSpec {
                role: DiskRole::User,
                backing: export(DiskRole::User, base),
                layers,
            });
        }
        if run.hardware.ephemeral_bytes > 0 {
            disks.push(DiskSpec {
                role: DiskRole::Ephemeral,
                backing: Backing::None,
                layers: vec![self.paths.ephemeral_layer()],
            });
        }
        MachineSpec {
            name: format!("{}-{}", self.user, self.appliance),
            accelerator,
            hardware: run.hardware.clone(),
            disks,
            sockets: Sockets::within(&self.paths.runtime),
            serial_log: self.paths.serial_log(),
            qemu_log: self.paths.runtime_file("qemu.log"),
            pid_file: self.paths.runtime_file("pid"),
        }
    }

    /// Makes the layers that a run needs besides the user disk's: a fresh system layer, and the ephemeral disk if it is new.
    pub(super) async fn local_layers(&self, run: &Run, system_bytes: u64) -> Result<()> {
        self.create_layer(&self.paths.system_layer(), system_bytes).await?;
        let ephemeral = self.paths.ephemeral_layer();
        if run.hardware.ephemeral_bytes > 0 && !ephemeral.exists() {
            layer::create(&ephemeral, run.hardware.ephemeral_bytes).await?;
        }
        Ok(())
    }

    /// Puts a launched or found machine under this owner's care.
    pub(super) fn take_over(&mut self, machine: Machine, disks: Disks, place: Place) {
        let Machine { process, qmp } = machine;
        let agent = Agent::new(Sockets::within(&self.paths.runtime).agent);
        let helpers = vec![self.listen(&qmp), self.mourn(&process), self.first_answer(&agent)];
        self.machine = Some(Running {
            process,
            qmp,
            agent,
            disks,
            _place: place,
            helpers,
            agent_seen: false,
            takes_leave: false,
            ending: None,
            resuming: None,
        });
        self.heed_disks();
    }

    /// Listens to the lateness of disks that are new.
    pub(super) fn heed_disks(&mut self) {
        let Some(machine) = &mut self.machine else { return };
        let late = machine.disks.late();
        let helpers: Vec<_> =
            late.into_iter().map(|(export, late)| self.heed_late(export, late)).collect();
        if let Some(machine) = &mut self.machine {
            // Those of disks that are served no more have ended.
            machine.helpers.retain(|helper| !helper.is_finished());
            machine.helpers.extend(helpers);
        }
    }

    /// Returns the process of the machine, in our care or found.
    pub(super) fn process(&self) -> Option<&Process> {
        let found = self.held.as_ref().map(|found| &found.process);
        self.machine.as_ref().map(|machine| &machine.process).or(found)
    }

    fn listen(&self, qmp: &Qmp) -> AbortOnDropHandle<()> {
        let (mut events, facts) = (qmp.events(), self.facts.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(event) = events.next().await {
                if facts.send(Fact::Machine(event)).await.is_err() {
                    return;
                }
            }
        }))
    }

    pub(super) fn mourn(&self, process: &Process) -> AbortOnDropHandle<()> {
        let process = process.clone();
        self.helper(async move {
            process.exited().await;
            Some(Fact::Exited)
        })
    }

    fn first_answer(&self, agent: &Agent) -> AbortOnDropHandle<()> {
        let agent = agent.clone();
        self.helper(async move {
            while agent.ping().await.is_err() {
                tokio::time::sleep(AGENT_PAUSE).await;
            }
            Some(Fact::AgentAnswered)
        })
    }

    fn heed_late(
        &self,
        export: String,
        mut late: tokio::sync::watch::Receiver<Option<collective_disk::Late>>,
    ) -> AbortOnDropHandle<()> {
        let facts = self.facts.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut last = None;
            loop {
                let late_now = late.borrow_and_update().clone();
                let reason = late_now.map(|late| format!("waits for data: {}", late.reason.text));
                if reason != last {
                    last.clone_from(&reason);
                    let fact = Fact::Held(Hold::Late(export.clone()), reason);
                    if facts.send(fact).await.is_err() {
                        return;
                    }
                }
                if late.changed().await.is_err() {
                    // The disk is served no more, so nobody waits for it. The owner may be gone too.
                    let _ = facts.send(Fact::Held(Hold::Late(export), None)).await;
                    return;
                }
            }
        }))
    }
}

/// Finds the process that an earlier daemon started, if it still runs.
pub(super) async fn find(paths: &InstancePaths) -> Result<Option<Process>> {
    let sockets = Sockets::within(&paths.runtime);
    process::adopt(&paths.runtime_file("pid"), &sockets.qmp).await
}

/// Connects to the monitor of a found process; none if it ends meanwhile. A guest that waits for a read does not answer
/// before its disks are served again, if it is held.
pub(super) async fn connect(paths: &InstancePaths, process: &Process) -> Result<Option<Qmp>> {
    let socket = &Sockets::within(&paths.runtime).qmp;
    let until = Instant::now() + ADOPT_LIMIT;
    loop {
        match Qmp::connect(socket).await {
            Ok(qmp) => return Ok(Some(qmp)),
            Err(_) if !process.is_alive() => return Ok(None),
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => tokio::time::sleep(AGENT_PAUSE).await,
        }
    }
}

/// The frames of a boot stay in the cache as long as the machine may boot again.
pub(super) fn pin_name(paths: &InstancePaths) -> String {
    format!("boot {}", paths.dir.display())
}
