//! Waiting for work that the host daemon does: shown while it goes on, left alone when the person leaves.
//!
//! The first Ctrl-C only stops watching: the daemon works on, and we say how to look. Where the work may be cancelled, a
//! second press within [`SECOND_PRESS`] cancels it.

use std::time::Duration;

use collective_api::HostClient;
use collective_api::host::{Operation, OperationState};
use collective_model::{ErrorKind, Result, ResultExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::context::Context;
use crate::progress::{Meter, Step};

/// How long a second Ctrl-C counts as one: time to read the line that offers it.
const SECOND_PRESS: Duration = Duration::from_secs(3);

/// What a shell expects of a command that was interrupted: 128 and the number of SIGINT.
pub const INTERRUPTED: u8 = 130;

/// How waiting ended.
pub enum Ended {
    /// The work is done.
    Done(Box<Operation>),
    /// The person left; the work goes on in the daemon, unless they cancelled it.
    Left,
}

/// Waits for the end of `operation` and shows how far it is. With `stay` false it only says what was begun.
pub async fn finish(
    context: &Context,
    client: &HostClient,
    operation: Operation,
    stay: bool,
) -> Result<Ended> {
    if !stay {
        context.output.say("operation", &operation, || {
            format!("begun; `collective status` shows how far it is (operation {})", operation.id)
        });
        return Ok(Ended::Left);
    }
    // Before anything is shown: who sees it may press at once.
    let mut interrupt = listen(SignalKind::interrupt())?;
    let meter = context.output.meter(&label(&operation));
    let (id, may_cancel) = (operation.id, operation.may_cancel);
    let work = client.finish(operation, |operation| meter.step(&step(operation)));
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done.map(|operation| Ended::Done(Box::new(operation))),
        _ = interrupt.recv() => {}
    }
    leave(&meter, may_cancel);
    if !may_cancel {
        return Ok(Ended::Left);
    }
    tokio::select! {
        done = &mut work => return done.map(|operation| Ended::Done(Box::new(operation))),
        () = tokio::time::sleep(SECOND_PRESS) => return Ok(Ended::Left),
        _ = interrupt.recv() => {}
    }
    meter.note("cancelling");
    client.cancel(id).await?;
    match work.await {
        Ok(operation) => Ok(Ended::Done(Box::new(operation))),
        Err(error) => match client.operation(id).await {
            // It ended as the person wanted: that is no failure.
            Ok(operation) if operation.state == OperationState::Cancelled => {
                meter.note("It is cancelled.");
                Ok(Ended::Left)
            }
            _ => Err(error),
        },
    }
}

/// Runs work of this process until it is done or the process is to end: by Ctrl-C, by SIGTERM, or because the terminal is
/// gone. Then it is dropped, and what it started with it.
pub async fn or_interrupt<T>(work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
    let mut interrupted = listen(SignalKind::interrupt())?;
    let mut terminated = listen(SignalKind::terminate())?;
    let mut hung_up = listen(SignalKind::hangup())?;
    tokio::select! {
        done = work => done.map(Some),
        _ = interrupted.recv() => Ok(None),
        _ = terminated.recv() => Ok(None),
        _ = hung_up.recv() => Ok(None),
    }
}

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).or_error(ErrorKind::Internal, || "cannot hear signals".to_owned())
}

fn leave(meter: &Meter, may_cancel: bool) {
    meter.note("The host goes on with it; `collective status` shows how far it is.");
    if may_cancel {
        meter.note("Press Ctrl-C again now to cancel it.");
    }
}

fn label(operation: &Operation) -> String {
    match &operation.appliance {
        Some(appliance) => format!("{} {appliance}", operation.verb),
        None => operation.verb.clone(),
    }
}

fn step(operation: &Operation) -> Step {
    let step = Step::new(&operation.stage, operation.progress());
    Step { percent: operation.percent, ..step }
}
