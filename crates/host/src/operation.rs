//! Operations: work that may take longer than a second, watched and cancelled by whoever may.
//!
//! Each has a watch channel with its whole state: a slow watcher sees fewer changes, never a wrong last one. The table of
//! them is a watch channel too, so it has no lock and no owner; ended operations stay for a while to be asked about.

use std::collections::BTreeMap;
use std::sync::Arc;

use collective_api::failure::Failure;
use collective_api::host::{Event, Operation, OperationState};
use collective_model::{
    ApplianceName, Error, ErrorKind, Monitor, OperationId, Progress, Result, UserName,
};
use serde::Serialize;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::now;

/// Ended operations that can still be asked about; the oldest are forgotten first.
const ENDED_KEPT: usize = 200;

/// Events that a slow watcher may fall behind before it misses some.
const EVENTS_BEHIND: usize = 256;

/// All operations of the daemon, and the stream of its events. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Operations {
    table: Arc<watch::Sender<BTreeMap<OperationId, Handle>>>,
    events: broadcast::Sender<Event>,
}

/// One operation, in the hands of who does the work. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    state: Arc<watch::Sender<Operation>>,
    cancel: CancellationToken,
    events: broadcast::Sender<Event>,
}

impl Operations {
    pub(crate) fn new() -> Self {
        Self {
            table: Arc::new(watch::Sender::new(BTreeMap::new())),
            events: broadcast::Sender::new(EVENTS_BEHIND),
        }
    }

    /// Begins an operation on an appliance of a user.
    pub(crate) fn begin(&self, verb: &str, appliance: &ApplianceName, user: &UserName) -> Handle {
        self.begin_for(verb, Some(appliance.clone()), Some(user.clone()))
    }

    /// Begins an operation of the host itself.
    pub(crate) fn begin_own(&self, verb: &str) -> Handle {
        self.begin_for(verb, None, None)
    }

    fn begin_for(
        &self,
        verb: &str,
        appliance: Option<ApplianceName>,
        user: Option<UserName>,
    ) -> Handle {
        let operation = Operation {
            id: OperationId(crate::random()),
            verb: verb.to_owned(),
            appliance,
            user,
            state: OperationState::Running,
            stage: "waiting its turn".to_owned(),
            done_bytes: 0,
            total_bytes: None,
            moved_bytes: 0,
            percent: None,
            may_cancel: true,
            started: now(),
            ended: None,
            error: None,
            result: None,
        };
        let id = operation.id;
        let handle = Handle {
            state: Arc::new(watch::Sender::new(operation)),
            cancel: CancellationToken::new(),
            events: self.events.clone(),
        };
        self.table.send_modify(|table| {
            forget_oldest(table);
            table.insert(id, handle.clone());
        });
        handle.tell();
        handle
    }

    /// Finds an operation.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn get(&self, id: OperationId) -> Result<Handle> {
        self.table.borrow().get(&id).cloned().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no operation {id}"))
                .with_hint("operations are forgotten some time after they ended")
        })
    }

    pub(crate) fn list(&self) -> Vec<Operation> {
        self.table.borrow().values().map(Handle::now).collect()
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub(crate) fn tell(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

fn forget_oldest(table: &mut BTreeMap<OperationId, Handle>) {
    let ended = |handle: &Handle| handle.state.borrow().ended;
    while table.values().filter(|handle| ended(handle).is_some()).count() >= ENDED_KEPT {
        let oldest = table
            .iter()
            .filter_map(|(id, handle)| Some((ended(handle)?, *id)))
            .min()
            .map(|(_, id)| id);
        let Some(oldest) = oldest else { return };
        table.remove(&oldest);
    }
}

impl Handle {
    pub(crate) fn id(&self) -> OperationId {
        self.state.borrow().id
    }

    pub(crate) fn now(&self) -> Operation {
        self.state.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Operation> {
        self.state.subscribe()
    }

    /// Says what is done just now; figures of the stage before are gone.
    pub(crate) fn stage(&self, stage: &str) {
        self.state.send_modify(|operation| {
            stage.clone_into(&mut operation.stage);
            operation.done_bytes = 0;
            operation.total_bytes = None;
            operation.percent = None;
        });
        self.tell();
    }

    /// Asks for the end; who does the work heeds it at its next safe place.
    pub(crate) fn cancel(&self) {
        self.cancel.cancel();
    }

    pub(crate) async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// From here on it cannot be cancelled.
    pub(crate) fn past_cancelling(&self) {
        self.state.send_modify(|operation| operation.may_cancel = false);
    }

    /// Ends it; the first end counts.
    pub(crate) fn end(&self, result: Result<impl Serialize>) {
        let ended = self.state.send_if_modified(|operation| {
            if operation.state.is_over() {
                return false;
            }
            operation.ended = Some(now());
            operation.may_cancel = false;
            match result {
                Ok(value) => {
                    operation.state = OperationState::Done;
                    operation.percent = Some(100);
                    operation.stage = "done".to_owned();
                    operation.result = serde_json::to_value(value).ok().filter(|it| !it.is_null());
                }
                Err(error) => {
                    let cancelled = self.cancel.is_cancelled();
                    operation.state =
                        if cancelled { OperationState::Cancelled } else { OperationState::Failed };
                    operation.error = Some(Failure::from(&error));
                }
            }
            true
        });
        if ended {
            self.tell();
        }
    }

    fn tell(&self) {
        let _ = self.events.send(Event::Operation(Box::new(self.now())));
    }
}

impl Monitor for Handle {
    fn progress(&self, progress: Progress) {
        self.state.send_modify(|operation| {
            operation.done_bytes = progress.done_bytes;
            operation.total_bytes = progress.total_bytes;
            operation.moved_bytes = progress.moved_bytes;
            operation.percent = progress.total_bytes.filter(|total| *total > 0).map(|total| {
                let percent = u128::from(progress.done_bytes) * 100 / u128::from(total);
                u8::try_from(percent.min(100)).expect("100 fits")
            });
        });
    }
}

/// The error of work that was cancelled.
pub(crate) fn cancelled(what: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("{what} was cancelled"))
}

#[cfg(test)]
mod tests {
    use collective_api::host::OperationState;
    use collective_model::{Error, ErrorKind, Monitor, Progress};

    use super::{ENDED_KEPT, Operations};

    fn begin(operations: &Operations) -> super::Handle {
        operations.begin("start", &"tiny".parse().unwrap(), &"ann".parse().unwrap())
    }

    #[test]
    fn a_watcher_sees_the_figures_and_the_end() {
        let operations = Operations::new();
        let handle = begin(&operations);
        let seen = operations.get(handle.id()).unwrap().watch();
        handle.progress(Progress { done_bytes: 1, total_bytes: Some(3), moved_bytes: 9 });
        assert_eq!(seen.borrow().percent, Some(33));
        handle.end(Ok(()));
        handle.end(Err::<(), _>(Error::new(ErrorKind::Internal, "too late")));
        assert_eq!(seen.borrow().state, OperationState::Done);
    }

    #[test]
    fn a_failure_after_cancel_counts_as_cancelled() {
        let handle = begin(&Operations::new());
        handle.cancel();
        handle.end(Err::<(), _>(super::cancelled("start")));
        assert_eq!(handle.now().state, OperationState::Cancelled);
    }

    #[test]
    fn ended_operations_are_bounded_and_running_ones_stay() {
        let operations = Operations::new();
        let running = begin(&operations);
        for _ in 0..ENDED_KEPT + 50 {
            begin(&operations).end(Ok(()));
        }
        assert!(operations.list().len() <= ENDED_KEPT + 1);
        assert!(operations.get(running.id()).is_ok());
    }
}
