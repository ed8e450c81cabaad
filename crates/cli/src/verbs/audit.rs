//! `collective audit`: who changed what on the server.

use clap::Args;
use collective_model::Result;

use crate::context::{Context, ServerArguments, now};
use crate::table::{draw, words};
use crate::text;

/// Show who changed what on the server
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective audit")]
pub struct Arguments {
    #[command(flatten)]
    server: ServerArguments,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<()> {
    let entries = context.server(&arguments.server)?.audit().await?;
    for entry in &entries {
        context.output.object("audit", entry);
    }
    if !context.output.is_json() {
        let now = now();
        let rows = entries
            .iter()
            .map(|entry| vec![text::ago(entry.time, now), entry.who.clone(), entry.what.clone()])
            .collect();
        let columns = [words("WHEN"), words("WHO"), words("WHAT")];
        context.output.text(&draw(&columns, rows, "nothing was changed yet"));
    }
    Ok(())
}
