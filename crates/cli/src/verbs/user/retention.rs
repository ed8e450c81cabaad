//! `collective user retention`: by which rule the server prunes user disks.

use clap::Args;
use collective_api::ServerClient;
use collective_api::server::SetRetention;
use collective_model::Result;
use collective_repository::retention::USER_DISKS;

use crate::context::Context;
use crate::verbs::retention::{RetentionArguments, said};

/// Show or set which versions of user disks stay
///
/// The server prunes the user disks of everybody by this rule once a day; it needs no key for that. Whatever the rule says, the
/// latest version stays, the one that an undo goes back to, and what an undo replaced. Everybody sees in
/// `collective versions` what stays of their own.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  collective user retention\n  \
    collective user retention --keep-within 14d --keep-daily 60 --keep-monthly 24\n  \
    collective user retention --default")]
pub struct Arguments {
    #[command(flatten)]
    retention: RetentionArguments,
    /// Go back to the usual rule
    #[arg(long, conflicts_with = "off")]
    default: bool,
    /// Keep everything from now on
    #[arg(long)]
    off: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub async fn run(arguments: Arguments, server: &ServerClient, context: &Context) -> Result<()> {
    let Arguments { retention, default, off, yes } = arguments;
    let wanted = match (default, off) {
        (true, _) => Some(Some(USER_DISKS)),
        (_, true) => Some(None),
        _ => retention.rule().map(Some),
    };
    if let Some(rule) = wanted {
        if !yes && rule.is_some() {
            let now = server.upkeep().await?.user_disks;
            context.prompt.confirm(&format!(
                "Keep of user disks {} from now on, and no longer {}?\n\
                 What then no longer stays is gone within a day.",
                said(rule.as_ref()),
                said(now.as_ref())
            ))?;
        }
        server.set_user_disk_retention(&SetRetention { rule }).await?;
    }
    let rule = server.upkeep().await?.user_disks;
    context.output.say("retention", &SetRetention { rule }, || {
        format!("user disks keep {}", said(rule.as_ref()))
    });
    Ok(())
}
