//! The shell of `vm::lifecycle`: everything that happens to a machine is told to it here, and what it wants done is done.
//!
//! Nothing else decides whether a machine is up or down. What holds a guest (late blocks of one of its disks, a full disk)
//! is counted here: it goes on when nothing holds it any more.

use std::collections::BTreeMap;
use std::time::Instant;

use collective_api::host::InstanceState;
use collective_model::{Error, ErrorKind};
use collective_vm::lifecycle::{Action, Event, State};

use super::owner::{Fact, Owner};

/// Something that holds a guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hold {
    /// Blocks of an export are late.
    Late(String),
    /// A disk of the machine failed for good.
    Failed,
    /// There is no room for what it writes.
    Full,
}

/// What holds a guest, and why; bounded by its exports.
pub(super) type Holds = BTreeMap<Hold, String>;

impl Owner {
    /// Tells the life of the machine what happened, and does what follows.
    pub(super) async fn tell(&mut self, event: Event) {
        let before = self.life.state().clone();
        let actions = self.life.handle(event, Instant::now());
        if *self.life.state() != before {
            tracing::debug!("{}: {:?}", self.what(), self.life.state());
        }
        for action in actions {
            Box::pin(self.act(action)).await;
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Queue => self.queue().await,
            Action::Prepare => self.prepare().await,
            Action::Launch => self.launch().await,
            Action::Hold => self.hold().await,
            Action::Resume => self.resume(),
            Action::AskAgent => self.ask_agent(),
            Action::PressPower => self.press_power(),
            Action::Kill => self.kill().await,
            Action::Release => self.release().await,
        }
    }

    /// Returns the state as the API names it.
    pub(super) fn state(&self) -> InstanceState {
        match self.life.state() {
            State::Off | State::Failed { .. } => InstanceState::Stopped,
            State::Queued => InstanceState::Queued,
            State::Preparing | State::Launching | State::Running { ready: false } => {
                InstanceState::Starting
            }
            State::Running { ready: true } => InstanceState::Running,
            State::Paused { .. } => InstanceState::Paused,
            State::Stopping { .. } => InstanceState::Stopping,
        }
    }

    /// Returns why it is where it is.
    pub(super) fn reason(&self) -> Option<String> {
        match self.life.state() {
            State::Failed { reason } | State::Paused { reason, .. } => Some(reason.clone()),
            State::Queued => self.why_queued(),
            _ => self.notice.clone(),
        }
    }

    async fn hold(&self) {
        if let Some(machine) = &self.machine
            && let Err(error) = machine.qmp.hold().await
        {
            tracing::warn!("{}: {}", self.what(), error.chain());
        }
    }

    /// Lets the processors go on, beside the owner: QEMU answers only when the reads under way are done.
    fn resume(&mut self) {
        let Some(machine) = &self.machine else { return };
        let (qmp, what) = (machine.qmp.clone(), self.what());
        let helper = self.helper(async move {
            if let Err(error) = qmp.resume().await {
                tracing::warn!("{what}: {}", error.chain());
            }
            None
        });
        if let Some(machine) = &mut self.machine {
            machine.resuming = Some(helper);
        }
    }

    fn ask_agent(&mut self) {
        let Some(machine) = &self.machine else { return };
        let (agent, seen) = (machine.agent.clone(), machine.agent_seen);
        let helper = self.helper(async move {
            let asked = seen && agent.shutdown().await.is_ok();
            (!asked).then_some(Fact::AgentSilent)
        });
        if let Some(machine) = &mut self.machine {
            machine.ending = Some(helper);
        }
    }

    fn press_power(&mut self) {
        let Some(machine) = &self.machine else { return };
        let (qmp, what) = (machine.qmp.clone(), self.what());
        let helper = self.helper(async move {
            if let Err(error) = qmp.press_power().await {
                tracing::warn!("{what}: cannot press the power button: {}", error.chain());
            }
            None
        });
        if let Some(machine) = &mut self.machine {
            machine.ending = Some(helper);
        }
    }

    /// Kills the process, whose end is heard of; where there is none, nothing is left to wait for.
    async fn kill(&mut self) {
        let Some(process) = self.process().cloned() else {
            return self.tell(Event::Gone { fault: None }).await;
        };
        for handle in &self.stopping {
            handle.stage("pulling the power cord");
        }
        let again = std::mem::replace(&mut self.killed, true);
        let killed = process.start_kill();
        if let Err(error) = killed {
            self.stop_failed(&error);
        } else if again {
            let message =
                format!("the machine of `{}` was killed and does not end", self.appliance);
            self.stop_failed(&Error::new(ErrorKind::Unavailable, message));
        }
    }

    /// Nothing runs any more: gives back memory and disks, and notes that nothing runs.
    async fn release(&mut self) {
        self.report_rest();
        if let Some(machine) = self.machine.take() {
            machine.leave().await;
        }
        if let Some(found) = self.held.take() {
            found.leave().await;
        }
        self.killed = false;
        self.holds.clear();
        if self.record.run.take().is_some()
            && let Err(error) = self.store_record()
        {
            tracing::error!("{}: {}", self.what(), error.chain());
        }
    }

    /// Something begins to hold the guest, or no longer does.
    pub(super) async fn holds(&mut self, hold: Hold, reason: Option<String>) {
        if self.machine.is_none() {
            return;
        }
        match reason {
            Some(reason) => drop(self.holds.insert(hold, reason)),
            None if self.holds.remove(&hold).is_none() => return,
            None => {}
        }
        let Some(reason) = self.holds.values().next().cloned() else {
            self.tell(Event::OnTime).await;
            if let Some(starting) = &self.starting {
                starting.handle.stage("booting");
            }
            return;
        };
        if let Some(starting) = &self.starting {
            starting.handle.stage(&format!("paused: {reason}"));
        }
        self.tell(Event::Late { reason }).await;
    }
}
