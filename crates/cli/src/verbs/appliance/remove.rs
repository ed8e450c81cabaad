//! `collective appliance remove`: takes an appliance and all its versions from the server, after its name was typed.

use clap::Args;
use collective_api::ServerClient;
use collective_model::{ApplianceName, Result};
use serde::Serialize;

use crate::context::Context;

/// Remove an appliance with all its versions
///
/// This cannot be undone: nobody can start it any more. What people made on their user disks of it stays.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective appliance remove debian")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// Do not ask for the name to be typed
    #[arg(long)]
    yes: bool,
}

/// What a program reads.
#[derive(Serialize)]
struct Removed {
    appliance: ApplianceName,
}

pub async fn run(arguments: Arguments, server: &ServerClient, context: &Context) -> Result<()> {
    let Arguments { appliance, yes } = arguments;
    server.appliance(&appliance).await?;
    if !yes {
        let question = format!("Remove `{appliance}` with all its versions? It cannot be undone.");
        context.prompt.confirm_name(&question, appliance.as_str())?;
    }
    server.remove_appliance(&appliance).await?;
    let text = format!("{appliance} is removed");
    context.output.say("appliance_removed", &Removed { appliance }, || text);
    Ok(())
}
