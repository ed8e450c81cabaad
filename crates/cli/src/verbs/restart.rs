//! `collective restart`: a stop and a start, as two operations of the host.

use clap::Args;
use collective_api::host::{StartRequest, StopRequest};
use collective_model::{ApplianceName, Result};

use crate::context::Context;
use crate::verbs::start;
use crate::wait::{self, Ended};

/// Shut an appliance down and start its latest version
///
/// The system disk is fresh afterwards, as at every start. With --force this is the reset button of a real computer:
/// the power goes off and on, and what the guest had not written to its disks is lost.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective restart debian")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// Pull the power cord instead of asking the guest to shut down
    #[arg(long)]
    force: bool,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let client = context.host()?;
    let name = &arguments.appliance;
    let operation = client.stop(name, &StopRequest { force: arguments.force }).await?;
    if matches!(wait::finish(context, &client, operation, true).await?, Ended::Left) {
        context.output.note(&format!("It will not be started again: `collective start {name}`."));
        return Ok(wait::INTERRUPTED);
    }
    let operation = client.start(name, &StartRequest::default()).await?;
    match wait::finish(context, &client, operation, true).await? {
        Ended::Done(operation) => {
            start::say(context, name, &operation);
            Ok(0)
        }
        Ended::Left => Ok(wait::INTERRUPTED),
    }
}
