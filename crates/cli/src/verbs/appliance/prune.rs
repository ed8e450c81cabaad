//! `collective appliance prune`: drops old versions, after showing which.

use clap::Args;
use collective_api::ServerClient;
use collective_api::server::{PruneReport, PruneRequest};
use collective_model::{ApplianceName, ByteCount, Result, Version};

use crate::context::Context;
use crate::text;
use crate::verbs::names;
use crate::verbs::retention::RetentionArguments;

/// Drop old versions of an appliance
///
/// Shows which versions would go and why the others stay, and asks. Without a rule, that of `collective appliance retention`
/// counts. What no version needs any more is swept later, when no running upload or reader can still
/// want it; a prune after that frees its room.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  collective appliance prune debian --keep-last 3 --dry-run\n  \
    collective appliance prune debian --keep-last 3 --keep 1 --yes\n  \
    collective appliance prune debian --keep-within 30d --keep-monthly 12"
)]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    #[command(flatten)]
    retention: RetentionArguments,
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
    let Arguments { appliance: name, retention, keep, dry_run, yes } = arguments;
    let mut request = PruneRequest { rule: retention.rule(), keep, dry_run: true };
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

/// Says what would go, and why the rest would stay.
pub fn planned(name: &ApplianceName, plan: &PruneReport) -> String {
    let first = format!(
        "{name}: {}; {} can be swept now, which frees {}",
        dropped(&plan.versions, "would go"),
        text::count_of(plan.swept_packs, "pack"),
        ByteCount(plan.freed_bytes)
    );
    let kept = plan.kept.iter().map(|kept| format!("{} ({})", kept.version, kept.reason));
    format!("{first}\n  stays: {}", names(&kept.collect::<Vec<_>>()))
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
    use collective_api::server::{KeptVersion, PruneReport};
    use collective_model::Version;
    use collective_repository::retention::Reason;

    use super::{dropped, planned};

    #[test]
    fn a_preview_says_why_versions_stay() {
        let version = |number| Version::new(number).unwrap();
        let kept = |number, reason| KeptVersion { version: version(number), reason };
        let plan = PruneReport {
            versions: vec![version(1)],
            kept: vec![kept(2, Reason::Monthly), kept(3, Reason::Head)],
            unreachable_packs: 0,
            swept_packs: 1,
            freed_bytes: 0,
        };
        insta::assert_snapshot!(planned(&"debian".parse().unwrap(), &plan), @r"
        debian: version 1 would go; 1 pack can be swept now, which frees 0 B
          stays: 2 (of its month), 3 (latest)
        ");
    }

    #[test]
    fn what_goes_is_named() {
        let versions: Vec<Version> = [1, 2].into_iter().filter_map(Version::new).collect();
        assert_eq!(dropped(&versions, "would go"), "versions 1, 2 would go");
        assert_eq!(dropped(&versions[..1], "would go"), "version 1 would go");
        assert_eq!(dropped(&[], "would go"), "no version would go");
    }
}
