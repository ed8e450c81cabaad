//! The rules one by one, then random hosts against the one rule that matters: a number has one owner.

use std::time::Duration;

use collective_api::server::Lock;
use collective_model::{Epoch, ErrorKind, HostId, Timestamp};
use proptest::prelude::{Strategy, any, prop_oneof};

use super::{LEASE, LockState, Taker, check, renew, take};

const NOW: Timestamp = Timestamp(1_800_000_000_000);

fn taker(number: u8) -> Taker {
    Taker {
        host: HostId([number; 16]),
        host_name: format!("host-{number}").parse().unwrap(),
        appliance: "debian".parse().unwrap(),
    }
}

fn held_by(number: u8, epoch: u64) -> LockState {
    let free = LockState { epoch: Epoch(epoch - 1), held: None };
    let lock = take(&free, &taker(number), false, NOW).unwrap();
    LockState { epoch: lock.epoch, held: Some(lock) }
}

fn after(state: &LockState, lock: Lock) -> LockState {
    LockState { epoch: lock.epoch.max(state.epoch), held: Some(lock) }
}

#[test]
fn a_held_lock_is_refused_with_who_since_when_and_what_breaking_costs() {
    let mut state = held_by(1, 5);
    state.held.as_mut().unwrap().backlog_bytes = Some(2_000_000);
    let error = take(&state, &taker(2), false, NOW.after(LEASE * 1000)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let said = format!("{error} {}", error.hint().unwrap());
    for part in [
        "`debian`",
        "`host-1`",
        "2027-01-15T08:00:00Z",
        "2.00 MB",
        "--break-lock",
        "stays on its disk",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_lease_that_is_over_gives_the_lock_away_only_if_nothing_was_left_to_back_up() {
    for (backlog_bytes, late, taken) in [
        (Some(0), true, true),
        (Some(0), false, false),
        (Some(1), true, false),
        (None, true, false),
    ] {
        let mut state = held_by(1, 5);
        state.held.as_mut().unwrap().backlog_bytes = backlog_bytes;
        let now = if late { NOW.after(LEASE) } else { NOW.after(LEASE - Duration::from_millis(1)) };
        let answer = take(&state, &taker(2), false, now);
        assert_eq!(answer.is_ok(), taken, "{backlog_bytes:?} {late}");
    }
}

#[test]
fn a_broken_lock_has_a_higher_number_and_the_old_one_is_over() {
    let state = held_by(1, 5);
    let broken = after(&state, take(&state, &taker(2), true, NOW).unwrap());
    assert_eq!(broken.epoch, Epoch(6));
    assert!(check(&broken, taker(2).host, Epoch(6)).is_ok());
    let error = renew(&broken, taker(1).host, Epoch(5), 0, NOW).unwrap_err();
    // Who, when, and what that means, in a person's words.
    let said = error.to_string();
    for part in ["`host-2` took", "2027-01-15T08:00:00Z", "written here", "not published"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("number") && !said.contains("lock"), "{said}");
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[test]
fn the_holder_gets_its_own_lock_again_and_a_clock_that_jumps_back_shortens_no_lease() {
    let state = held_by(1, 5);
    let again = take(&state, &taker(1), false, Timestamp(NOW.0 - 3_600_000)).unwrap();
    assert_eq!((again.epoch, again.since), (Epoch(5), NOW));
    assert_eq!(again.expires, NOW.after(LEASE));
}

/// One thing that a host does.
#[derive(Clone, Debug)]
enum Step {
    Take(u8, bool),
    Renew(u8, u64),
    Release(u8),
}

fn steps() -> impl Strategy<Value = Vec<(Step, u32)>> {
    let step = prop_oneof![
        (1..4_u8, any::<bool>()).prop_map(|(host, hard)| Step::Take(host, hard)),
        (1..4_u8, 0..3_u64).prop_map(|(host, backlog)| Step::Renew(host, backlog)),
        (1..4_u8).prop_map(Step::Release),
    ];
    proptest::collection::vec((step, 0..200_000_u32), 0..60)
}

proptest::proptest! {
    #[test]
    fn no_two_holders_ever_have_the_same_number_and_it_never_falls(steps in steps()) {
        let mut state = LockState { epoch: Epoch(0), held: None };
        let mut known = [Epoch(0); 4];
        let mut owner_of = std::collections::HashMap::new();
        let mut now = NOW;
        for (step, pause_ms) in steps {
            now = Timestamp(now.0 + i64::from(pause_ms));
            let before = state.epoch;
            match step {
                Step::Take(number, hard) => {
                    if let Ok(lock) = take(&state, &taker(number), hard, now) {
                        let host = owner_of.entry(lock.epoch).or_insert(lock.host);
                        assert_eq!(*host, lock.host);
                        known[usize::from(number)] = lock.epoch;
                        state = after(&state, lock);
                    }
                }
                Step::Renew(number, backlog) => {
                    let epoch = known[usize::from(number)];
                    if let Ok(lock) = renew(&state, taker(number).host, epoch, backlog, now) {
                        assert_eq!(lock.epoch, state.epoch);
                        state = after(&state, lock);
                    }
                }
                Step::Release(number) => {
                    if check(&state, taker(number).host, known[usize::from(number)]).is_ok() {
                        state.held = None;
                    }
                }
            }
            assert!(state.epoch >= before);
        }
    }
}
