//! `collective stop`: asks the host to shut an appliance down, and says whether it is safe to leave.

use std::time::Duration;

use clap::Args;
use collective_api::HostClient;
use collective_api::host::{Operation, StopRequest};
use collective_model::{ApplianceName, ByteCount, Result};

use crate::context::Context;
use crate::progress::{Meter, Step};
use crate::wait::{self, Ended};

/// How long the last backup is waited for: what a person does who wants to leave. It goes on after that.
const BACKUP_LIMIT: Duration = Duration::from_secs(10);

/// How often the host is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Shut an appliance down
///
/// Asks the guest to shut down, as its own power button would, and waits; then backs up what is left of the user disk,
/// and waits for that up to ten seconds.
/// With --force the power cord is pulled instead: what the guest had not written to its disks is lost.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective stop debian && collective status debian --wait")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// Pull the power cord
    #[arg(long)]
    force: bool,
    /// Do not wait until it is off
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let client = context.host()?;
    let request = StopRequest { force: arguments.force };
    let operation = client.stop(&arguments.appliance, &request).await?;
    let stay = !arguments.no_wait;
    match wait::finish(context, &client, operation, stay).await? {
        Ended::Done(operation) => {
            say(context, &client, &arguments.appliance, &operation).await;
            Ok(0)
        }
        Ended::Left => Ok(if stay { wait::INTERRUPTED } else { 0 }),
    }
}

/// Waits for the last backup, as long as that is worth it, and says whether all is backed up. The appliance may be gone
/// from the list by now: then nothing can be left.
async fn say(
    context: &Context,
    client: &HostClient,
    appliance: &ApplianceName,
    operation: &Operation,
) {
    let meter = context.output.meter(&format!("backing up {appliance}"));
    let waited = tokio::time::timeout(BACKUP_LIMIT, last_backup(client, appliance, &meter));
    // Who presses Ctrl-C, or waited long enough, is told how it stands.
    let _ = wait::or_interrupt(async { Ok(waited.await) }).await;
    drop(meter);
    let status = client.appliance(appliance).await.ok();
    let disk = status.and_then(|status| status.user_disk);
    context.output.say("operation", operation, || match disk {
        None => format!("{appliance} is off"),
        Some(disk) if disk.backlog_bytes == 0 => {
            format!("{appliance} is off; everything is backed up")
        }
        Some(disk) => {
            let why = disk.problem.map_or_else(String::new, |problem| format!(": {problem}"));
            format!(
                "{appliance} is off; {} are still to be backed up{why} \
                 (`collective status {appliance} --wait` waits for it)",
                ByteCount(disk.backlog_bytes)
            )
        }
    });
}

/// Waits until nothing is left to back up, or until waiting is no use: the server cannot be reached, or the last backup
/// failed, as it does for good when the lock is lost.
async fn last_backup(client: &HostClient, appliance: &ApplianceName, meter: &Meter) {
    let mut most = 0;
    while let (Ok(status), Ok(host)) = (client.appliance(appliance).await, client.host().await) {
        let Some(disk) = status.user_disk else { return };
        let reachable = host.server.is_some_and(|server| server.reachable);
        let left = disk.backlog_bytes;
        if left == 0 || disk.problem.is_some() || !reachable {
            return;
        }
        most = most.max(left);
        meter.step(&Step {
            stage: format!("{} left", ByteCount(left)),
            done_bytes: most - left,
            total_bytes: Some(most),
            ..Step::default()
        });
        tokio::time::sleep(ASK_EVERY).await;
    }
}
