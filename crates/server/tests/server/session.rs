//! Coming in: first contact, joining, logging in and out, passwords.

use crate::world::{World, debian, on_both_databases};

on_both_databases! {
    a_person_logs_in_at_a_joined_host_and_sees_what_their_group_was_granted
}

async fn a_person_logs_in_at_a_joined_host_and_sees_what_their_group_was_granted(world: World) {
    world.peopled().await;
    let attic = world.join("attic").await;
    let ann = world.login(&attic, "ann").await;
    let (profile, tag) = ann.client.profile(None).await.unwrap().unwrap();
    assert_eq!(profile.appliances[0].name, debian());
    assert!(ann.client.profile(tag.as_deref()).await.unwrap().is_none());
    let subscription = ann.subscribe().await.unwrap();
    assert_eq!(ann.subscribe().await.unwrap(), subscription);
    let (profile, _) = ann.client.profile(tag.as_deref()).await.unwrap().unwrap();
    assert_eq!(profile.subscriptions, [subscription]);
    let bob = world.login(&attic, "bob").await;
    let (profile, _) = bob.client.profile(None).await.unwrap().unwrap();
    assert!(profile.appliances.is_empty() && profile.subscriptions.is_empty());
}
