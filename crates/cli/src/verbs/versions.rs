//! `collective versions`: the versions of an appliance and of the user disk that goes with it.

use clap::Args;
use collective_api::host::{Stay, VersionStatus};
use collective_model::{ApplianceName, ByteCount, Result};
use serde::Serialize;

use crate::context::{Context, now};
use crate::table::{Column, draw, figures, words};
use crate::text;

/// List the versions of an appliance and of your user disk
///
/// The server thins out old versions of user disks, by a rule that its administrators set; STAYS says why a version is kept,
/// or that it goes when the disk is pruned next. What an undo goes back to, and what one replaced, always stays.
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
    // Where nothing is ever pruned, there is nothing to say about it.
    let with_stays = versions.iter().any(|version| version.stays.is_some());
    let stays = with_stays.then(|| words("STAYS"));
    let columns: Vec<Column> = [figures(heading), words("PUBLISHED"), figures("SIZE")]
        .into_iter()
        .chain(stays)
        .chain([words("NOTES")])
        .collect();
    let now = now();
    let row = |version: &VersionStatus| {
        let stays = with_stays.then(|| version.stays.map_or_else(String::new, stays_as));
        [
            version.version.to_string(),
            text::ago(version.time, now),
            ByteCount(version.size_bytes).to_string(),
        ]
        .into_iter()
        .chain(stays)
        .chain([version.notes.clone()])
        .collect()
    };
    draw(&columns, versions.iter().map(row).collect(), empty)
}

fn stays_as(stay: Stay) -> String {
    match stay {
        Stay::Kept(why) => why.to_string(),
        Stay::UntilPruned => "until pruned".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use collective_api::host::{Stay, VersionStatus};
    use collective_model::{Timestamp, Version};
    use collective_repository::retention::Reason;

    use super::table;

    #[test]
    fn what_stays_is_shown_where_something_goes_some_day() {
        let version = |number, stays| VersionStatus {
            version: Version::new(number).unwrap(),
            time: Timestamp(0),
            size_bytes: 0,
            notes: "a note".to_owned(),
            stays,
        };
        let kept = version(2, Some(Stay::Kept(Reason::Daily)));
        let shown = table("USER DISK", &[kept, version(1, Some(Stay::UntilPruned))], "");
        assert!(shown.contains("of its day") && shown.contains("until pruned"), "{shown}");
        assert!(!table("USER DISK", &[version(1, None)], "").contains("STAYS"));
    }
}
