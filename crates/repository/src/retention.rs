//! Which versions stay when a repository is pruned: rules as people know them from backup programs. Pure.
//!
//! Each count of a rule looks at all versions for itself, and keeps the newest version of each of the last so many hours, days,
//! weeks (from Monday), months and years *in which there is a version*, all in UTC; a version stays if any count keeps it. So a larger
//! rule never keeps less. Whatever the rule says, the head stays, and in a user disk what an undo offers: the version before the
//! head, and the one that each undo and each new beginning replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use collective_model::{Error, ErrorKind, Result, Timestamp, Version};
use serde::{Deserialize, Serialize};

use crate::descriptor::Kind;

/// What stays; what is 0 keeps nothing by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// The newest versions, this many.
    pub last: u64,
    /// All versions of the last seconds, this many.
    pub within_s: u64,
    /// One version for each of the last hours that have one.
    pub hourly: u64,
    /// One for each day.
    pub daily: u64,
    /// One for each week.
    pub weekly: u64,
    /// One for each month.
    pub monthly: u64,
    /// One for each year.
    pub yearly: u64,
}

/// A version, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its number.
    pub version: Version,
    /// When its publisher says that it was published.
    pub time: Timestamp,
    /// When it was stored: by another clock, which is the publisher's check.
    pub stored: Timestamp,
    /// Whether it replaces the version before instead of going on from it, as an undo does.
    pub replaces: bool,
}

/// Why a version stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is the latest.
    Head,
    /// Somebody named it.
    Named,
    /// An undo goes back to it.
    Undo,
    /// It is an undo or a new beginning, or what that replaced.
    Replaced,
    /// It is one of the newest.
    Last,
    /// It is young.
    Within,
    /// It is the newest of its hour.
    Hourly,
    /// It is the newest of its day.
    Daily,
    /// It is the newest of its week.
    Weekly,
    /// It is the newest of its month.
    Monthly,
    /// It is the newest of its year.
    Yearly,
}

/// The rule for user disks where nobody set another: everything of a week, then days for a month, weeks for a year, months for three.
pub const USER_DISKS: Retention = Retention {
    last: 0,
    within_s: 7 * DAY_S,
    hourly: 0,
    daily: 31,
    weekly: 53,
    monthly: 36,
    yearly: 0,
};

const DAY_S: u64 = 24 * 3600;
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// 1970 began on a Thursday.
const DAYS_SINCE_MONDAY: i64 = 3;

/// How the notes of an undo go on after the version's number, and those of a new beginning in all.
const AGAIN: &str = " again";
const AS_BROUGHT: &str = "as the appliance brings it";

/// Returns the notes of the version that brings an old one back.
#[must_use]
pub fn notes_of_undo(version: Version) -> String {
    format!("version {version}{AGAIN}")
}

/// Returns the notes of the version with which a user disk begins (anew).
#[must_use]
pub const fn notes_of_beginning() -> &'static str {
    AS_BROUGHT
}

/// Tells by its notes whether a version replaces the one before.
#[must_use]
pub fn replaces(notes: &str) -> bool {
    let undone = notes.strip_prefix("version ").and_then(|rest| rest.strip_suffix(AGAIN));
    notes == AS_BROUGHT || undone.is_some_and(|number| number.parse::<Version>().is_ok())
}

impl Retention {
    /// A rule that keeps the newest versions.
    #[must_use]
    pub fn of_last(last: u64) -> Self {
        Self { last, ..Self::default() }
    }

    /// Checks that the rule keeps anything at all: an empty one would be a slip of the keyboard.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn check(&self) -> Result<()> {
        if *self == Self::default() {
            return Err(Error::new(ErrorKind::Invalid, "the rule keeps no version")
                .with_hint("say what stays, for example the last 3"));
        }
        Ok(())
    }

    /// Decides which versions stay, and why. `versions` in any order; the answer has those that stay.
    #[must_use]
    pub fn keep(
        &self,
        kind: Kind,
        versions: &[Candidate],
        named: &[Version],
        now: Timestamp,
    ) -> BTreeMap<Version, Reason> {
        let mut newest_first: Vec<&Candidate> = versions.iter().collect();
        newest_first.sort_unstable_by_key(|it| std::cmp::Reverse(it.version));
        let mut kept = protected(kind, &newest_first, named);
        let last = newest_first.iter().take(usize::try_from(self.last).unwrap_or(usize::MAX));
        last.for_each(|it| keep(&mut kept, it, Reason::Last));
        let within = Duration::from_secs(self.within_s);
        for it in &newest_first {
            // A publisher with a clock of long ago must not lose what it published just now.
            if !within.is_zero() && now.since(it.time.max(it.stored)) <= within {
                keep(&mut kept, it, Reason::Within);
            }
        }
        let counts: [(u64, Reason, PeriodOf); 5] = [
            (self.hourly, Reason::Hourly, |ms| ms.div_euclid(HOUR_MS)),
            (self.daily, Reason::Daily, |ms| ms.div_euclid(DAY_MS)),
            (self.weekly, Reason::Weekly, |ms| {
                (ms.div_euclid(DAY_MS) + DAYS_SINCE_MONDAY).div_euclid(7)
            }),
            (self.monthly, Reason::Monthly, |ms| month(ms.div_euclid(DAY_MS))),
            (self.yearly, Reason::Yearly, |ms| month(ms.div_euclid(DAY_MS)).div_euclid(12)),
        ];
        for (count, reason, period_of) in counts {
            let mut periods = BTreeSet::new();
            for it in &newest_first {
                if periods.len() as u64 == count {
                    break;
                }
                if periods.insert(period_of(it.time.0)) {
                    keep(&mut kept, it, reason);
                }
            }
        }
        kept
    }
}

/// Numbers the period that a time in milliseconds lies in.
type PeriodOf = fn(i64) -> i64;

/// What no rule may touch.
fn protected(
    kind: Kind,
    newest_first: &[&Candidate],
    named: &[Version],
) -> BTreeMap<Version, Reason> {
    let mut kept = BTreeMap::new();
    newest_first.iter().take(1).for_each(|it| keep(&mut kept, it, Reason::Head));
    for it in newest_first.iter().filter(|it| named.contains(&it.version)) {
        keep(&mut kept, it, Reason::Named);
    }
    if kind == Kind::UserDisk {
        newest_first.iter().skip(1).take(1).for_each(|it| keep(&mut kept, it, Reason::Undo));
        // The undo itself stays as well: without it nobody would know what it replaced.
        for pair in newest_first.windows(2).filter(|pair| pair[0].replaces) {
            pair.iter().for_each(|it| keep(&mut kept, it, Reason::Replaced));
        }
    }
    kept
}

/// The first reason stands.
fn keep(kept: &mut BTreeMap<Version, Reason>, it: &Candidate, reason: Reason) {
    kept.entry(it.version).or_insert(reason);
}

/// Numbers the months; `days` since 1970. Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
fn month(days: i64) -> i64 {
    let days = days.saturating_add(719_468);
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // Months are counted from March, so that the leap day is the last.
    let month = (5 * of_year + 2) / 153;
    (year + 400 * era) * 12 + month + 2
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.last > 0 {
            parts.push(format!("the last {}", self.last));
        }
        if self.within_s > 0 {
            parts.push(match self.within_s {
                days if days.is_multiple_of(DAY_S) => format!("all of {} d", days / DAY_S),
                hours if hours.is_multiple_of(3600) => format!("all of {} h", hours / 3600),
                seconds => format!("all of {seconds} s"),
            });
        }
        let counts = [
            (self.hourly, "hourly"),
            (self.daily, "daily"),
            (self.weekly, "weekly"),
            (self.monthly, "monthly"),
            (self.yearly, "yearly"),
        ];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        parts.extend(counts.map(|(count, name)| format!("{count} {name}")));
        f.pad(&if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Head => "latest",
            Self::Named => "named",
            Self::Undo => "for undo",
            Self::Replaced => "around an undo",
            Self::Last => "recent",
            Self::Within => "young",
            Self::Hourly => "of its hour",
            Self::Daily => "of its day",
            Self::Weekly => "of its week",
            Self::Monthly => "of its month",
            Self::Yearly => "of its year",
        })
    }
}

#[cfg(test)]
mod tests;
