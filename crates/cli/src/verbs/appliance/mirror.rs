//! `collective appliance mirror`: an appliance's versions into a directory that a web server shows to hosts.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use collective_api::ServerClient;
use collective_model::{ApplianceName, ByteCount, Result, Version};
use collective_repository::Repository;
use collective_repository::backend::{Backend, Directory};
use serde::Serialize;

use super::show;
use crate::context::Context;
use crate::progress::Meter;
use crate::verbs::names;
use crate::wait;

/// Copy an appliance into a directory that a web server shows to hosts
///
/// Brings every version that is not there yet into DIRECTORY/ID, where ID is the appliance's repository; what is there is not sent
/// again, and what was interrupted goes on. Hosts that run with `--mirror` and the URL of DIRECTORY fetch from there. The
/// mirror need not be trusted: hosts check all that they get.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  collective appliance mirror debian /srv/www/appliances\n  \
    collective host --mirror http://mirror.school.example/appliances")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// Where to; several appliances may share it
    directory: PathBuf,
}

/// What was copied, for people and programs.
#[derive(Debug, Serialize)]
struct Mirrored {
    appliance: String,
    directory: PathBuf,
    versions: Vec<Version>,
    copied_bytes: u64,
}

pub async fn run(arguments: Arguments, server: &ServerClient, context: &Context) -> Result<u8> {
    let meter = context.output.meter(&format!("mirror {}", arguments.appliance));
    let Some(mirrored) = wait::or_interrupt(mirror(&arguments, server, &meter)).await? else {
        meter.note("Stopped; the same command goes on from here.");
        return Ok(wait::INTERRUPTED);
    };
    drop(meter);
    context.output.say("mirrored", &mirrored, || text(&mirrored));
    Ok(0)
}

async fn mirror(arguments: &Arguments, server: &ServerClient, meter: &Meter) -> Result<Mirrored> {
    let from = show::open(server, &server.appliance(&arguments.appliance).await?).await?;
    let directory = arguments.directory.join(from.descriptor().id.to_string());
    let to = Arc::new(Directory::create_shown(&directory)?);
    // Two at once would put an older head in the place of a newer one.
    let _only = to.exclusive().await?;
    Repository::create(to.clone(), from.descriptor().clone(), None).await?;
    let versions = from.versions_missing(&*to).await?;
    let mut copied_bytes = 0;
    for version in &versions {
        meter.stage(&format!("version {version}"));
        copied_bytes += from.mirror_version(*version, &*to, meter).await?.copied_bytes;
    }
    let appliance = arguments.appliance.to_string();
    Ok(Mirrored { appliance, directory, versions, copied_bytes })
}

fn text(mirrored: &Mirrored) -> String {
    let (appliance, directory) = (&mirrored.appliance, mirrored.directory.display());
    if mirrored.versions.is_empty() {
        return format!("{appliance}: {directory} has every version already");
    }
    let (versions, copied) = (names(&mirrored.versions), ByteCount(mirrored.copied_bytes));
    format!("{appliance} {versions} is in {directory}: {copied} copied")
}
