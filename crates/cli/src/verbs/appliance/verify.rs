//! `collective appliance verify`: has the server check every byte of an appliance's repository.

use clap::Args;
use collective_api::ServerClient;
use collective_api::server::VerifyReport;
use collective_model::{ApplianceName, ByteCount, Error, ErrorKind, Result};

use crate::context::Context;
use crate::text;
use crate::wait;

/// Check every byte of an appliance's repository
///
/// The server reads everything that the appliance's versions reach and compares it with its hashes and signatures. It does so
/// once a month by itself, slowly; `collective appliance show` has the result of the last time. Damage
/// is named, and ends the command with code 7. Hosts never use damaged bytes, whether they were found before or not.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective appliance verify debian")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
}

pub async fn run(arguments: Arguments, server: &ServerClient, context: &Context) -> Result<u8> {
    let name = &arguments.appliance;
    let meter = context.output.meter(&format!("verify {name}"));
    meter.stage("the server reads the repository");
    let Some(report) = wait::or_interrupt(server.verify_appliance(name)).await? else {
        return Ok(wait::INTERRUPTED);
    };
    drop(meter);
    context.output.say("verified", &report, || text(name, &report));
    if report.damages.is_empty() {
        return Ok(0);
    }
    let message = match report.damages.len() as u64 + report.further_damages {
        1 => format!("an object of `{name}` is damaged"),
        several => format!("{several} objects of `{name}` are damaged"),
    };
    Err(Error::new(ErrorKind::Corrupt, message).with_hint(format!(
        "restore the server's repositories from a backup, or publish a version that stores it \
             again: `collective appliance publish {name} … --repair`"
    )))
}

fn text(name: &ApplianceName, report: &VerifyReport) -> String {
    let mut lines = vec![format!(
        "{name}: {}, {} read, {} damaged",
        text::count_of(report.objects, "object"),
        ByteCount(report.bytes),
        report.damages.len() as u64 + report.further_damages
    )];
    for damage in &report.damages {
        lines.push(format!("  {}: {}", damage.object, damage.what));
    }
    lines.join("\n")
}
