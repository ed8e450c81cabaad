//! Which versions stay: the same words for a prune, for an appliance's rule and for that of user disks.

use clap::Args;
use collective_repository::Retention;

use crate::text::{self, Span};

/// Each keeps what it keeps, whatever the others say; a version stays if any does.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Which versions stay")]
pub struct RetentionArguments {
    /// How many of the latest versions stay
    #[arg(long, value_name = "COUNT", value_parser = text::count::<u64>, allow_negative_numbers = true)]
    keep_last: Option<u64>,
    /// All versions that are younger than this, as 7d
    #[arg(long, value_name = "TIME")]
    keep_within: Option<Span>,
    /// The newest version of each of the last hours that have one, so many
    #[arg(long, value_name = "COUNT", value_parser = text::count::<u64>)]
    keep_hourly: Option<u64>,
    /// The same of days (UTC)
    #[arg(long, value_name = "COUNT", value_parser = text::count::<u64>)]
    keep_daily: Option<u64>,
    /// The same of weeks, from Monday
    #[arg(long, value_name = "COUNT", value_parser = text::count::<u64>)]
    keep_weekly: Option<u64>,
    /// The same of months
    #[arg(long, value_name = "COUNT", value_parser = text::count::<u64>)]
    keep_monthly: Option<u64>,
    /// The same of years
    #[arg(long, value_name = "COUNT", value_parser = text::count::<u64>)]
    keep_yearly: Option<u64>,
}

impl RetentionArguments {
    /// Makes the rule, if one was typed.
    pub fn rule(&self) -> Option<Retention> {
        let rule = Retention {
            last: self.keep_last.unwrap_or_default(),
            within_s: self.keep_within.map_or(0, |Span(within)| within.as_secs()),
            hourly: self.keep_hourly.unwrap_or_default(),
            daily: self.keep_daily.unwrap_or_default(),
            weekly: self.keep_weekly.unwrap_or_default(),
            monthly: self.keep_monthly.unwrap_or_default(),
            yearly: self.keep_yearly.unwrap_or_default(),
        };
        rule.check().is_ok().then_some(rule)
    }
}

/// Says what a rule keeps.
pub fn said(rule: Option<&Retention>) -> String {
    rule.map_or_else(|| "everything".to_owned(), ToString::to_string)
}
