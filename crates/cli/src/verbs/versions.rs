//! `collective versions`: the versions of an appliance and of the user disk that goes with it.

use clap::Args;
use collective_api::host::VersionStatus;
use collective_model::{ApplianceName, ByteCount, Result};
use serde::Serialize;

use crate::context::{Context, now};
use crate::table::{Column, draw, figures, words};
use crate::text;

/// List the versions of an appliance and of your user disk
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective versions debian")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
}

/// What a program reads of a version.
#[derive(Serialize)]
struct Listed<'a> {
    of: &'static str,
    #[serde(flatten)]
    version: &'a VersionStatus,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<()> {
    let versions = context.host()?.versions(&arguments.appliance).await?;
    for (of, list) in [("appliance", &versions.appliance), ("user_disk", &versions.user_disk)] {
        for version in list {
            context.output.object("version", &Listed { of, version });
        }
    }
    if !context.output.is_json() {
        let appliance = table("APPLIANCE", &versions.appliance, "no version published yet");
        let disk = table("USER DISK", &versions.user_disk, "no version of your user disk yet");
        context.output.text(&format!("{appliance}\n\n{disk}"));
    }
    Ok(())
}

fn table(heading: &'static str, versions: &[VersionStatus], empty: &str) -> String {
    let columns: [Column; 4] =
        [figures(heading), words("PUBLISHED"), figures("SIZE"), words("NOTES")];
    let now = now();
    let rows = versions
        .iter()
        .map(|version| {
            vec![
                version.version.to_string(),
                text::ago(version.time, now),
                ByteCount(version.size_bytes).to_string(),
                version.notes.clone(),
            ]
        })
        .collect();
    draw(&columns, rows, empty)
}
