//! `collective appliance retention`: by which rule the server prunes an appliance by itself.

use clap::Args;
use collective_api::ServerClient;
use collective_api::server::{PruneRequest, SetRetention};
use collective_model::{ApplianceName, Result};

use super::prune::planned;
use crate::context::Context;
use crate::verbs::retention::{RetentionArguments, said};

/// Show or set which versions of an appliance stay
///
/// Without a rule everything stays until `collective appliance prune`. With one the server prunes the appliance once a day. A
/// computer that runs a version that is gone reads on for a day, and needs a restart after that: keep versions for
/// as long as appliances run without one.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  collective appliance retention debian\n  \
    collective appliance retention debian --keep-last 3 --keep-within 60d\n  \
    collective appliance retention debian --off")]
pub struct Arguments {
    /// Which appliance
    appliance: ApplianceName,
    #[command(flatten)]
    retention: RetentionArguments,
    /// Keep everything from now on
    #[arg(long)]
    off: bool,
    /// Only show what would go
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub async fn run(arguments: Arguments, server: &ServerClient, context: &Context) -> Result<()> {
    let Arguments { appliance: name, retention, off, dry_run, yes } = arguments;
    let rule = retention.rule().filter(|_| !off);
    if rule.is_some() && (dry_run || !yes) {
        let request = PruneRequest { rule, keep: Vec::new(), dry_run: true };
        let plan = server.prune_appliance(&name, &request).await?;
        if dry_run {
            context.output.say("prune_plan", &plan, || planned(&name, &plan));
            return Ok(());
        }
        context.output.note(&planned(&name, &plan));
        context.prompt.confirm("Prune it so from now on?")?;
    }
    if rule.is_some() || off {
        server.set_appliance_retention(&name, &SetRetention { rule }).await?;
    }
    let appliance = server.appliance(&name).await?;
    let set = SetRetention { rule: appliance.retention };
    context
        .output
        .say("retention", &set, || format!("{name} keeps {}", said(appliance.retention.as_ref())));
    Ok(())
}
