//! Pruning beside readers and publishers that are in the middle of something.

use std::sync::Arc;
use std::time::Duration;

use collective_model::{DiskRole, Epoch, ErrorKind, Silent, Timestamp};
use collective_repository::backend::{
    Backend, CallKind, Commit, Directory, Fault, Faulty, Memory, ObjectName,
};
use collective_repository::retention::{Reason, notes_of_undo};
use collective_repository::{PruneOptions, PruneReport, Publication, Repository, Retention, Trust};
use futures::FutureExt;

use crate::world::{World, check, layer, publication, read, stored_packs, version, whole};

const GRACE: Duration = Duration::from_millis(1000);

async fn prune(repository: &Repository, keep_last: u64, now: i64) -> PruneReport {
    let (keep, now) = (Vec::new(), Timestamp(now));
    let rule = Retention::of_last(keep_last);
    let options = PruneOptions { rule, keep, grace: GRACE, now, dry_run: false };
    repository.prune(options).await.unwrap()
}

/// Three versions that share nothing.
async fn three_versions(memory: &Arc<Memory>) -> World {
    let world = World::public(memory.clone()).await;
    for number in 0..3_u16 {
        let content: Vec<u16> = (1..50).map(|block| 100 * number + block).collect();
        world.publish(u64::from(number), vec![whole(&content)]).await.unwrap();
    }
    world
}

#[tokio::test]
async fn versions_go_at_once_and_packs_after_the_grace() {
    let memory = Arc::new(Memory::new());
    let world = three_versions(&memory).await;
    let before = stored_packs(&*memory).await;
    let first = prune(&world.repository, 1, 10_000).await;
    assert_eq!(first.removed_versions, [version(1), version(2)]);
    assert_eq!(first.kept_versions, [(version(3), Reason::Head)].into());
    assert_eq!(first.waiting_objects, 4, "an index and a pack each");
    assert_eq!(stored_packs(&*memory).await, before);
    let error = world.repository.version(version(1)).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::NotFound && error.to_string().contains("removed"),
        "{error}"
    );

    let second = prune(&world.repository, 1, 11_000).await;
    assert_eq!((second.removed_objects, second.waiting_objects), (4, 0));
    assert_eq!(memory.list("packs/").await.unwrap().len(), 1);
    assert!(world.repository.verify(&Silent).await.unwrap().damages.is_empty());
}

#[tokio::test]
async fn a_dry_run_says_the_same_and_does_nothing() {
    let memory = Arc::new(Memory::new());
    let world = three_versions(&memory).await;
    let before = memory.list("").await.unwrap();
    let options = PruneOptions {
        rule: Retention::of_last(1),
        keep: vec![version(2)],
        grace: GRACE,
        now: Timestamp(10_000),
        dry_run: true,
    };
    let said = world.repository.prune(options.clone()).await.unwrap();
    assert_eq!(memory.list("").await.unwrap(), before);
    let done = world.repository.prune(PruneOptions { dry_run: false, ..options }).await.unwrap();
    assert_eq!(said, done);
    let expected = [(version(2), Reason::Named), (version(3), Reason::Head)];
    assert_eq!(done.kept_versions, expected.into());
}

#[tokio::test]
async fn a_version_to_keep_that_is_not_there_is_named_and_nothing_goes() {
    let memory = Arc::new(Memory::new());
    let world = three_versions(&memory).await;
    let (rule, keep, now) = (Retention::of_last(1), vec![version(7)], Timestamp(10_000));
    let options = PruneOptions { rule, keep, grace: GRACE, now, dry_run: false };
    let error = world.repository.prune(options).await.unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("version 7"));
    assert_eq!(world.repository.versions().await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_user_disk_is_pruned_without_its_secret_and_keeps_what_an_undo_needs() {
    let memory = Arc::new(Memory::new());
    let world = World::private(memory.clone()).await;
    for number in 0..6 {
        let content = vec![number as u16 + 1; 4];
        let notes = if number == 2 { notes_of_undo(version(1)) } else { String::new() };
        let publication = Publication { notes, ..publication(number, vec![whole(&content)]) };
        world.repository.publish(publication, &world.key, &Silent).await.unwrap();
    }
    let trust = Trust { secret: None, ..world.trust.clone() };
    let keeper = Repository::open(memory.clone(), trust).await.unwrap();
    let report = prune(&keeper, 1, 10_000).await;
    let expected = [
        (version(2), Reason::Replaced),
        (version(3), Reason::Replaced),
        (version(5), Reason::Undo),
        (version(6), Reason::Head),
    ];
    assert_eq!(report.kept_versions, expected.into());
    assert_eq!(report.removed_versions, [version(1), version(4)]);
    assert_eq!(prune(&keeper, 1, 20_000).await.removed_objects, 4);
    for (number, content) in [(2, 2), (3, 3), (5, 5), (6, 6)] {
        check(&world.repository, number, &[content; 4]).await;
    }
    assert!(keeper.verify(&Silent).await.unwrap().damages.is_empty());
}

#[tokio::test]
async fn a_reader_of_a_removed_version_reads_on() {
    let memory = Arc::new(Memory::new());
    let world = three_versions(&memory).await;
    let reader = world.repository.version(version(1)).await.unwrap();
    prune(&world.repository, 1, 10_000).await;
    let disk = reader.disk(DiskRole::System).await.unwrap();
    read(&disk).await.unwrap();
}

#[tokio::test]
async fn a_publisher_whose_base_is_removed_meanwhile_publishes() {
    let memory = Arc::new(Memory::new());
    let world = three_versions(&memory).await;
    let content: Vec<u16> = (1..50).collect();
    prune(&world.repository, 2, 10_000).await;
    // What nothing reaches any more is reached again by a publication that stores equal blocks.
    memory.set_now(Timestamp(10_500));
    world.publish(3, vec![whole(&content)]).await.unwrap();
    prune(&world.repository, 2, 11_000).await;
    check(&world.repository, 4, &content).await;
}

#[tokio::test]
async fn what_a_publication_reaches_again_while_a_prune_is_under_way_stays() {
    let memory = Arc::new(Memory::new());
    let world = three_versions(&memory).await;
    // Version 4 goes back to version 1; it is made elsewhere, and arrives in the middle of the second prune.
    let twin = World { backend: Arc::new(Memory::new()), ..World::public(memory.clone()).await };
    for object in memory.list("").await.unwrap() {
        let bytes = memory.read(&object.name, None).await.unwrap();
        twin.backend.write(&object.name, bytes).await.unwrap();
    }
    let elsewhere = twin.reopen(twin.backend.clone()).await.unwrap();
    let again = publication(3, vec![layer(49, Some(1), vec![])]);
    elsewhere.publish(again, &twin.key, &Silent).await.unwrap();
    let index = twin.backend.list("versions/4/").await.unwrap();
    let index = index.iter().find(|it| matches!(it.name, ObjectName::Part { .. })).unwrap().name;
    let index_bytes = twin.backend.read(&index, None).await.unwrap();
    let manifest = twin.backend.read(&ObjectName::Manifest(version(4)), None).await.unwrap();
    prune(&world.repository, 1, 10_000).await;

    let lists = std::sync::atomic::AtomicU64::new(0);
    let inner = memory.clone();
    let arriving = Faulty::new(memory.clone(), move |call| {
        let is_list = call.kind == CallKind::List;
        // The second list is made when all manifests were read.
        if is_list && lists.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 1 {
            let commit =
                Commit { version: version(4), manifest: manifest.clone(), epoch: Epoch(1) };
            inner.write(&index, index_bytes.clone()).now_or_never().unwrap().unwrap();
            inner.commit(commit).now_or_never().unwrap().unwrap();
        }
        Fault::Pass
    });
    let beside = world.reopen(Arc::new(arriving)).await.unwrap();
    let report = prune(&beside, 1, 20_000).await;
    assert_eq!(report.removed_objects, 3, "the pack of version 2, and the indexes of both");
    let content: Vec<u16> = (1..50).collect();
    check(&world.repository, 4, &content).await;
    assert!(world.repository.verify(&Silent).await.unwrap().damages.is_empty());
}

#[tokio::test]
async fn an_upload_that_no_manifest_names_yet_is_not_cut() {
    let memory = Arc::new(Memory::new());
    let world = World::public(memory.clone()).await;
    world.publish(0, vec![whole(&[1, 2, 3])]).await.unwrap();
    let twin = World::public(Arc::new(Memory::new())).await;
    twin.publish(0, vec![whole(&[1, 2, 3])]).await.unwrap();
    twin.publish(1, vec![layer(3, Some(1), vec![(0, vec![9])])]).await.unwrap();
    // The packs of version 2 arrive here, its manifest not yet.
    for pack in twin.backend.list("packs/").await.unwrap() {
        let bytes = twin.backend.read(&pack.name, None).await.unwrap();
        memory.write(&pack.name, bytes).await.unwrap();
    }
    assert_eq!(prune(&world.repository, 1, 10).await.waiting_objects, 1);
    assert_eq!(prune(&world.repository, 1, 900).await.waiting_objects, 1);
    world.publish(1, vec![layer(3, Some(1), vec![(0, vec![9])])]).await.unwrap();
    assert_eq!(
        prune(&world.repository, 1, 5000).await.removed_objects,
        1,
        "the manifest of version 1"
    );
    check(&world.repository, 2, &[9, 2, 3]).await;
}

#[tokio::test]
async fn a_commit_that_names_a_swept_pack_is_refused() {
    let memory = Arc::new(Memory::new());
    let world = three_versions(&memory).await;
    let refuse_nothing = publication(3, vec![layer(49, Some(1), vec![])]);
    let swept = world.repository.version(version(1)).await.unwrap().manifest().packs[0].id;
    memory.delete(&ObjectName::Pack(swept)).await.unwrap();
    let error = world.repository.publish(refuse_nothing, &world.key, &Silent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains(&swept.to_string()), "{error}");
    assert_eq!(world.repository.head().await.unwrap(), Some(version(3)));
}

#[tokio::test]
async fn leftovers_of_broken_writes_go_and_a_damaged_manifest_stops_everything() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Directory::create(directory.path().join("repository")).unwrap();
    let world = World::public(Arc::new(backend.clone())).await;
    for number in 0..3 {
        world.publish(number, vec![whole(&[number as u16 + 1])]).await.unwrap();
    }
    let leftover = backend.path().join("packs/.tmp-abc");
    std::fs::write(&leftover, "half a pack").unwrap();
    let now = Timestamp::from(std::time::SystemTime::now()).after(2 * GRACE);
    let manifest = backend.path().join("versions/2/manifest.json");
    let intact = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, &intact[1..]).unwrap();
    let (keep, dry_run) = (Vec::new(), false);
    let options = PruneOptions { rule: Retention::of_last(2), keep, grace: GRACE, now, dry_run };
    let error = world.repository.prune(options.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(backend.path().join("versions/1/manifest.json").exists());
    std::fs::write(&manifest, &intact).unwrap();
    world.repository.prune(options).await.unwrap();
    assert!(!backend.path().join("versions/1/manifest.json").exists());
    assert!(!leftover.exists());
    check(&world.repository, 2, &[2]).await;
}
