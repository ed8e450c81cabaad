//! `collective delete`: gives up a subscription with its user disk, after its name was typed.

use clap::Args;
use collective_api::host::DeleteRequest;
use collective_model::{ApplianceName, Result};

use crate::context::Context;
use crate::wait::{self, Ended};

/// Delete your user disk of an appliance, with all its backups
///
/// This cannot be undone. The appliance itself stays in the list and starts with an empty user disk next time. With
/// --local only what is on this computer goes, and the backups stay; that is refused while something is not backed
/// up. The appliance must be off.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective delete debian")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// Only forget it on this computer; the backups stay
    #[arg(long)]
    local: bool,
    /// Do not ask for the name to be typed
    #[arg(long)]
    yes: bool,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let client = context.host()?;
    let Arguments { appliance: name, local, yes } = &arguments;
    client.appliance(name).await?;
    if !yes {
        let what = if *local {
            format!("Forget the user disk of `{name}` on this computer; its backups stay?")
        } else {
            format!("Delete the user disk of `{name}` and all its backups? It cannot be undone.")
        };
        context.prompt.confirm_name(&what, name.as_str())?;
    }
    let operation = client.delete(name, &DeleteRequest { local: *local }).await?;
    match wait::finish(context, &client, operation, true).await? {
        Ended::Done(operation) => {
            context.output.say("operation", &operation, || match local {
                true => format!("the user disk of {name} is forgotten here"),
                false => format!("the user disk of {name} is deleted"),
            });
            Ok(0)
        }
        Ended::Left => Ok(wait::INTERRUPTED),
    }
}
