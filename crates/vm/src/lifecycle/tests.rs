//! The life-cycle, by example and by random events against what must always hold.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Action, Event, Lifecycle, Means, State};

fn after(events: &[Event]) -> (Lifecycle, Vec<Action>) {
    let (mut life, now) = (Lifecycle::default(), Instant::now());
    let actions = events.iter().flat_map(|event| life.handle(event.clone(), now)).collect();
    (life, actions)
}

const UP: [Event; 5] =
    [Event::Start, Event::Admitted, Event::Prepared, Event::Launched, Event::Ready];

#[test]
fn a_start_goes_through_every_step_once() {
    let (life, actions) = after(&UP);
    assert_eq!(*life.state(), State::Running { ready: true });
    assert_eq!(actions, [Action::Queue, Action::Prepare, Action::Launch]);
}

#[test]
fn a_stop_becomes_harder_at_its_deadlines_only() {
    let (mut life, _) = after(&UP);
    let mut now = Instant::now();
    assert_eq!(life.handle(Event::Stop { force: false }, now), [Action::AskAgent]);
    assert_eq!(life.handle(Event::Tick, now), []);
    for action in [Action::PressPower, Action::Kill, Action::Kill] {
        now = life.deadline().unwrap();
        assert_eq!(life.handle(Event::Tick, now - Duration::from_nanos(1)), []);
        assert_eq!(life.handle(Event::Tick, now), [action]);
    }
    let fault = Some("killed".to_owned());
    assert_eq!(life.handle(Event::Gone { fault }, now), [Action::Release]);
    assert_eq!(*life.state(), State::Off);
}

#[test]
fn a_silent_agent_is_not_waited_for() {
    let (mut life, _) = after(&UP);
    let now = Instant::now();
    life.handle(Event::Stop { force: false }, now);
    assert_eq!(life.handle(Event::AgentSilent, now), [Action::PressPower]);
    assert_eq!(life.handle(Event::AgentSilent, now), []);
}

#[test]
fn a_held_guest_goes_on_when_its_block_comes_and_before_it_is_asked_to_stop() {
    let (mut life, _) = after(&UP);
    let now = Instant::now();
    let late = Event::Late { reason: "the server does not answer".to_owned() };
    assert_eq!(life.handle(late.clone(), now), [Action::Hold]);
    assert_eq!(life.handle(late.clone(), now), []);
    assert_eq!(life.handle(Event::OnTime, now), [Action::Resume]);
    assert_eq!(*life.state(), State::Running { ready: true });
    life.handle(late, now);
    let stop = life.handle(Event::Stop { force: false }, now);
    assert_eq!(stop, [Action::Resume, Action::AskAgent]);
}

#[test]
fn an_end_that_nobody_wanted_is_a_failure_with_its_reason() {
    let crash = Event::Gone { fault: Some("QEMU crashed".to_owned()) };
    let (mut life, _) = after(&UP);
    assert_eq!(life.handle(crash, Instant::now()), [Action::Release]);
    assert_eq!(*life.state(), State::Failed { reason: "QEMU crashed".to_owned() });
    let (mut life, _) = after(&UP);
    life.handle(Event::Gone { fault: None }, Instant::now());
    assert_eq!(*life.state(), State::Off);
}

#[test]
fn a_found_process_runs_without_being_launched() {
    let (life, actions) = after(&[Event::Adopted { held: None }]);
    assert_eq!((life.state(), actions.len()), (&State::Running { ready: false }, 0));
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Start),
        any::<bool>().prop_map(|force| Event::Stop { force }),
        Just(Event::Admitted),
        Just(Event::Prepared),
        Just(Event::Launched),
        prop::option::of(Just("held".to_owned())).prop_map(|held| Event::Adopted { held }),
        Just(Event::Ready),
        Just(Event::Late { reason: "late".to_owned() }),
        Just(Event::OnTime),
        prop::option::of(Just("fault".to_owned())).prop_map(|fault| Event::Gone { fault }),
        Just(Event::AgentSilent),
        Just(Event::Tick),
    ]
}

/// What was asked for and not yet given back, as the shell sees it.
fn check_actions(held: &mut bool, life: &Lifecycle, actions: &[Action]) {
    for action in actions {
        match action {
            Action::Queue => {
                assert!(!*held, "queued twice");
                *held = true;
            }
            Action::Release => {
                assert!(*held, "released what was not held");
                *held = false;
            }
            _ => assert!(*held, "{action:?} on a machine that is down"),
        }
    }
    assert_eq!(*held, !life.is_down());
    assert_eq!(life.deadline().is_some(), matches!(life.state(), State::Stopping { .. }));
}

proptest! {
    #[test]
    fn nothing_is_held_twice_or_forgotten_and_every_stop_ends(
        steps in prop::collection::vec((events(), 0u64..100), 0..200)
    ) {
        let (mut life, mut now, mut held) = (Lifecycle::default(), Instant::now(), false);
        for (event, seconds) in steps {
            now += Duration::from_secs(seconds);
            let adopted = matches!(event, Event::Adopted { .. }) && life.is_down();
            let before = life.state().clone();
            let actions = life.handle(event, now);
            held |= adopted;
            check_actions(&mut held, &life, &actions);
            if let (State::Stopping { means: old, .. }, State::Stopping { means: new, .. }) =
                (&before, life.state())
            {
                prop_assert!(new >= old, "a stop became gentler");
            }
        }
        life.handle(Event::Stop { force: false }, now);
        for _ in 0..3 {
            if let Some(until) = life.deadline() {
                life.handle(Event::Tick, until);
            }
        }
        let forced = matches!(life.state(), State::Stopping { means: Means::Force, .. });
        prop_assert!(forced || life.is_down());
        life.handle(Event::Gone { fault: None }, now);
        prop_assert_eq!(life.state(), &State::Off);
    }
}
