//! `collective appliance show`: one appliance and its versions, read from their signed manifests.

use std::sync::Arc;

use clap::Args;
use collective_api::ServerClient;
use collective_api::server::{Appliance, VersionReads};
use collective_model::{
    ApplianceName, ByteCount, DiskRole, Epoch, Hardware, Result, Timestamp, Version,
};
use collective_repository::backend::Http;
use collective_repository::{Manifest, Repository, Trust};
use serde::Serialize;

use super::check;
use crate::context::{Context, now};
use crate::table::{draw, figures, words};
use crate::text;
use crate::verbs::names;
use crate::verbs::retention::said;

/// Show one appliance and its versions
///
/// FORETOLD says which part of what starts of a version read was in its boot trace, as computers report.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  collective appliance show debian\n  \
    collective appliance show debian --version 2")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// Only this version, in more detail
    #[arg(long, value_name = "VERSION")]
    version: Option<Version>,
}

/// What a program reads of a version.
#[derive(Debug, Serialize)]
struct Shown {
    version: Version,
    time: Timestamp,
    notes: String,
    hardware: Option<Hardware>,
    disks: Vec<Disk>,
    /// How well its boot trace foretells starts, as hosts report; null before the first did.
    reads: Option<VersionReads>,
}

#[derive(Debug, Serialize)]
struct Disk {
    role: DiskRole,
    size_bytes: u64,
    has_trace: bool,
}

pub async fn run(arguments: Arguments, server: &ServerClient, context: &Context) -> Result<()> {
    let appliance = server.appliance(&arguments.appliance).await?;
    let repository = open(server, &appliance).await?;
    let versions = match arguments.version {
        Some(version) => vec![version],
        None => repository.versions().await?,
    };
    let mut shown = Vec::new();
    for version in versions {
        shown.push(Shown::of(repository.version(version).await?.manifest(), &appliance.reads));
    }
    if arguments.version.is_none() {
        context.output.object("server_appliance", &appliance);
    }
    for version in &shown {
        context.output.object("appliance_version", version);
    }
    if !context.output.is_json() {
        context.output.text(&match (&arguments.version, shown.as_slice()) {
            (Some(_), [version]) => version.detail(&appliance.name),
            _ => overview(&appliance, &shown),
        });
    }
    Ok(())
}

/// Opens the appliance's repository; the server's word is the trust.
pub async fn open(server: &ServerClient, appliance: &Appliance) -> Result<Repository> {
    let descriptor = &appliance.repository;
    let url = server.repository_url(descriptor.id);
    let backend = Http::new(server.http().clone(), &url, Epoch::default());
    let trust = Trust { id: descriptor.id, publisher: descriptor.publisher, secret: None };
    Repository::open(Arc::new(backend), trust).await
}

impl Shown {
    fn of(manifest: &Manifest, reads: &[VersionReads]) -> Self {
        let disks = manifest
            .disks
            .iter()
            .map(|disk| Disk {
                role: disk.role,
                size_bytes: disk.size_bytes,
                has_trace: disk.trace.is_some(),
            })
            .collect();
        Self {
            version: manifest.version,
            time: manifest.time,
            notes: manifest.notes.clone(),
            hardware: manifest.hardware.clone(),
            disks,
            reads: reads.iter().find(|reads| reads.version == manifest.version).copied(),
        }
    }

    fn detail(&self, appliance: &ApplianceName) -> String {
        let mut lines = vec![format!("{appliance} {}, published {}", self.version, self.time)];
        if let Some(hardware) = &self.hardware {
            lines.push(format!(
                "  machine    {}, {} MiB of memory, {}",
                text::count_of(hardware.processors.into(), "processor"),
                hardware.memory_mib,
                if hardware.network { "a network card" } else { "no network" }
            ));
        }
        for disk in &self.disks {
            let trace = if disk.has_trace { ", with a boot trace" } else { "" };
            let size = ByteCount(disk.size_bytes);
            lines.push(format!("  {:<11}{size}{trace}", disk.role.name()));
        }
        if let Some(reads) = &self.reads {
            lines.push(format!("  foretold   {}", foretold(reads)));
        }
        if !self.notes.is_empty() {
            lines.push(format!("  notes      {}", text::plain(&self.notes)));
        }
        lines.join("\n")
    }
}

/// Says how well a boot trace foretold what starts read.
fn foretold(reads: &VersionReads) -> String {
    let part = text::part_of(reads.foretold_bytes, reads.read_bytes);
    format!("{part} of {}", text::count_of(reads.starts, "start"))
}

fn overview(appliance: &Appliance, versions: &[Shown]) -> String {
    let groups = match names(&appliance.groups) {
        names if names.is_empty() => "nobody yet: `collective grant add`".to_owned(),
        names => names,
    };
    let now = now();
    let head = format!(
        "{}\n  repository {}\n  stored     {}\n  checked    {}\n  keeps      {}\n  granted to {groups}\n",
        appliance.name,
        appliance.repository.id,
        ByteCount(appliance.stored_bytes),
        check::lines(&appliance.check, now).join("\n  "),
        said(appliance.retention.as_ref())
    );
    let rows = versions
        .iter()
        .map(|version| {
            let size = version.disks.iter().map(|disk| disk.size_bytes).sum();
            vec![
                version.version.to_string(),
                text::ago(version.time, now),
                ByteCount(size).to_string(),
                version.reads.as_ref().map_or_else(|| "-".to_owned(), foretold),
                version.notes.clone(),
            ]
        })
        .collect();
    let columns = [
        figures("VERSION"),
        words("PUBLISHED"),
        figures("DISKS"),
        words("FORETOLD"),
        words("NOTES"),
    ];
    format!("{head}\n{}", draw(&columns, rows, "no version published yet"))
}
