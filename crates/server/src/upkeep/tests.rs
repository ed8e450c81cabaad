//! When a user disk may be pruned, and how fast checks go.

use std::time::Duration;

use collective_api::server::Lock;
use collective_model::{Epoch, HostId, Timestamp};

use super::{is_at_rest, rest};
use crate::lock::LockState;

const DAY_MS: i64 = 24 * 3600 * 1000;

fn held(since: i64, expires: i64, backlog_bytes: Option<u64>) -> LockState {
    let (since, expires) = (Timestamp(since), Timestamp(expires));
    let (host, host_name) = (HostId([1; 16]), "desk".parse().unwrap());
    let epoch = Epoch(3);
    let lock = Lock { host, host_name, epoch, since, seen: since, expires, backlog_bytes };
    LockState { epoch, held: Some(lock) }
}

#[test]
fn a_user_disk_on_which_an_undo_may_be_built_is_left_alone() {
    let now = Timestamp(100 * DAY_MS);
    let (soon, long_ago) = (now.0 + 1, now.0 - 1);
    let rests = |since_days: i64, expires, backlog| {
        is_at_rest(&held(now.0 - since_days * DAY_MS, expires, backlog), now)
    };
    assert!(is_at_rest(&LockState { epoch: Epoch(3), held: None }, now));
    assert!(rests(1, soon, Some(0)), "in use, and all of it is backed up");
    assert!(!rests(1, soon, Some(1)) && !rests(1, soon, None), "something is to be published");
    assert!(!rests(0, soon, Some(0)), "just taken: for an undo, maybe");
    assert!(!rests(50, long_ago, Some(0)), "away, and nobody knows with what");
    assert!(rests(8, soon, Some(1)), "runs for days: no undo waits for that");
}

#[test]
fn a_check_keeps_its_rate_and_never_takes_more_than_a_quarter_of_the_time() {
    let ms = Duration::from_millis;
    assert_eq!(rest(ms(100), 1000, 1000), ms(900), "1000 bytes a second, with what it took");
    assert_eq!(rest(ms(100), 0, 1000), ms(300), "nothing was counted, time was");
    assert_eq!(rest(ms(500), 1000, 1000), ms(1500), "a slow disk gets its rest");
}
