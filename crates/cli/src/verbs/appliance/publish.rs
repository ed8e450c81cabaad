//! `collective appliance publish`: disks become the next version of an appliance.
//!
//! The work is `host::publisher`'s; here the disks are found, the appliance is made if it is new, and the signing key is
//! kept. Everything that can be wrong with the input is looked at before the server is changed.

mod images;
mod key;

use std::path::PathBuf;

use clap::Args;
use collective_api::ServerClient;
use collective_api::server::{Appliance, CreateAppliance};
use collective_host::publisher::{self, PublishOptions, Report, Watch};
use collective_model::{
    ApplianceName, ByteCount, Digest, ErrorKind, IoResultExt as _, RepositoryId, Result,
    ResultExt as _, Version,
};
use collective_repository::backend::ObjectName;
use collective_repository::{Descriptor, Kind, SigningKey};
use serde::Serialize;

use super::show;
use crate::context::Context;
use crate::progress::Meter;
use crate::wait;

/// Publish a new version of an appliance
///
/// Takes what `collective appliance build` made, or any disk image: raw, qcow2, vmdk or vdi. The version is started once,
/// unattended, to record in which order a start reads the disk; if it does not come up, nothing is published. Only
/// what changed since the version before is sent and stored. The first publication makes the appliance and its
/// signing key; only who has the key can publish the next.
///
/// To back up the user disk of an appliance that you use, see `collective publish`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  collective appliance publish debian --built /tmp/debian\n  \
    collective appliance publish office office.qcow2 --memory 4GiB\n  \
    collective appliance publish office office.qcow2 --also-run 'libreoffice --version'")]
pub struct Arguments {
    /// Which appliance; a new one is made
    appliance: ApplianceName,
    #[command(flatten)]
    images: images::ImageArguments,
    /// What is new, in a line
    #[arg(long, value_name = "TEXT", default_value = "")]
    notes: String,
    /// Directory of the signing keys
    #[arg(long, value_name = "DIR", env = "COLLECTIVE_KEYS", hide_env_values = true)]
    keys: Option<PathBuf>,
    /// Do not start it once before; the starts of others will be slower
    #[arg(long)]
    no_record: bool,
    /// Have that start run this command as well, an application that many will open, so that its first start is fast too; may
    /// be given several times
    #[arg(long = "also-run", value_name = "COMMAND", conflicts_with = "no_record")]
    applications: Vec<String>,
    /// Publish it although that start failed
    #[arg(long, conflicts_with = "no_record")]
    even_if_it_fails: bool,
    /// Have the server look for damage first, and store again what it finds damaged
    #[arg(long)]
    repair: bool,
    /// Directory for throwaway files; as much room as a converted image takes
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    work_dir: PathBuf,
}

/// What a program reads.
#[derive(Debug, Serialize)]
struct Published {
    appliance: ApplianceName,
    version: Version,
    read_bytes: u64,
    changed_bytes: u64,
    stored_bytes: u64,
    reused_bytes: u64,
    trimmed_bytes: u64,
    packs: u64,
    /// Seconds of the recorded start; null if there was none, or it failed.
    boot_seconds: Option<f64>,
    /// Bytes of the system disk that it read, applications included; null if there was none, or it failed.
    recorded_bytes: Option<u64>,
}

pub async fn run(arguments: Arguments, server: &ServerClient, context: &Context) -> Result<u8> {
    let name = arguments.appliance.clone();
    let watch = Shown(context.output.meter(&format!("publish {name}")));
    let Some(report) = publish(&arguments, server, context, &watch).await? else {
        watch.0.note("Stopped; nothing was published.");
        return Ok(wait::INTERRUPTED);
    };
    drop(watch);
    if let Some(error) = &report.failed_start {
        context.output.note(&format!("warning: the start before failed: {}", error.chain()));
    }
    let published = Published::of(&name, &report);
    context.output.say("published", &published, || published.text());
    Ok(0)
}

async fn publish(
    arguments: &Arguments,
    server: &ServerClient,
    context: &Context,
    watch: &Shown,
) -> Result<Option<Report>> {
    let cannot = || format!("cannot make a directory in `{}`", arguments.work_dir.display());
    let work = tempfile::Builder::new()
        .prefix("collective-")
        .tempdir_in(&arguments.work_dir)
        .or_io(cannot)?;
    watch.stage("looking at the images");
    let Some(images) = wait::or_interrupt(arguments.images.read(work.path())).await? else {
        return Ok(None);
    };
    let keys = arguments.keys.clone().unwrap_or_else(|| context.directories.keys.clone());
    let (appliance, signer, is_new) = appliance(&arguments.appliance, &keys, server).await?;
    let mut options = PublishOptions {
        notes: arguments.notes.clone(),
        rehearse: !arguments.no_record,
        applications: arguments.applications.clone(),
        even_if_it_fails: arguments.even_if_it_fails,
        ..PublishOptions::new(work.path().to_owned())
    };
    let unfinished = keys.join(format!("unfinished-{}", appliance.repository.id));
    let work = async {
        if arguments.repair && !is_new {
            watch.stage("the server looks for damage");
            options.distrusted = damaged_packs(server, &arguments.appliance).await?;
        }
        if let Some(head) = appliance.head {
            // Without the counts it is packed as it always was.
            let counts = server.popularity(appliance.repository.id, head).await;
            options.popularity = counts.ok().flatten();
        }
        let repository = show::open(server, &appliance).await?;
        repository.note_unfinished_in(unfinished.clone());
        publisher::publish(&repository, &signer, &images, &options, watch).await
    };
    let published = wait::or_interrupt(work).await;
    if matches!(published, Ok(Some(_))) {
        return published;
    }
    if unfinished.exists() {
        watch.0.note("What arrived stays for half a day: publish again to go on from there.");
    } else if is_new {
        // What failed shall have changed nothing; if this fails too, an appliance without versions stays, which the next
        // publication uses.
        let _ = server.remove_appliance(&arguments.appliance).await;
    }
    published
}

/// The packs that the server finds damaged.
async fn damaged_packs(server: &ServerClient, name: &ApplianceName) -> Result<Vec<Digest>> {
    let damages = server.verify_appliance(name).await?.damages;
    let packs = damages.iter().filter_map(|damage| match damage.object.parse() {
        Ok(ObjectName::Pack(pack)) => Some(pack),
        _ => None,
    });
    Ok(packs.collect())
}

/// Finds the appliance and the key that signs it, or makes both; tells whether it is new.
async fn appliance(
    name: &ApplianceName,
    keys: &std::path::Path,
    server: &ServerClient,
) -> Result<(Appliance, SigningKey, bool)> {
    match server.appliance(name).await {
        Ok(appliance) => {
            let signer = key::load(keys, name, appliance.repository.publisher)?;
            Ok((appliance, signer, false))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let signer = key::load_or_create(keys, name)?;
            let mut id = [0; 16];
            getrandom::fill(&mut id)
                .or_error(ErrorKind::Internal, || "cannot draw a repository's id".to_owned())?;
            let repository =
                Descriptor::public(RepositoryId(id), Kind::Appliance, signer.publisher());
            let request = CreateAppliance { name: name.clone(), repository };
            Ok((server.create_appliance(&request).await?, signer, true))
        }
        Err(error) => Err(error),
    }
}

impl Published {
    fn of(name: &ApplianceName, report: &Report) -> Self {
        let stats = &report.published.stats;
        Self {
            appliance: name.clone(),
            version: report.published.version,
            read_bytes: stats.read_bytes,
            changed_bytes: stats.changed_bytes,
            stored_bytes: stats.stored_bytes,
            reused_bytes: stats.reused_bytes,
            trimmed_bytes: report.trimmed_bytes,
            packs: stats.packs,
            boot_seconds: report.rehearsal.as_ref().map(|rehearsal| rehearsal.boot_seconds),
            recorded_bytes: report.rehearsal.as_ref().map(|rehearsal| {
                rehearsal.trace.ranges.iter().map(|range| range.length_bytes()).sum()
            }),
        }
    }

    fn text(&self) -> String {
        format!(
            "{} {} is published: {} read, {} changed, {} stored",
            self.appliance,
            self.version,
            ByteCount(self.read_bytes),
            ByteCount(self.changed_bytes),
            ByteCount(self.stored_bytes)
        )
    }
}

/// Shows the publisher's stages on a meter.
struct Shown(Meter);

impl collective_model::Monitor for Shown {
    fn progress(&self, progress: collective_model::Progress) {
        self.0.progress(progress);
    }
}

impl Watch for Shown {
    fn stage(&self, stage: &str) {
        self.0.stage(stage);
    }
}
