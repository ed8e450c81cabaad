//! The plan of a prune, without a repository.

use std::collections::BTreeMap;
use std::time::Duration;

use collective_model::{Digest, Timestamp, Version};

use super::{Noted, Plan, PruneOptions, Reached, plan};
use crate::backend::{Listed, ObjectName};
use crate::retention::{Reason, Retention};

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
    let (rule, keep, now) = (Retention::of_last(1), Vec::new(), Timestamp(now));
    PruneOptions { rule, keep, grace: GRACE, now, dry_run: false }
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
    let reached = Reached { objects: reached.iter().copied().collect(), head: Some(version(3)) };
    let kept = BTreeMap::from([(version(3), Reason::Head)]);
    let mut plan = plan(listed, &reached, noted, kept, &options(now));
    plan.finish();
    plan
}

fn removed(plan: &Plan) -> Vec<ObjectName> {
    plan.remove.iter().map(|object| object.name).collect()
}

fn noted(objects: &[(ObjectName, i64)]) -> Noted {
    let since = objects.iter().map(|(name, since)| (*name, Timestamp(*since)));
    Noted { since: since.collect() }
}

#[test]
fn what_nothing_reaches_is_first_noted_then_removed() {
    let objects = [(pack(1), 0), (pack(2), 0)];
    let first = planned(&objects, &[pack(1)], &Noted::default(), 1000);
    assert_eq!((removed(&first), first.report.waiting_objects), (vec![], 1));
    assert_eq!(first.noted, noted(&[(pack(2), 1000)]));
    let early = planned(&objects, &[pack(1)], &first.noted, 1099);
    assert_eq!(removed(&early), []);
    assert_eq!(early.noted, first.noted);
    let late = planned(&objects, &[pack(1)], &early.noted, 1100);
    assert_eq!(removed(&late), [pack(2)]);
    assert_eq!((late.report.removed_objects, late.report.removed_bytes), (1, 10));
    assert_eq!(late.noted, Noted::default());
}

#[test]
fn what_was_written_again_or_is_reached_again_waits_anew() {
    let before = noted(&[(pack(1), 0), (pack(2), 0)]);
    let plan = planned(&[(pack(1), 950), (pack(2), 0)], &[pack(2)], &before, 1000);
    assert_eq!(removed(&plan), []);
    assert_eq!(plan.noted, noted(&[(pack(1), 950)]));
}

#[test]
fn a_clock_that_jumped_back_removes_nothing() {
    let plan = planned(&[(pack(1), 0)], &[], &noted(&[(pack(1), 5000)]), 1000);
    assert_eq!(removed(&plan), []);
}

#[test]
fn manifests_below_the_head_go_at_once_and_one_beyond_it_waits() {
    let objects = [(manifest(2), 0), (manifest(3), 0), (manifest(4), 0)];
    let plan = planned(&objects, &[manifest(3)], &Noted::default(), 1000);
    assert_eq!(removed(&plan), [manifest(2)]);
    assert_eq!(plan.report.removed_versions, [version(2)]);
    assert_eq!(plan.noted, noted(&[(manifest(4), 1000)]));
}
