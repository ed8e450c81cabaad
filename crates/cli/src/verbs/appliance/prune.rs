//! `collective appliance prune`: drops old versions, after showing which.

use clap::Args;
use collective_api::ServerClient;
use collective_api::server::{PruneReport, PruneRequest};
use collective_model::{ApplianceName, ByteCount, Result, Version};

use crate::context::Context;
use crate::text;
use crate::verbs::names;

/// Drop old versions of an appliance
///
/// Shows what would go, and asks. What no version needs any more is swept later, when no running upload or reader can still
/// want it; a prune after that frees its room.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  collective appliance prune debian --keep-last 3 --dry-run\n  \
    collective appliance prune debian --keep-last 3 --keep 1 --yes"
)]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    /// How many of the latest versions stay
    #[arg(long, value_name = "COUNT", value_parser = text::count::<u64>, allow_negative_numbers = true)]
    keep_last: u64,
    /// Another version that stays; may be given several times
    #[arg(long = "keep", value_name = "VERSION")]
    keep: Vec<Version>,
    /// Only show what would go
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub async fn run(arguments: Arguments, server: &ServerClient, context: &Context) -> Result<()> {
    let Arguments { appliance: name, keep_last, keep, dry_run, yes } = arguments;
    let mut request = PruneRequest { keep_last, keep, dry_run: true };
    if dry_run || !yes {
        let plan = server.prune_appliance(&name, &request).await?;
        if dry_run {
            context.output.say("prune_plan", &plan, || planned(&name, &plan));
            return Ok(());
        }
        context.output.note(&planned(&name, &plan));
        context.prompt.confirm("Go on?")?;
    }
    request.dry_run = false;
    let report = server.prune_appliance(&name, &request).await?;
    context.output.say("pruned", &report, || {
        format!(
            "{name}: {}; {} swept, {} freed; to be swept later: {}",
            dropped(&report.versions, "dropped"),
            text::count_of(report.swept_packs, "pack"),
            ByteCount(report.freed_bytes),
            text::count_of(report.unreachable_packs, "pack")
        )
    });
    Ok(())
}

fn planned(name: &ApplianceName, plan: &PruneReport) -> String {
    format!(
        "{name}: {}; {} can be swept now, which frees {}",
        dropped(&plan.versions, "would go"),
        text::count_of(plan.swept_packs, "pack"),
        ByteCount(plan.freed_bytes)
    )
}

fn dropped(versions: &[Version], verb: &str) -> String {
    match versions {
        [] => format!("no version {verb}"),
        [version] => format!("version {version} {verb}"),
        several => format!("versions {} {verb}", names(several)),
    }
}

#[cfg(test)]
mod tests {
    use collective_model::Version;

    use super::dropped;

    #[test]
    fn what_goes_is_named() {
        let versions: Vec<Version> = [1, 2].into_iter().filter_map(Version::new).collect();
        assert_eq!(dropped(&versions, "would go"), "versions 1, 2 would go");
        assert_eq!(dropped(&versions[..1], "would go"), "version 1 would go");
        assert_eq!(dropped(&[], "would go"), "no version would go");
    }
}
