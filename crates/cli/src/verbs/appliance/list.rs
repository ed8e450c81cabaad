//! `collective appliance list`: all appliances of the server, as administrators see them.

use clap::Args;
use collective_api::ServerClient;
use collective_api::server::Appliance;
use collective_model::{ByteCount, Result};

use super::check;
use crate::context::{Context, now};
use crate::table::{draw, figures, words};
use crate::verbs::names;

/// List all appliances of the server
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective appliance list")]
pub struct Arguments {}

pub async fn run(Arguments {}: Arguments, server: &ServerClient, context: &Context) -> Result<()> {
    let appliances = server.appliances().await?;
    for appliance in &appliances {
        context.output.object("server_appliance", appliance);
    }
    if !context.output.is_json() {
        context.output.text(&table(&appliances));
    }
    Ok(())
}

fn table(appliances: &[Appliance]) -> String {
    let now = now();
    let rows = appliances
        .iter()
        .map(|appliance| {
            vec![
                appliance.name.to_string(),
                appliance.head.map_or_else(|| "-".to_owned(), |head| head.to_string()),
                ByteCount(appliance.stored_bytes).to_string(),
                check::cell(&appliance.check, now),
                names(&appliance.groups),
            ]
        })
        .collect();
    let columns = [
        words("APPLIANCE"),
        figures("VERSION"),
        figures("STORED"),
        words("CHECKED"),
        words("GROUPS"),
    ];
    draw(&columns, rows, "no appliance yet: `collective appliance publish NAME`")
}
