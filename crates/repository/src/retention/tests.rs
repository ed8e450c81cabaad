//! Rules on years of versions, and what must hold for any rule and any versions.

use collective_model::{Timestamp, Version};
use proptest::prelude::*;

use super::{Candidate, Reason, Retention, USER_DISKS, month, notes_of_beginning, notes_of_undo};
use super::{DAY_MS, HOUR_MS, replaces};
use crate::descriptor::Kind;

/// 2026-01-01, a Thursday.
const NEW_YEAR: i64 = 1_767_225_600_000;

fn version(number: u64) -> Version {
    Version::new(number).unwrap()
}

fn at(times: &[i64]) -> Vec<Candidate> {
    let candidate = |(at, time): (usize, &i64)| Candidate {
        version: version(at as u64 + 1),
        time: Timestamp(*time),
        stored: Timestamp(*time),
        replaces: false,
    };
    times.iter().enumerate().map(candidate).collect()
}

fn kept(rule: Retention, versions: &[Candidate], now: i64) -> Vec<u64> {
    let kept = rule.keep(Kind::Appliance, versions, &[], Timestamp(now));
    kept.keys().map(|version| version.number()).collect()
}

#[test]
fn each_count_keeps_the_newest_of_its_periods() {
    // 22:00 and 23:00 on Sunday the 4th, 00:00 and 01:00 on Monday the 5th, and the first of February.
    let sunday = NEW_YEAR + 3 * DAY_MS + 22 * HOUR_MS;
    let times = [0, 1, 2, 3].map(|hours| sunday + hours * HOUR_MS);
    let versions = at(&[&times[..], &[NEW_YEAR + 31 * DAY_MS]].concat());
    let now = NEW_YEAR + 40 * DAY_MS;
    let rule = Retention::default;
    assert_eq!(kept(Retention { hourly: 3, ..rule() }, &versions, now), [3, 4, 5]);
    assert_eq!(kept(Retention { daily: 3, ..rule() }, &versions, now), [2, 4, 5]);
    assert_eq!(kept(Retention { weekly: 9, ..rule() }, &versions, now), [2, 4, 5]);
    assert_eq!(kept(Retention { monthly: 9, ..rule() }, &versions, now), [4, 5]);
    assert_eq!(kept(Retention { yearly: 9, ..rule() }, &versions, now), [5]);
    assert_eq!(kept(Retention::of_last(2), &versions, now), [4, 5]);
    let within = Retention { within_s: 36 * 24 * 3600, ..rule() };
    assert_eq!(kept(within, &versions, now), [3, 4, 5]);
    assert_eq!(kept(rule(), &versions, now), [5], "the head stays whatever is asked");
}

#[test]
fn months_are_those_of_the_calendar() {
    let of = |text: &str| {
        let time: slow::Day = text.parse().unwrap();
        month(time.0)
    };
    assert_eq!(of("1970-01-01"), 1970 * 12);
    assert_eq!(of("1969-12-31"), 1970 * 12 - 1);
    assert_eq!(of("2024-02-29"), 2024 * 12 + 1);
    assert_eq!(of("2024-03-01"), 2024 * 12 + 2);
    assert_eq!(of("2100-02-28"), 2100 * 12 + 1);
    assert_eq!(of("2100-03-01"), 2100 * 12 + 2);
}

/// Days counted the slow way.
mod slow {
    pub struct Day(pub i64);

    impl std::str::FromStr for Day {
        type Err = std::num::ParseIntError;

        fn from_str(text: &str) -> Result<Self, Self::Err> {
            let mut parts = text.split('-').map(str::parse::<i64>);
            let mut part = || parts.next().expect("a year, a month and a day");
            let (year, month, day) = (part()?, part()?, part()?);
            let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let of_year = |year| 365 + i64::from(leap(year));
            let years: i64 = if year < 1970 {
                -(year..1970).map(of_year).sum::<i64>()
            } else {
                (1970..year).map(of_year).sum()
            };
            let february = 28 + i64::from(leap(year));
            let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            let months: i64 = lengths[..month as usize - 1].iter().sum();
            Ok(Self(years + months + day - 1))
        }
    }
}

#[test]
fn a_user_disk_keeps_what_an_undo_needs() {
    let mut versions = at(&[1, 2, 3, 4, 5, 6, 7, 8].map(|day| day * DAY_MS));
    versions[4].replaces = replaces(&notes_of_undo(version(2)));
    let kept = Retention::of_last(1).keep(Kind::UserDisk, &versions, &[version(1)], Timestamp(0));
    let reasons: Vec<_> = kept.into_iter().map(|(it, reason)| (it.number(), reason)).collect();
    let (named, replaced) = ((1, Reason::Named), [4, 5].map(|it| (it, Reason::Replaced)));
    assert_eq!(
        reasons,
        [&[named], &replaced[..], &[(7, Reason::Undo), (8, Reason::Head)]].concat()
    );
}

#[test]
fn an_undo_is_known_by_its_notes_and_nothing_else_is() {
    assert!(replaces("version 12 again") && replaces(notes_of_beginning()));
    for notes in ["", "again", "version  again", "version 0 again", "version 3 again!", "hello"] {
        assert!(!replaces(notes), "{notes:?}");
    }
}

#[test]
fn a_publisher_with_a_clock_of_long_ago_does_not_lose_what_is_new() {
    let mut versions = at(&[0; 50]);
    for (at, it) in versions.iter_mut().enumerate() {
        it.stored = Timestamp(NEW_YEAR - (50 - at as i64) * HOUR_MS);
    }
    assert_eq!(kept(USER_DISKS, &versions, NEW_YEAR).len(), 50);
}

#[test]
fn the_usual_rule_thins_out_a_year_of_backups_every_ten_minutes() {
    let year: Vec<i64> = (0..365 * 144).map(|step| NEW_YEAR + step * DAY_MS / 144).collect();
    let now = year[year.len() - 1];
    let kept = kept(USER_DISKS, &at(&year), now);
    let week = 7 * 144 + 1;
    // A week of everything, 24 more days, the weeks before these, and ends of months among weeks.
    assert!((week + 24 + 45..week + 24 + 65).contains(&kept.len()), "{}", kept.len());
}

#[test]
fn a_rule_says_what_it_keeps() {
    assert_eq!(USER_DISKS.to_string(), "all of 7 d, 31 daily, 53 weekly, 36 monthly");
    assert_eq!(Retention::of_last(3).to_string(), "the last 3");
    assert!(Retention::default().check().is_err() && USER_DISKS.check().is_ok());
}

prop_compose! {
    fn rules()(numbers in prop::array::uniform7(0_u64..6)) -> Retention {
        let [last, days, hourly, daily, weekly, monthly, yearly] = numbers;
        Retention { last, within_s: days * 24 * 3600, hourly, daily, weekly, monthly, yearly }
    }
}

prop_compose! {
    /// Versions hours to months apart, by clocks that also go backwards.
    fn histories()(
        steps in prop::collection::vec((-50_i64..2000, 0_i64..100, prop::bool::weighted(0.1)), 0..60)
    ) -> Vec<Candidate> {
        let mut time = NEW_YEAR;
        let mut versions = Vec::new();
        for (at, (hours, late, replaces)) in steps.into_iter().enumerate() {
            time += hours * HOUR_MS;
            let stored = Timestamp(time + late * HOUR_MS);
            let version = version(at as u64 + 1);
            versions.push(Candidate { version, time: Timestamp(time), stored, replaces });
        }
        versions
    }
}

proptest! {
    #[test]
    fn whatever_the_rule_protected_versions_stay_and_counts_hold(
        rule in rules(), versions in histories(), later in 0_i64..1000
    ) {
        let now = Timestamp(versions.last().map_or(NEW_YEAR, |it| it.time.0) + later * HOUR_MS);
        let kept = rule.keep(Kind::UserDisk, &versions, &[], now);
        let newest: Vec<_> = versions.iter().rev().take((rule.last as usize).max(2)).collect();
        for it in newest {
            prop_assert!(kept.contains_key(&it.version), "{} is one of the newest", it.version);
        }
        for pair in versions.windows(2).filter(|pair| pair[1].replaces) {
            prop_assert!(kept.contains_key(&pair[0].version), "{} was undone", pair[0].version);
        }
        let young = |it: &Candidate| now.since(it.time).as_secs() <= rule.within_s;
        for it in versions.iter().filter(|it| rule.within_s > 0 && young(it)) {
            prop_assert!(kept.contains_key(&it.version), "{} is young", it.version);
        }
        for (reason, count) in [
            (Reason::Last, rule.last), (Reason::Hourly, rule.hourly), (Reason::Daily, rule.daily),
            (Reason::Weekly, rule.weekly), (Reason::Monthly, rule.monthly), (Reason::Yearly, rule.yearly),
        ] {
            let by = kept.values().filter(|it| **it == reason).count() as u64;
            prop_assert!(by <= count, "{by} by {reason}");
        }
        prop_assert!(kept.keys().all(|it| versions.iter().any(|version| version.version == *it)));
    }

    #[test]
    fn a_larger_rule_keeps_no_less_and_order_does_not_matter(
        rule in rules(), more in rules(), versions in histories()
    ) {
        let now = Timestamp(versions.last().map_or(NEW_YEAR, |it| it.time.0));
        let larger = Retention {
            last: rule.last + more.last,
            within_s: rule.within_s + more.within_s,
            hourly: rule.hourly + more.hourly,
            daily: rule.daily + more.daily,
            weekly: rule.weekly + more.weekly,
            monthly: rule.monthly + more.monthly,
            yearly: rule.yearly + more.yearly,
        };
        let small = rule.keep(Kind::Appliance, &versions, &[], now);
        let large = larger.keep(Kind::Appliance, &versions, &[], now);
        prop_assert!(small.keys().all(|it| large.contains_key(it)));
        let backwards: Vec<_> = versions.iter().rev().cloned().collect();
        prop_assert_eq!(rule.keep(Kind::Appliance, &backwards, &[], now), small);
    }

    #[test]
    fn pruning_again_at_once_changes_nothing(rule in rules(), versions in histories()) {
        let now = Timestamp(versions.last().map_or(NEW_YEAR, |it| it.time.0));
        let once = rule.keep(Kind::UserDisk, &versions, &[], now);
        let left: Vec<_> =
            versions.into_iter().filter(|it| once.contains_key(&it.version)).collect();
        let again = rule.keep(Kind::UserDisk, &left, &[], now);
        prop_assert_eq!(again.len(), left.len());
    }
}
