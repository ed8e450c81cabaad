//! The plan of a prune, without a repository.

use std::collections::BTreeSet;
use std::time::Duration;

use collective_model::{Digest, ErrorKind, Timestamp, Version};

use super::{Noted, Plan, PruneOptions, kept_versions, plan};
use crate::backend::{Listed, ObjectName};

const GRACE: Duration = Duration::from_millis(100);

fn pack(number: u8) -> ObjectName {
    ObjectName::Pack(Digest([number; 32]))
}

fn manifest(number: u64) -> ObjectName {
    ObjectName::Manifest(version(number))
}

fn version(number: u64) -> Version {
    Version::new(number).unwrap()
}

fn options(now: i64) -> PruneOptions {
    let (keep, now) = (Vec::new(), Timestamp(now));
    PruneOptions { keep_last: 1, keep, grace: GRACE, now, dry_run: false }
}

fn planned(objects: &[(ObjectName, i64)], reached: &[ObjectName], noted: &Noted, now: i64) -> Plan {
    let listed: Vec<_> = objects
        .iter()
        .map(|(name, modified)| Listed {
            name: *name,
            size_bytes: 10,
            modified: Timestamp(*modified),
        })
        .collect();
    let reached: BTreeSet<_> = reached.iter().copied().collect();
    plan(&listed, &reached, noted, &[version(3)], &options(now))
}

fn noted(objects: &[(ObjectName, i64)]) -> Noted {
    let since = objects.iter().map(|(name, since)| (*name, Timestamp(*since)));
    Noted { since: since.collect() }
}

#[test]
fn what_nothing_reaches_is_first_noted_then_removed() {
    let objects = [(pack(1), 0), (pack(2), 0)];
    let first = planned(&objects, &[pack(1)], &Noted::default(), 1000);
    assert_eq!((first.sweep.as_slice(), first.report.waiting_objects), (&[][..], 1));
    assert_eq!(first.noted, noted(&[(pack(2), 1000)]));
    let early = planned(&objects, &[pack(1)], &first.noted, 1099);
    assert_eq!(early.sweep, []);
    assert_eq!(early.noted, first.noted);
    let late = planned(&objects, &[pack(1)], &early.noted, 1100);
    assert_eq!(late.sweep, [pack(2)]);
    assert_eq!(late.noted, Noted::default());
}

#[test]
fn what_was_written_again_or_is_reached_again_waits_anew() {
    let before = noted(&[(pack(1), 0), (pack(2), 0)]);
    let plan = planned(&[(pack(1), 950), (pack(2), 0)], &[pack(2)], &before, 1000);
    assert_eq!(plan.sweep, []);
    assert_eq!(plan.noted, noted(&[(pack(1), 950)]));
}

#[test]
fn a_clock_that_jumped_back_removes_nothing() {
    let plan = planned(&[(pack(1), 0)], &[], &noted(&[(pack(1), 5000)]), 1000);
    assert_eq!(plan.sweep, []);
}

#[test]
fn manifests_below_the_head_go_at_once_and_one_beyond_it_waits() {
    let objects = [(manifest(2), 0), (manifest(3), 0), (manifest(4), 0)];
    let plan = planned(&objects, &[manifest(3)], &Noted::default(), 1000);
    assert_eq!(plan.forget, [manifest(2)]);
    assert_eq!(plan.report.removed_versions, [version(2)]);
    assert_eq!(plan.noted, noted(&[(manifest(4), 1000)]));
}

#[test]
fn the_head_is_kept_whatever_is_asked_and_a_missing_version_is_named() {
    let versions = [1, 2, 3].map(version);
    let keep = |keep_last, keep: &[u64]| {
        let keep = keep.iter().map(|number| version(*number)).collect();
        kept_versions(&versions, &PruneOptions { keep_last, keep, ..options(0) })
    };
    assert_eq!(keep(0, &[]).unwrap(), [version(3)]);
    assert_eq!(keep(2, &[1]).unwrap(), versions);
    assert_eq!(keep(u64::MAX, &[]).unwrap(), versions);
    let error = keep(1, &[7]).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("version 7"));
}
