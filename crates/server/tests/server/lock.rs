//! The lock of a subscription: one holder at a time, whatever happens.

use collective_api::server::{Lock, RenewLock, Subscription, TakeLock};
use collective_model::{Epoch, ErrorKind, Result};
use futures::future::join_all;

use crate::world::{Person, World, on_both_databases};

on_both_databases! {
    of_many_concurrent_takers_one_wins_and_every_break_has_a_number_of_its_own
    a_held_lock_says_who_holds_it_and_a_broken_one_is_over_for_ever
    a_lease_that_ran_out_is_taken_over_only_if_nothing_was_left_to_back_up
    anothers_subscription_does_not_exist
}

const TAKERS: usize = 6;

async fn of_many_concurrent_takers_one_wins_and_every_break_has_a_number_of_its_own(world: World) {
    world.peopled().await;
    let mut people = Vec::new();
    for number in 0..TAKERS {
        let computer = world.join(&format!("host-{number}")).await;
        people.push(world.login(&computer, "ann").await);
    }
    let subscription = people[0].subscribe().await.unwrap();

    let taken = join_all(people.iter().map(|person| take(person, &subscription, false))).await;
    let (winners, losers): (Vec<_>, Vec<_>) = taken.into_iter().partition(Result::is_ok);
    assert_eq!(winners.len(), 1);
    assert!(losers.iter().all(|lost| lost.as_ref().unwrap_err().kind() == ErrorKind::Conflict));

    let broken = join_all(people.iter().map(|person| take(person, &subscription, true))).await;
    let mut locks: Vec<Lock> = broken.into_iter().map(Result::unwrap).collect();
    locks.sort_by_key(|lock| lock.epoch);
    let first = winners[0].as_ref().unwrap();
    let again = locks.iter().filter(|lock| lock.host == first.host && lock.epoch == first.epoch);
    let again = again.count();
    let mut epochs: Vec<u64> = locks.iter().map(|lock| lock.epoch.0).collect();
    epochs.dedup();
    assert_eq!(epochs.len(), TAKERS, "each has its own: {epochs:?}");
    assert_eq!(*epochs.last().unwrap(), (TAKERS + 1 - again) as u64);
}

async fn a_held_lock_says_who_holds_it_and_a_broken_one_is_over_for_ever(world: World) {
    world.peopled().await;
    let (attic, cellar) = (world.join("attic").await, world.join("cellar").await);
    let ann = world.login(&attic, "ann").await;
    let too = world.login(&cellar, "ann").await;
    let subscription = ann.subscribe().await.unwrap();
    let first = take(&ann, &subscription, false).await.unwrap();
    assert_eq!(take(&ann, &subscription, false).await.unwrap().epoch, first.epoch);
    renew(&ann, &subscription, first.epoch, 4096).await.unwrap();

    let error = take(&too, &subscription, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("`attic`"), "{error}");
    assert!(error.hint().unwrap().contains("--break-lock"), "{error:?}");
    let (profile, _) = too.client.profile(None).await.unwrap().unwrap();
    let shown = profile.subscriptions[0].lock.clone().unwrap();
    assert_eq!((shown.host, shown.backlog_bytes), (attic.id, Some(4096)));

    let second = take(&too, &subscription, true).await.unwrap();
    assert!(second.epoch > first.epoch);
    let error = renew(&ann, &subscription, first.epoch, 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    // What is no longer ours is released already; it stays the other's.
    ann.client.release_lock(subscription.id, first.epoch).await.unwrap();
    assert!(renew(&too, &subscription, second.epoch, 0).await.is_ok());
    too.client.release_lock(subscription.id, second.epoch).await.unwrap();
    assert!(take(&ann, &subscription, false).await.unwrap().epoch > second.epoch);
    let audit = world.admin.audit().await.unwrap();
    assert!(audit.iter().any(|line| line.what.contains("took the lock")), "{audit:?}");
}

async fn a_lease_that_ran_out_is_taken_over_only_if_nothing_was_left_to_back_up(world: World) {
    world.peopled().await;
    let (attic, cellar) = (world.join("attic").await, world.join("cellar").await);
    let ann = world.login(&attic, "ann").await;
    let too = world.login(&cellar, "ann").await;
    let subscription = ann.subscribe().await.unwrap();
    let first = take(&ann, &subscription, false).await.unwrap();
    renew(&ann, &subscription, first.epoch, 1).await.unwrap();
    world.sql("update subscriptions set expires = 1").await;
    assert_eq!(take(&too, &subscription, false).await.unwrap_err().kind(), ErrorKind::Conflict);

    renew(&ann, &subscription, first.epoch, 0).await.unwrap();
    assert_eq!(take(&too, &subscription, false).await.unwrap_err().kind(), ErrorKind::Conflict);
    world.sql("update subscriptions set expires = 1").await;
    assert!(take(&too, &subscription, false).await.unwrap().epoch > first.epoch);
}

async fn anothers_subscription_does_not_exist(world: World) {
    world.peopled().await;
    let attic = world.join("attic").await;
    let ann = world.login(&attic, "ann").await;
    let bob = world.login(&attic, "bob").await;
    let mut subscription = ann.subscribe().await.unwrap();
    let foreign = take(&bob, &subscription, true).await.unwrap_err();
    let id = subscription.id;
    subscription.id.0[0] ^= 1;
    let unknown = take(&bob, &subscription, true).await.unwrap_err();
    assert_eq!((foreign.kind(), unknown.kind()), (ErrorKind::NotFound, ErrorKind::NotFound));
    let known = foreign.to_string().replace(&id.to_string(), &subscription.id.to_string());
    assert_eq!(known, unknown.to_string());
    assert_eq!(bob.subscribe().await.unwrap_err().kind(), ErrorKind::Denied);
}

pub async fn take(person: &Person, subscription: &Subscription, break_lock: bool) -> Result<Lock> {
    person.client.take_lock(subscription.id, &TakeLock { break_lock }).await
}

async fn renew(
    person: &Person,
    subscription: &Subscription,
    epoch: Epoch,
    backlog_bytes: u64,
) -> Result<Lock> {
    person.client.renew_lock(subscription.id, &RenewLock { epoch, backlog_bytes }).await
}
