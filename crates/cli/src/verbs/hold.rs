//! `collective hold`: keeps an appliance on this computer whole, so that it runs without the server.

use clap::Args;
use collective_api::host::{Held, HoldRequest};
use collective_model::{ApplianceName, Result, Version};

use crate::context::Context;
use crate::wait::{self, Ended};

/// Keep an appliance on this computer whole, so that it runs without the server
///
/// Fetches all of its system disk and of your user disk, behind everything else, and keeps them in the cache; then it
/// follows what is published. Interrupting this loses nothing: it goes on in the background, also after a restart.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  collective hold debian\n  collective hold debian --release")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// Keep this version instead of the latest
    #[arg(long, value_name = "VERSION", conflicts_with = "release")]
    version: Option<Version>,
    /// Keep it no longer than the cache has room
    #[arg(long)]
    release: bool,
    /// Do not wait until it is here
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let client = context.host()?;
    let name = &arguments.appliance;
    if arguments.release {
        client.release(name).await?;
        context.output.say("released", &serde_json::json!({ "appliance": name }), || {
            format!("{name} stays in the cache only as long as there is room")
        });
        return Ok(0);
    }
    let operation = client.hold(name, &HoldRequest { version: arguments.version }).await?;
    let stay = !arguments.no_wait;
    match wait::finish(context, &client, operation, stay).await? {
        Ended::Done(operation) => {
            let held =
                operation.result.clone().and_then(|value| serde_json::from_value(value).ok());
            let version = held.and_then(|held: Held| held.complete);
            context.output.say("operation", &operation, || match version {
                Some(version) => {
                    format!("version {version} of {name} is here whole: it runs without the server")
                }
                None => format!("{name} is here whole: it runs without the server"),
            });
            Ok(0)
        }
        Ended::Left => Ok(if stay { wait::INTERRUPTED } else { 0 }),
    }
}
