//! The end of a machine, however it comes, and its pauses.
//!
//! A stop asks the guest through its agent, else presses the power button, and after a limit pulls the cord. When QEMU has
//! ended, the user disk's layers are closed and the last backup begins; nobody waits for that.

use std::time::Duration;

use collective_api::host::{InstanceState, StopRequest};
use collective_model::{Error, ErrorKind, Result};
use collective_vm::qmp::QmpEvent;

use super::owner::{Fact, Owner};
use crate::operation::Handle;

/// How long a guest may take to shut down before the cord is pulled: a stock system under translation needs some 20 s.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(120);

impl Owner {
    pub(super) async fn stop(&mut self, request: StopRequest, handle: Handle) {
        if let Some(starting) = &self.starting
            && self.machine.is_none()
        {
            let id = starting.handle.id();
            self.cancelled(id).await;
        }
        if self.machine.is_none() {
            return handle.end(Ok(()));
        }
        if let Some(starting) = self.starting.take() {
            starting.handle.end(Err::<(), _>(Error::new(
                ErrorKind::Conflict,
                format!("`{}` was stopped while it started", self.appliance),
            )));
        }
        handle.past_cancelling();
        handle.stage(if request.force {
            "pulling the power cord"
        } else {
            "shutting the guest down"
        });
        self.stopping.push(handle);
        let first = self.state != InstanceState::Stopping;
        self.state = InstanceState::Stopping;
        let done = if request.force {
            self.pull_cord().await
        } else if first {
            self.shut_down().await;
            Ok(())
        } else {
            Ok(())
        };
        if let Err(error) = done {
            self.stop_failed(&error);
        }
    }

    async fn shut_down(&mut self) {
        let Some(machine) = &self.machine else { return };
        let (agent, qmp, seen) = (machine.agent.clone(), machine.qmp.clone(), machine.agent_seen);
        let helper = self.helper(async move {
            let asked = seen && agent.shutdown().await.is_ok();
            if !asked && let Err(error) = qmp.press_power().await {
                tracing::warn!("cannot press the power button: {}", error.chain());
            }
            tokio::time::sleep(SHUTDOWN_LIMIT).await;
            Some(Fact::StopOverdue)
        });
        if let Some(machine) = &mut self.machine {
            machine.ending = Some(helper);
        }
    }

    /// The guest did not shut down in its time.
    pub(super) async fn stop_overdue(&mut self) {
        if self.state != InstanceState::Stopping {
            return;
        }
        tracing::warn!("{}: the guest did not shut down, pulling the cord", self.what());
        for handle in &self.stopping {
            handle.stage("the guest did not shut down: pulling the power cord");
        }
        if let Err(error) = self.pull_cord().await {
            self.stop_failed(&error);
        }
    }

    async fn pull_cord(&self) -> Result<()> {
        match &self.machine {
            Some(machine) => machine.process.kill().await,
            None => Ok(()),
        }
    }

    fn stop_failed(&mut self, error: &Error) {
        for handle in self.stopping.drain(..) {
            handle.end(Err::<(), _>(Error::new(error.kind(), error.chain())));
        }
    }

    /// QEMU has ended.
    pub(super) async fn exited(&mut self) {
        let Some(machine) = self.machine.take() else { return };
        machine.leave().await;
        let expected = self.state == InstanceState::Stopping;
        self.state = InstanceState::Stopped;
        self.record.run = None;
        if let Err(error) = self.store_record() {
            tracing::error!("{}: {}", self.what(), error.chain());
        }
        if !expected {
            self.reason =
                self.starting.is_some().then(|| "the machine ended while it started".to_owned());
        }
        self.show();
        if let Some(starting) = self.starting.take() {
            let message = format!("`{}` ended before its guest was up", self.appliance);
            let hint = format!("the guest's serial log is {}", self.paths.serial_log().display());
            starting
                .handle
                .end(Err::<(), _>(Error::new(ErrorKind::Internal, message).with_hint(hint)));
        }
        self.measure_backlog().await;
        self.show();
        for handle in self.stopping.drain(..) {
            handle.end(Ok(()));
        }
        self.backup.retry_now();
        self.pursue().await;
    }

    /// Blocks are late: the guest is held, with the reason; or they came.
    pub(super) async fn late(&mut self, reason: Option<String>) {
        let Some(machine) = &self.machine else { return };
        let qmp = machine.qmp.clone();
        let done = match &reason {
            Some(_) => qmp.hold().await,
            None => qmp.resume().await,
        };
        if let Err(error) = done {
            tracing::warn!("{}: {}", self.what(), error.chain());
        }
        if self.state == InstanceState::Stopping {
            return;
        }
        match reason {
            Some(reason) => {
                self.state = InstanceState::Paused;
                self.reason = Some(format!("waits for data: {reason}"));
                if let Some(starting) = &self.starting {
                    starting.handle.stage(&format!("paused, waits for data: {reason}"));
                }
            }
            None => {
                self.reason = None;
                self.resumed();
            }
        }
    }

    fn resumed(&mut self) {
        let up = self.machine.as_ref().is_some_and(|machine| machine.agent_seen);
        self.state = if up { InstanceState::Running } else { InstanceState::Starting };
        if let Some(starting) = &self.starting {
            starting.handle.stage("booting");
        }
    }

    /// QEMU said something: a full disk holds the guest too.
    pub(super) async fn machine_said(&mut self, event: &QmpEvent) {
        let stopped = event.name == "BLOCK_IO_ERROR" && event.data["action"] == "stop";
        if stopped && self.state != InstanceState::Stopping {
            self.state = InstanceState::Paused;
            let full = event.data["nospace"] == true;
            self.reason = Some(if full {
                format!("the disk that holds {} is full: make room", self.paths.dir.display())
            } else {
                format!("a disk of the machine failed: {}", event.data["reason"])
            });
        }
    }

    /// A guest that was held by a full disk goes on when there is room.
    pub(super) async fn resume_with_room(&mut self) {
        let held = self.reason.as_ref().is_some_and(|reason| reason.contains("is full"));
        if self.state != InstanceState::Paused || !held || self.ensure_room(1 << 20).is_err() {
            return;
        }
        let Some(machine) = &self.machine else { return };
        if machine.qmp.resume().await.is_ok() {
            self.reason = None;
            self.resumed();
        }
    }
}
