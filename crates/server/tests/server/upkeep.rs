//! What the server does for its repositories by itself: pruning by rules, and checks whose results it remembers.

use std::time::Duration;

use collective_api::server::{CheckStatus, SetRetention, TakeLock};
use collective_model::{DiskRole, Epoch, ErrorKind, RepositoryId, Version};
use collective_repository::backend::Backend;
use collective_repository::retention::USER_DISKS;
use collective_repository::{Repository, Retention};
use collective_server::UpkeepSettings;

use crate::repository::{backend, publish, publish_system};
use crate::world::{World, debian, on_both_databases};

on_both_databases! {
    an_appliance_is_pruned_by_its_rule_and_never_without_one
    a_user_disk_is_pruned_without_its_key_but_not_while_an_undo_may_be_under_way
    checks_are_made_by_themselves_and_what_they_found_is_shown
    a_check_goes_on_after_a_restart
    only_administrators_set_rules_and_everybody_sees_that_of_user_disks
}

/// As fast as can be.
const BUSY: UpkeepSettings = UpkeepSettings {
    look_every: Duration::from_millis(20),
    prune_every: Duration::ZERO,
    verify_every: Duration::ZERO,
    verify_bytes_s: u64::MAX,
};

/// How long anything may take that is waited for.
const LIMIT: Duration = Duration::from_secs(60);

async fn an_appliance_is_pruned_by_its_rule_and_never_without_one(mut world: World) {
    let key = world.peopled().await;
    for seed in 1..4 {
        publish_system(&world, &key, seed).await.unwrap();
    }
    let other = world.appliance("other").await;
    let repository = world.open("other").await;
    for seed in 1..3 {
        publish(&repository, &other, DiskRole::System, Epoch(0), seed).await.unwrap();
    }
    set(&world, "debian", Some(Retention::of_last(1))).await;
    restart(&mut world, BUSY).await;
    let debian = world.open("debian").await;
    until("debian is pruned", async || versions(&debian).await == [3]).await;
    let other = world.open("other").await;
    assert_eq!(versions(&other).await, [1, 2], "no rule, no pruning");
    let line = "pruned 2 versions of debian by its rule";
    let said = async || world.admin.audit().await.unwrap().iter().any(|it| it.what == line);
    until("the audit log says so", said).await;
    let error = set_rule(&world, "debian", Some(Retention::default())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

async fn a_user_disk_is_pruned_without_its_key_but_not_while_an_undo_may_be_under_way(
    mut world: World,
) {
    let key = world.peopled().await;
    let ann = world.join("attic").await;
    let ann = world.login(&ann, "ann").await;
    let subscription = ann.subscribe().await.unwrap();
    let id = subscription.id;
    let lock = ann.client.take_lock(id, &TakeLock { break_lock: false }).await.unwrap();
    let disk = ann.open(&subscription, lock.epoch).await;
    let signer = ann.secret.repository_secret(subscription.repository.id).signing_key();
    for seed in 1..6 {
        publish(&disk, &signer, DiskRole::User, lock.epoch, seed).await.unwrap();
    }
    let only_last = SetRetention { rule: Some(Retention::of_last(1)) };
    world.admin.set_user_disk_retention(&only_last).await.unwrap();
    set(&world, "debian", only_last.rule).await;
    restart(&mut world, BUSY).await;
    // Between two prunes of the appliance, the user disk had its turn.
    for seed in [1, 3] {
        publish_system(&world, &key, seed).await.unwrap();
        let debian = world.open("debian").await;
        let next = publish_system(&world, &key, seed + 1).await.unwrap().version;
        until("debian is pruned", async || versions(&debian).await == [next.number()]).await;
    }
    let path = world.dir.path().join("repositories").join(disk.descriptor().id.to_string());
    let versions = || std::fs::read_dir(path.join("versions")).unwrap().count();
    assert_eq!(versions(), 5, "the lock was taken just now");
    // The holder is done; it cannot be asked through the old address.
    world.sql("update subscriptions set holder = null").await;
    // The head, the one before, and nothing else but what their grace keeps.
    let manifests = || {
        let has = |number: u64| path.join(format!("versions/{number}/manifest.json")).exists();
        (1..6).filter(|number| has(*number)).collect::<Vec<_>>()
    };
    until("the user disk is pruned", async || manifests() == [4, 5]).await;
}

async fn checks_are_made_by_themselves_and_what_they_found_is_shown(mut world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    let before = world.admin.upkeep().await.unwrap();
    assert_eq!((before.repositories, before.unchecked, before.oldest_check), (1, 1, None));
    restart(&mut world, BUSY).await;
    until("debian is checked", async || check(&world).await.finished.is_some()).await;
    let well = check(&world).await;
    assert!(well.bytes > 1 << 20 && well.objects >= 5 && well.damaged == 0, "{well:?}");
    let upkeep = world.admin.upkeep().await.unwrap();
    assert_eq!((upkeep.repositories, upkeep.unchecked), (1, 0));
    assert!(upkeep.oldest_check.is_some() && upkeep.damaged.is_empty(), "{upkeep:?}");

    flip_a_byte_of_a_pack(&world).await;
    until("the damage is found", async || check(&world).await.damaged > 0).await;
    let damaged = world.admin.upkeep().await.unwrap().damaged;
    assert_eq!((&damaged[0].appliance, &damaged[0].user), (&debian(), &None));
    assert!(damaged[0].check.damages[0].object.starts_with("packs/"), "{damaged:?}");
    // What was asked for is remembered like what was not.
    restart(&mut world, UpkeepSettings::default()).await;
    flip_a_byte_of_a_pack(&world).await;
    assert!(world.admin.verify_appliance(&debian()).await.unwrap().damages.is_empty());
    assert_eq!(check(&world).await.damaged, 0);
}

async fn a_check_goes_on_after_a_restart(mut world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    // At a byte a second it rests for hours after the first object that is counted.
    restart(&mut world, UpkeepSettings { verify_bytes_s: 1, ..BUSY }).await;
    until("a check is under way", async || check(&world).await.under_way_bytes.is_some()).await;
    world.stop().await;
    world.upkeep = UpkeepSettings::default();
    world.start().await.unwrap();
    let kept = check(&world).await;
    assert!(kept.under_way_bytes.is_some_and(|bytes| bytes > 0) && kept.finished.is_none());
    restart(&mut world, BUSY).await;
    until("it is done", async || check(&world).await.finished.is_some()).await;
    assert!(check(&world).await.bytes > 1 << 20);
}

async fn only_administrators_set_rules_and_everybody_sees_that_of_user_disks(world: World) {
    world.peopled().await;
    let attic = world.join("attic").await;
    let ann = world.login(&attic, "ann").await;
    let rule = async || ann.client.profile(None).await.unwrap().unwrap().0.user_disk_retention;
    assert_eq!(rule().await, Some(USER_DISKS), "the usual one");
    let other = Some(Retention { daily: 5, ..Retention::default() });
    for wanted in [other, None, Some(USER_DISKS)] {
        let request = SetRetention { rule: wanted };
        let denied = ann.client.set_user_disk_retention(&request).await.unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::Denied);
        world.admin.set_user_disk_retention(&request).await.unwrap();
        assert_eq!(rule().await, wanted);
        assert_eq!(world.admin.upkeep().await.unwrap().user_disks, wanted);
    }
    for denied in [
        ann.client.upkeep().await.map(drop),
        ann.client.set_appliance_retention(&debian(), &SetRetention { rule: None }).await,
    ] {
        assert_eq!(denied.unwrap_err().kind(), ErrorKind::Denied);
    }
    set(&world, "debian", other).await;
    assert_eq!(world.admin.appliance(&debian()).await.unwrap().retention, other);
    let error = set_rule(&world, "nothing", other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

async fn restart(world: &mut World, upkeep: UpkeepSettings) {
    world.stop().await;
    world.upkeep = upkeep;
    world.start().await.unwrap();
}

async fn set(world: &World, name: &str, rule: Option<Retention>) {
    set_rule(world, name, rule).await.unwrap();
}

async fn set_rule(
    world: &World,
    name: &str,
    rule: Option<Retention>,
) -> collective_model::Result<()> {
    let request = SetRetention { rule };
    world.admin.set_appliance_retention(&name.parse().unwrap(), &request).await
}

async fn check(world: &World) -> CheckStatus {
    world.admin.appliance(&debian()).await.unwrap().check
}

async fn versions(repository: &Repository) -> Vec<u64> {
    repository.versions().await.unwrap().into_iter().map(Version::number).collect()
}

async fn flip_a_byte_of_a_pack(world: &World) {
    let id: RepositoryId = world.admin.appliance(&debian()).await.unwrap().repository.id;
    let pack = backend(&world.admin, id, 0).list("packs/").await.unwrap()[0].name;
    let path = world.dir.path().join(format!("repositories/{id}/{pack}"));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

/// Waits for what the server does by itself.
async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(BUSY.look_every).await;
        }
    };
    assert!(tokio::time::timeout(LIMIT, wait).await.is_ok(), "{what}: not within {LIMIT:?}");
}
