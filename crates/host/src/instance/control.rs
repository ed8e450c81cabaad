//! The smaller verbs: run a program in the guest, reset, undo, delete; and what freezing and moving a running disk takes.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use collective_api::host::{DeleteRequest, ExecReply, ExecRequest, UndoRequest};
use collective_model::{ApplianceName, DiskRole, Error, ErrorKind, Result, ResultExt, Version};
use collective_vm::agent::Exec;
use collective_vm::graph;
use collective_vm::spec::NbdExport;
use tokio::sync::oneshot;

use super::disks::export_name;
use super::machine::pin_name;
use super::owner::Owner;
use crate::operation::Handle;
use crate::record;
use crate::subscription::{Subscription, Want};

/// How long a program in the guest may take unless its caller says otherwise.
const EXEC_LIMIT: Duration = Duration::from_secs(300);

impl Owner {
    /// Runs a program in the guest, beside the owner.
    pub(super) fn exec(&self, request: ExecRequest, reply: oneshot::Sender<Result<ExecReply>>) {
        let Some(machine) = &self.machine else {
            let _ = reply.send(Err(self.not_running()));
            return;
        };
        let (agent, appliance) = (machine.agent.clone(), self.appliance.clone());
        tokio::spawn(async move {
            let answer = async {
                let limit = request.limit_s.map_or(EXEC_LIMIT, |s| Duration::from_secs(s.into()));
                let program = program(request)?;
                let result = match agent.exec(&program, limit).await {
                    Ok(result) => result,
                    Err(error) => return not_run(error, &program.path, &appliance),
                };
                Ok(ExecReply {
                    exit_code: result.exit_code,
                    stdout: BASE64.encode(result.output),
                    stderr: BASE64.encode(result.errors),
                })
            };
            // Whoever asked may have gone.
            let _ = reply.send(answer.await);
        });
    }

    fn not_running(&self) -> Error {
        Error::new(ErrorKind::Conflict, format!("`{}` does not run", self.appliance))
            .with_hint(format!("start it with `collective start {}`", self.appliance))
    }

    fn ensure_stopped(&self, verb: &str) -> Result<()> {
        if self.life.is_down() && self.record.run.is_none() {
            return Ok(());
        }
        let message = format!("cannot {verb} `{}` while it runs", self.appliance);
        Err(Error::new(ErrorKind::Conflict, message)
            .with_hint(format!("stop it with `collective stop {}`", self.appliance)))
    }

    /// What was kept aside is in no backup: it goes only by somebody's hand.
    fn ensure_nothing_kept(&self) -> Result<()> {
        let kept = self.paths.kept();
        let is_empty =
            std::fs::read_dir(&kept).map_or(true, |mut entries| entries.next().is_none());
        if is_empty {
            return Ok(());
        }
        let message = format!(
            "changes of `{}` that are in no backup are kept in {}",
            self.appliance,
            kept.display()
        );
        Err(Error::new(ErrorKind::Conflict, message)
            .with_hint("move them to another place, or remove them if nobody needs them"))
    }

    /// Drops the ephemeral disk and what was written to the system disk.
    pub(super) fn reset(&mut self) -> Result<()> {
        self.ensure_stopped("reset")?;
        self.core.cache.unpin(&pin_name(&self.paths));
        record::remove(&self.paths.ephemeral_layer())?;
        record::remove(&self.paths.system_layer())
    }

    /// Backs up what is there, then appends an old version.
    pub(super) async fn undo(&mut self, request: UndoRequest, handle: Handle) {
        match self.undo_target(request).await {
            Ok(version) => {
                self.backup.retry_now();
                self.wait_for(Want::Undo(version), handle).await;
            }
            Err(error) => handle.end(Err::<(), _>(error)),
        }
    }

    async fn undo_target(&mut self, request: UndoRequest) -> Result<Version> {
        self.ensure_stopped("undo the user disk of")?;
        let session = self.session()?;
        let profile = self.core.profile(&session).await?;
        let entry = profile.subscription(&self.appliance).ok_or_else(|| {
            let message = format!("`{}` has no user disk yet", self.appliance);
            Error::new(ErrorKind::NotFound, message)
        })?;
        self.subscribed(entry)?;
        let epoch = collective_model::Epoch(0);
        let repository = self.core.repository(&session, &entry.descriptor, epoch).await?;
        let head = repository.head().await?;
        let target = request.to.or_else(|| head?.previous()).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "the user disk has no version before the latest")
        })?;
        repository.version(target).await?;
        Ok(target)
    }

    /// Deletes the subscription here and, unless only that was asked for, at the server.
    pub(super) async fn delete(&mut self, request: DeleteRequest, handle: &Handle) -> Result<()> {
        self.ensure_stopped("delete")?;
        self.ensure_nothing_kept()?;
        handle.past_cancelling();
        let unpublished = self.disk.as_ref().is_some_and(Subscription::has_unpublished);
        if request.local && unpublished {
            let message = format!("`{}` has changes that are not backed up", self.appliance);
            return Err(Error::new(ErrorKind::Conflict, message)
                .with_hint("wait until `collective status` shows none"));
        }
        self.backup.upload = None;
        let session = self.session()?;
        let profile = self.core.profile(&session).await?;
        if let Some(entry) = profile.subscription(&self.appliance) {
            match &self.disk {
                _ if !request.local => session.remote.unsubscribe(entry.id).await?,
                Some(disk) if disk.epoch.0 != 0 => {
                    session.remote.release(disk.id, disk.epoch).await?;
                }
                _ => {}
            }
        }
        self.reset()?;
        if let Some(disk) = self.disk.take() {
            // Copies: what is left of them is in nobody's way.
            let _ = std::fs::remove_dir_all(self.core.paths.replica(disk.repository.id));
        }
        self.store_disk()?;
        crate::hold::release(&self.core, &self.paths)?;
        match std::fs::remove_dir_all(&self.paths.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error)
                .or_error(ErrorKind::Internal, || {
                    format!("cannot remove {}", self.paths.dir.display())
                }),
            _ => Ok(()),
        }
    }

    /// Puts the newest layer on top of a running guest's.
    pub(super) async fn freeze(&mut self, new: u64) -> Result<()> {
        let Some(machine) = &self.machine else { return Ok(()) };
        graph::freeze(&machine.qmp, DiskRole::User, &self.paths.user_layer(new)).await.map(drop)
    }

    /// Moves a running guest's user disk to a new version, off the layers that it holds.
    pub(super) async fn rebase(&mut self, version: Version, gone: &[u64]) -> Result<()> {
        let session = self.session()?;
        let Some(disk) = &self.disk else { return Ok(()) };
        let bottom = disk.layers.iter().find(|layer| !gone.contains(layer)).ok_or_else(|| {
            Error::new(ErrorKind::Internal, "a running disk has no layer above the published ones")
        })?;
        let bottom = self.paths.user_layer(*bottom);
        let Some(machine) = &mut self.machine else { return Ok(()) };
        machine.disks.serve_user(&self.core, &session, &disk.repository, version).await?;
        self.heed_disks();
        let Some(machine) = &mut self.machine else { return Ok(()) };
        let export = NbdExport {
            socket: self.paths.export_socket(),
            export: export_name(DiskRole::User, version),
        };
        graph::rebase(&machine.qmp, DiskRole::User, &bottom, &export).await?;
        machine.disks.only_user(version);
        if let Some(run) = &mut self.record.run {
            run.user_base = Some(version);
        }
        self.store_record()
    }
}

/// Answers as a shell does, where the guest has no such program or cannot run it.
fn not_run(error: Error, program: &str, appliance: &ApplianceName) -> Result<ExecReply> {
    let (exit_code, said) = match error.kind() {
        ErrorKind::NotFound => (127, format!("there is no program `{program}` in {appliance}\n")),
        ErrorKind::Denied => (126, format!("`{program}` cannot be run in {appliance}\n")),
        _ => return Err(error),
    };
    Ok(ExecReply { exit_code, stdout: String::new(), stderr: BASE64.encode(said) })
}

fn program(request: ExecRequest) -> Result<Exec> {
    let mut words = request.command.into_iter();
    let path =
        words.next().ok_or_else(|| Error::new(ErrorKind::Invalid, "there is no program to run"))?;
    let input = BASE64
        .decode(request.input.unwrap_or_default())
        .or_error(ErrorKind::Invalid, || "the program's input is not base64".to_owned())?;
    Ok(Exec { path, arguments: words.collect(), input })
}
