//! `collective stop`: asks the host to shut an appliance down, and says whether it is safe to leave.

use clap::Args;
use collective_api::HostClient;
use collective_api::host::{Operation, StopRequest};
use collective_model::{ApplianceName, ByteCount, Result};

use crate::context::Context;
use crate::wait::{self, Ended};

/// Shut an appliance down
///
/// Asks the guest to shut down, as its own power button would, and waits; then backs up what is left of the user disk.
/// With --force the power cord is pulled instead: what the guest had not written to its disks is lost.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective stop debian && collective status debian --wait")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// Pull the power cord
    #[arg(long)]
    force: bool,
    /// Do not wait until it is off
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let client = context.host()?;
    let request = StopRequest { force: arguments.force };
    let operation = client.stop(&arguments.appliance, &request).await?;
    let stay = !arguments.no_wait;
    match wait::finish(context, &client, operation, stay).await? {
        Ended::Done(operation) => {
            say(context, &client, &arguments.appliance, &operation).await;
            Ok(0)
        }
        Ended::Left => Ok(if stay { wait::INTERRUPTED } else { 0 }),
    }
}

/// Says that an appliance is off, and what is left to back up. The appliance may be gone from the list by now: then
/// nothing can be left.
async fn say(
    context: &Context,
    client: &HostClient,
    appliance: &ApplianceName,
    operation: &Operation,
) {
    let status = client.appliance(appliance).await.ok();
    let disk = status.and_then(|status| status.user_disk);
    context.output.say("operation", operation, || match disk {
        None => format!("{appliance} is off"),
        Some(disk) if disk.backlog_bytes == 0 => {
            format!("{appliance} is off; everything is backed up")
        }
        Some(disk) => format!(
            "{appliance} is off; {} are still to be backed up \
             (`collective status {appliance} --wait` waits for it)",
            ByteCount(disk.backlog_bytes)
        ),
    });
}
