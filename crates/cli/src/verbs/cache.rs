//! `collective cache …`: what this computer keeps of appliances, so that it need not be fetched again.

use clap::{Args, Subcommand};
use collective_api::host::{CacheReport, CacheStatus, TrimRequest};
use collective_model::{ByteCount, Result};

use crate::context::Context;
use crate::text::Size;
use crate::wait::{self, Ended};

/// Look after what is kept on this computer so that it need not be fetched again
///
/// Nothing in the cache is the only copy of anything: what leaves it is fetched again when it is wanted.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Status(StatusArguments),
    Trim(TrimArguments),
    Verify(VerifyArguments),
}

/// Show how full the cache is and how well it answers
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective cache status")]
struct StatusArguments {}

/// Make the cache smaller; what is held stays
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective cache trim --to 5GiB")]
struct TrimArguments {
    /// What may stay
    #[arg(long, value_name = "SIZE")]
    to: Size,
}

/// Read all of the cache, and drop what the disk does not give back right
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective cache verify")]
struct VerifyArguments {}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let client = context.host()?;
    match arguments.verb {
        Verb::Status(StatusArguments {}) => say(context, &client.host().await?.cache),
        Verb::Trim(TrimArguments { to }) => {
            say(context, &client.trim_cache(&TrimRequest { to_bytes: to.0 }).await?);
        }
        Verb::Verify(VerifyArguments {}) => {
            let operation = client.verify_cache().await?;
            let Ended::Done(operation) = wait::finish(context, &client, operation, true).await?
            else {
                return Ok(wait::INTERRUPTED);
            };
            let report = operation.result.clone().and_then(|it| serde_json::from_value(it).ok());
            context.output.say("operation", &operation, || {
                report.map_or_else(|| "done".to_owned(), |report| found(&report))
            });
        }
    }
    Ok(0)
}

fn say(context: &Context, cache: &CacheStatus) {
    context.output.say("cache", cache, || {
        let asked = (cache.hits + cache.misses).max(1);
        format!(
            "{} of {} in {} frames; since the daemon started {} were fetched, and {}% of the reads \
             were answered from here",
            ByteCount(cache.used_bytes),
            ByteCount(cache.capacity_bytes),
            cache.frames,
            ByteCount(cache.fetched_bytes),
            cache.hits * 100 / asked,
        )
    });
}

fn found(report: &CacheReport) -> String {
    let read = format!("{} frames, {}", report.frames, ByteCount(report.bytes));
    match report.damaged {
        0 => format!("{read}: all right"),
        1 => format!("{read}: 1 was damaged and dropped; it is fetched again when it is wanted"),
        many => {
            format!("{read}: {many} were damaged and dropped; they are fetched again when wanted")
        }
    }
}
