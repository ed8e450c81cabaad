//! `collective reset`: drops what is kept on this computer only, and keeps the user disk.

use clap::Args;
use collective_model::{ApplianceName, Result};

use crate::context::Context;
use crate::wait::{self, Ended};

/// Drop an appliance's ephemeral disk and system changes; keep the user disk
///
/// This is not a power reset: the hardware button is `collective restart --force`. A reset gives the appliance a fresh
/// ephemeral disk and a fresh system disk at its next start. The user disk and its backups stay as they are. The
/// appliance must be off.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective stop debian && collective reset debian")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let client = context.host()?;
    let name = &arguments.appliance;
    let operation = client.reset(name).await?;
    match wait::finish(context, &client, operation, true).await? {
        Ended::Done(operation) => {
            context.output.say("operation", &operation, || {
                format!("{name} starts fresh next time; its user disk is as it was")
            });
            Ok(0)
        }
        Ended::Left => Ok(wait::INTERRUPTED),
    }
}
