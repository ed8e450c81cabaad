//! Instances: one appliance of one user on this host, each with one owner task that does everything to it.
//!
//! ```text
//!  commands ─┐                                        ┌─▶ machine, disks, records
//!  facts ────┼─▶ owner ─▶ vm::lifecycle ─▶ actions ─▶ owner
//!  time ─────┘            (its states are drawn there) └─▶ watch ─▶ api
//! ```
//!
//! Commands and facts come to the owner over channels and are handled one after the other; its state is seen on a watch
//! channel. What takes long (uploads, waiting for the guest's agent) runs beside it and reports back as a [`Fact`].
//! `instance.json` says what runs, before it runs: a new daemon finds the machine, listens on the same export socket
//! with the same exports, and goes on.

mod aside;
mod backup;
mod control;
mod disks;
mod life;
mod machine;
mod owner;
mod reads;
mod start;
mod stop;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use collective_api::host::{
    ApplianceStatus, DeleteRequest, ExecReply, ExecRequest, Foretold, InstanceState, StartRequest,
    StopRequest, UndoRequest,
};
use collective_model::{
    ApplianceName, Error, ErrorKind, Hardware, Result, Timestamp, UserName, Version,
};
use collective_repository::Descriptor;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::core::{Core, stopped};
use crate::operation::Handle;
use crate::record;

/// Commands that wait for one owner; more are refused at the door.
const COMMANDS_WAITING: usize = 32;

/// What an owner is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Start(StartRequest, Handle),
    Stop(StopRequest, Handle),
    Reset(Handle),
    Undo(UndoRequest, Handle),
    Publish(Handle),
    Delete(DeleteRequest, Handle),
    Exec(ExecRequest, oneshot::Sender<Result<ExecReply>>),
    /// The user logged in again: what waited for it goes on.
    SessionCame,
    /// The daemon goes down; machines stay up.
    Leave(oneshot::Sender<()>),
}

/// `instance.json`: what runs, or ran last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InstanceRecord {
    pub(crate) format: u32,
    /// What was launched, or is about to be.
    pub(crate) run: Option<Run>,
    /// The milliseconds from start until the agent answered, of the last start.
    pub(crate) boot_ms: Option<u64>,
    /// How well its boot trace foretold that start.
    #[serde(default)]
    pub(crate) foretold: Option<Foretold>,
}

/// What one machine is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) appliance: Descriptor,
    pub(crate) version: Version,
    pub(crate) hardware: Hardware,
    /// The version that its user disk lies on at launch.
    pub(crate) user_base: Option<Version>,
    pub(crate) user_disk: Option<Descriptor>,
    pub(crate) started: Timestamp,
}

/// An owner, from outside.
#[derive(Clone, Debug)]
pub(crate) struct InstanceHandle {
    name: ApplianceName,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<ApplianceStatus>,
}

impl InstanceHandle {
    /// Gives the owner a command.
    ///
    /// # Errors
    /// `Unavailable` if too many wait already.
    pub(crate) async fn send(&self, command: Command) -> Result<()> {
        self.commands.try_send(command).map_err(|_| {
            let message = format!("`{}` has too many requests waiting", self.name);
            Error::new(ErrorKind::Unavailable, message).with_hint("try again in a moment")
        })
    }

    pub(crate) fn status(&self) -> ApplianceStatus {
        self.status.borrow().clone()
    }
}

type Table = BTreeMap<(UserName, ApplianceName), InstanceHandle>;

/// The owners that there are.
#[derive(Debug)]
pub(crate) struct Instances(watch::Sender<Table>);

impl Instances {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Table::new()))
    }

    /// Returns the owner of an instance; makes it if there is none yet.
    pub(crate) fn get(
        &self,
        core: &Arc<Core>,
        user: &UserName,
        name: &ApplianceName,
    ) -> Result<InstanceHandle> {
        let key = (user.clone(), name.clone());
        if let Some(handle) = self.0.borrow().get(&key) {
            return Ok(handle.clone());
        }
        let mut made = None;
        self.0.send_modify(|table| {
            let handle = table.entry(key).or_insert_with(|| spawn(core, user, name));
            made = Some(handle.clone());
        });
        made.ok_or_else(|| Error::new(ErrorKind::Internal, "the table of instances is closed"))
    }

    pub(crate) fn status(&self, user: &UserName, name: &ApplianceName) -> Option<ApplianceStatus> {
        self.0.borrow().get(&(user.clone(), name.clone())).map(InstanceHandle::status)
    }

    pub(crate) fn statuses(&self, user: &UserName) -> Vec<ApplianceStatus> {
        let table = self.0.borrow();
        table.iter().filter(|(key, _)| &key.0 == user).map(|(_, it)| it.status()).collect()
    }

    /// Those of whom something runs.
    pub(crate) fn users_running(&self) -> BTreeSet<UserName> {
        let table = self.0.borrow();
        let runs = |handle: &InstanceHandle| handle.status().state != InstanceState::Stopped;
        table.iter().filter(|(_, it)| runs(it)).map(|((user, _), _)| user.clone()).collect()
    }

    pub(crate) fn of_user(&self, user: &UserName) -> Vec<InstanceHandle> {
        let table = self.0.borrow();
        table.iter().filter(|(key, _)| &key.0 == user).map(|(_, it)| it.clone()).collect()
    }

    pub(crate) fn all(&self) -> Vec<InstanceHandle> {
        self.0.borrow().values().cloned().collect()
    }

    /// Makes owners for everything that has a record on disk: what runs is found again.
    pub(crate) fn recover(&self, core: &Arc<Core>) -> Result<()> {
        for user in names::<UserName>(&core.paths.users()) {
            for appliance in names::<ApplianceName>(&core.paths.users().join(user.as_str())) {
                let paths = core.paths.instance(&user, &appliance);
                if record::load::<InstanceRecord>(&paths.record()).is_ok_and(|it| it.is_none()) {
                    continue;
                }
                self.get(core, &user, &appliance)?;
            }
        }
        Ok(())
    }
}

/// The directories in a directory whose names are of a kind.
fn names<T: std::str::FromStr>(directory: &std::path::Path) -> Vec<T> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn spawn(core: &Arc<Core>, user: &UserName, name: &ApplianceName) -> InstanceHandle {
    let (commands, receiver) = mpsc::channel(COMMANDS_WAITING);
    let (status, status_seen) = watch::channel(stopped(user, name));
    let owner = owner::Owner::new(core, user, name, status);
    tokio::spawn(owner.run(receiver));
    InstanceHandle { name: name.clone(), commands, status: status_seen }
}
