//! The end of a machine, however it comes, and what a full disk does to it.
//!
//! How a guest is brought down, and when the next harder means is used, is decided by `vm::lifecycle`. When QEMU has ended,
//! the user disk's layers are closed and the last backup begins; nobody waits for that.

use collective_api::host::StopRequest;
use collective_model::{Error, ErrorKind};
use collective_vm::lifecycle::{Event, State};
use collective_vm::qmp::QmpEvent;

use super::life::Hold;
use super::owner::Owner;
use crate::operation::Handle;

/// Room that must be there before a guest that a full disk holds goes on.
const ROOM_BYTES: u64 = 1 << 20;

impl Owner {
    pub(super) async fn stop(&mut self, request: StopRequest, handle: Handle) {
        if let Some(starting) = &self.starting
            && self.machine.is_none()
        {
            let id = starting.handle.id();
            self.cancelled(id).await;
        }
        if self.held.is_some() && !request.force {
            self.recover().await;
        }
        if self.held.is_some() && !request.force {
            let message = format!("`{}` cannot be shut down now", self.appliance);
            let force = "with --force its power cord is pulled";
            let hint = match self.session() {
                Ok(_) => force.to_owned(),
                Err(_) => format!("log in with `collective login {}`; {force}", self.user),
            };
            let error = Error::new(ErrorKind::Unavailable, message).with_hint(hint);
            return handle.end(Err::<(), _>(match self.reason() {
                Some(reason) => error.with_source(reason),
                None => error,
            }));
        }
        if self.process().is_none() {
            self.tell(Event::Stop { force: request.force }).await;
            return handle.end(Ok(()));
        }
        if let Some(starting) = self.starting.take() {
            starting.handle.end(Err::<(), _>(Error::new(
                ErrorKind::Conflict,
                format!("`{}` was stopped while it started", self.appliance),
            )));
        }
        handle.past_cancelling();
        handle.stage("shutting the guest down");
        self.stopping.push(handle);
        self.tell(Event::Stop { force: request.force }).await;
    }

    pub(super) fn stop_failed(&mut self, error: &Error) {
        for handle in self.stopping.drain(..) {
            handle.end(Err::<(), _>(Error::new(error.kind(), error.chain())));
        }
    }

    /// QEMU has ended.
    pub(super) async fn exited(&mut self) {
        if self.process().is_none() {
            return;
        }
        let fault = self.why_ended();
        self.tell(Event::Gone { fault }).await;
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

    /// What went wrong, if nobody wanted the machine to end.
    fn why_ended(&self) -> Option<String> {
        if self.starting.is_some() {
            return Some("the machine ended while it started".to_owned());
        }
        let is_up = matches!(self.life.state(), State::Running { .. } | State::Paused { .. });
        let takes_leave = self.machine.as_ref().is_some_and(|machine| machine.takes_leave);
        (is_up && !takes_leave).then(|| {
            "QEMU ended by itself or was killed; what the guest had written to its user disk is there".to_owned()
        })
    }

    /// QEMU said something: it ends, or it holds the guest itself because a disk cannot be read or written.
    pub(super) async fn machine_said(&mut self, event: &QmpEvent) {
        if event.name == "SHUTDOWN"
            && let Some(machine) = &mut self.machine
        {
            machine.takes_leave = true;
        }
        if event.name != "BLOCK_IO_ERROR" || event.data["action"] != "stop" {
            return;
        }
        if event.data["nospace"] == true {
            let dir = self.paths.dir.display();
            let reason = format!("the disk of this computer is full: make room for {dir}");
            self.holds(Hold::Full, Some(reason)).await;
        } else {
            let reason = format!("a disk of the machine failed: {}", event.data["reason"]);
            self.holds(Hold::Failed, Some(reason)).await;
        }
    }

    /// A guest that was held by a full disk goes on when there is room.
    pub(super) async fn resume_with_room(&mut self) {
        let held = matches!(self.life.state(), State::Paused { .. });
        if held && self.holds.contains_key(&Hold::Full) && self.ensure_room(ROOM_BYTES).is_ok() {
            self.holds(Hold::Full, None).await;
        }
    }
}
