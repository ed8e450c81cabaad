//! `collective grant …`: which group may start which appliance.

use clap::{Args, Subcommand};
use collective_api::server::Grant;
use collective_model::{ApplianceName, GroupName, Result};

use crate::context::{Context, ServerArguments};
use crate::table::{draw, words};

/// Say which group may start which appliance
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    server: ServerArguments,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Add(AddArguments),
    List(ListArguments),
    Remove(RemoveArguments),
}

/// Let a group start an appliance
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective grant add debian office")]
struct AddArguments {
    /// Which appliance
    appliance: ApplianceName,
    /// Who may start it
    group: GroupName,
}

/// List what is granted
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective grant list")]
struct ListArguments {}

/// Take the right to start an appliance from a group; what runs goes on
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective grant remove debian office")]
struct RemoveArguments {
    /// Which appliance
    appliance: ApplianceName,
    /// Who may start it no longer
    group: GroupName,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<()> {
    let server = context.server(&arguments.server)?;
    match arguments.verb {
        Verb::Add(AddArguments { appliance, group }) => {
            server.grant(&appliance, &group).await?;
            let text = format!("group {group} may start {appliance}");
            context.output.say("grant", &Grant { appliance, group }, || text);
        }
        Verb::List(ListArguments {}) => {
            let grants = server.grants().await?;
            for grant in &grants {
                context.output.object("grant", grant);
            }
            if !context.output.is_json() {
                let rows = grants
                    .iter()
                    .map(|grant| vec![grant.appliance.to_string(), grant.group.to_string()])
                    .collect();
                let columns = [words("APPLIANCE"), words("GROUP")];
                context.output.text(&draw(&columns, rows, "nothing is granted yet"));
            }
        }
        Verb::Remove(RemoveArguments { appliance, group }) => {
            server.revoke(&appliance, &group).await?;
            let text = format!("group {group} may no longer start {appliance}");
            context.output.say("grant_removed", &Grant { appliance, group }, || text);
        }
    }
    Ok(())
}
