//! `collective publish`: backs the user disk up now.

use clap::Args;
use collective_model::{ApplianceName, Result};

use crate::context::Context;
use crate::wait::{self, Ended};

/// Back the user disk of an appliance up now
///
/// This happens on its own every few minutes and at every stop; `publish` does not wait for that. The appliance may be
/// running. To publish a new version of an appliance for others, see `collective appliance publish`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective publish debian")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// Do not wait until it is backed up
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let client = context.host()?;
    let name = &arguments.appliance;
    let operation = client.publish(name).await?;
    let stay = !arguments.no_wait;
    match wait::finish(context, &client, operation, stay).await? {
        Ended::Done(operation) => {
            let status = client.appliance(name).await?;
            let version = status.user_disk.and_then(|disk| disk.version);
            context.output.say("operation", &operation, || match version {
                Some(version) => format!("the user disk of {name} is backed up: version {version}"),
                None => format!("{name} has no user disk to back up"),
            });
            Ok(0)
        }
        Ended::Left => Ok(if stay { wait::INTERRUPTED } else { 0 }),
    }
}
