//! `collective start`: asks the host to run an appliance, and waits until it does.

use clap::Args;
use collective_api::host::{Operation, StartRequest, StartResult};
use collective_model::{ApplianceName, ByteCount, Result, Version};

use crate::context::Context;
use crate::text;
use crate::wait::{self, Ended};

/// Start an appliance
///
/// Its system disk is the latest published version, paged in as the guest reads it; nothing needs to be installed. The
/// user disk is as you left it, on whichever computer that was. Changes to the system disk last until the next
/// start; what is on the user disk is kept and backed up.
///
/// Only one computer at a time may hold a user disk. If another one does, the message says which and since when.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective start debian")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// Start this version instead of the latest
    #[arg(long, value_name = "VERSION")]
    version: Option<Version>,
    /// Take the user disk from the computer that holds it; what it has not backed up stays there, aside
    #[arg(long)]
    break_lock: bool,
    /// Do not wait until it runs
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let client = context.host()?;
    let request = StartRequest { version: arguments.version, break_lock: arguments.break_lock };
    let operation = client.start(&arguments.appliance, &request).await?;
    let stay = !arguments.no_wait;
    match wait::finish(context, &client, operation, stay).await? {
        Ended::Done(operation) => {
            say(context, &arguments.appliance, &operation);
            Ok(0)
        }
        Ended::Left => Ok(if stay { wait::INTERRUPTED } else { 0 }),
    }
}

/// Says that an appliance runs, and what that took.
pub fn say(context: &Context, appliance: &ApplianceName, operation: &Operation) {
    let result = operation.result.clone().and_then(|value| serde_json::from_value(value).ok());
    context.output.say("operation", operation, || match result {
        Some(result) => sentence(appliance, &result),
        None => format!("{appliance} is running"),
    });
}

fn sentence(appliance: &ApplianceName, result: &StartResult) -> String {
    if result.ran_already {
        return format!("{appliance} {} runs already", result.version);
    }
    let boot = result.boot_seconds.map_or_else(String::new, |seconds| {
        let took = std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default();
        format!(" after {}", text::duration(took))
    });
    let fetched = match result.fetched_bytes {
        0 => "nothing had to be fetched".to_owned(),
        bytes => {
            let share = text::percent(result.fetched_share);
            format!("{} ({share} of its disk) were fetched", ByteCount(bytes))
        }
    };
    format!("{appliance} {} is running{boot}; {fetched}", result.version)
}

#[cfg(test)]
mod tests {
    use collective_api::host::StartResult;
    use collective_model::Version;

    use super::sentence;

    #[test]
    fn a_start_says_version_time_and_what_was_fetched() {
        let cold = StartResult {
            version: Version::FIRST,
            ran_already: false,
            boot_seconds: Some(24.3),
            fetched_share: 0.061,
            fetched_bytes: 38_000_000,
        };
        let debian = "debian".parse().unwrap();
        assert_eq!(
            sentence(&debian, &cold),
            "debian 1 is running after 24 s; 38.0 MB (6.1% of its disk) were fetched"
        );
        let warm = StartResult { fetched_share: 0.0, fetched_bytes: 0, ..cold };
        assert_eq!(
            sentence(&debian, &warm),
            "debian 1 is running after 24 s; nothing had to be fetched"
        );
        let again = StartResult { ran_already: true, ..cold };
        assert_eq!(sentence(&debian, &again), "debian 1 runs already");
    }
}
