//! Repositories over HTTP: who may, what is taken, what is published, and what a crash leaves.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use collective_api::server::{PruneRequest, ServerClient, TakeLock};
use collective_model::{
    BlockRange, Digest, DiskRole, Epoch, ErrorKind, Hardware, RepositoryId, Result, Silent,
    Timestamp, Version,
};
use collective_repository::backend::{Backend, Http, ObjectName, PartKind};
use collective_repository::{
    DiskSource, Piece, PieceData, Publication, Published, Repository, Retention, SigningKey,
};

use crate::lock::take;
use crate::world::{World, debian, new_id, on_both_databases, on_s3, open};

on_both_databases! {
    what_an_administrator_publishes_an_entitled_person_reads_and_nobody_else
    ranges_are_served_as_asked
    a_lying_upload_is_refused_and_leaves_nothing
    what_is_not_published_is_not_there_and_what_is_published_stays
    a_publication_needs_its_objects_its_signature_and_its_number
    a_host_that_lost_the_lock_can_neither_upload_nor_publish
    a_crash_between_head_and_latest_is_repaired
    what_a_kill_left_of_uploads_and_of_new_repositories_is_swept_at_the_start
    verify_and_prune_work_where_the_objects_are
    a_removed_appliance_takes_its_objects_along
}

on_s3! {
    what_an_administrator_publishes_an_entitled_person_reads_and_nobody_else
    ranges_are_served_as_asked
    a_lying_upload_is_refused_and_leaves_nothing
    what_is_not_published_is_not_there_and_what_is_published_stays
    a_publication_needs_its_objects_its_signature_and_its_number
    a_host_that_lost_the_lock_can_neither_upload_nor_publish
    a_crash_between_head_and_latest_is_repaired
    verify_and_prune_work_where_the_objects_are
    a_removed_appliance_takes_its_objects_along
    a_store_of_another_server_is_refused
    what_a_kill_left_in_a_store_is_swept_at_the_start
    objects_that_are_elsewhere_are_told_and_nothing_is_put_in_their_place
}

const DISK_BYTES: u64 = 1 << 20;
/// More than the buffers between a client and its server.
const LARGE_BYTES: usize = 40 << 20;

async fn what_an_administrator_publishes_an_entitled_person_reads_and_nobody_else(world: World) {
    let key = world.peopled().await;
    let version = publish_system(&world, &key, 1).await.unwrap().version;
    let attic = world.join("attic").await;
    let (ann, bob) = (world.login(&attic, "ann").await, world.login(&attic, "bob").await);
    let (profile, _) = ann.client.profile(None).await.unwrap().unwrap();
    assert_eq!(profile.appliances[0].head, Some(version));
    let descriptor = &profile.appliances[0].repository;
    let repository = open(&ann.client, descriptor, Epoch(0), None).await.unwrap();
    let disk = repository.version(version).await.unwrap().disk(DiskRole::System).await.unwrap();
    assert_eq!(disk.size_bytes(), DISK_BYTES);

    let objects = backend(&ann.client, descriptor.id, 0);
    let error = objects.write(&ObjectName::Latest, Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    for client in [&bob.client, &attic.client, &world.client(None)] {
        let known = backend(client, descriptor.id, 0).head().await.unwrap_err();
        let id = new_id();
        let unknown = backend(client, id, 0).head().await.unwrap_err();
        assert_eq!(known.kind(), ErrorKind::Denied);
        let known = known.chain().replace(&descriptor.id.to_string(), &id.to_string());
        assert_eq!(known, unknown.chain());
    }
}

async fn ranges_are_served_as_asked(world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    let (objects, pack) = a_pack(&world).await;
    let whole = objects.read(&pack, None).await.unwrap();
    assert_eq!(objects.size(&pack).await.unwrap(), Some(whole.len() as u64));
    for range in [0..1, 1000..5000, whole.len() as u64 - 1..whole.len() as u64] {
        let part = objects.read(&pack, Some(range.clone())).await.unwrap();
        assert_eq!(part, whole.slice(range.start as usize..range.end as usize));
    }
    let beyond = objects.read(&pack, Some(whole.len() as u64..whole.len() as u64 + 9)).await;
    assert_eq!(beyond.unwrap_err().kind(), ErrorKind::Corrupt);
}

async fn a_lying_upload_is_refused_and_leaves_nothing(world: World) {
    world.peopled().await;
    let objects = admin_objects(&world).await;
    let before = files(&world);
    let name = ObjectName::Pack(Digest([7; 32]));
    let error = objects.write(&name, Bytes::from(vec![1; 3 << 20])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.chain().contains(&name.to_string()), "{error:?}");
    let version = Version::FIRST;
    let trace = ObjectName::part(version, DiskRole::System, PartKind::Trace, &Digest([1; 32]));
    let endless = vec![0; trace.limit_bytes() as usize + 1];
    assert_eq!(objects.write(&trace, endless.into()).await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(files(&world), before);
}

async fn what_is_not_published_is_not_there_and_what_is_published_stays(world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    let objects = admin_objects(&world).await;
    let second = Version::new(2).unwrap();
    let part =
        |version| ObjectName::part(version, DiskRole::System, PartKind::Index, &Digest([1; 32]));
    objects.write(&part(second), Bytes::from_static(b"half")).await.unwrap();
    assert_eq!(objects.size(&part(second)).await.unwrap(), None);
    let listed = objects.list("versions/").await.unwrap();
    assert!(!listed.is_empty() && listed.iter().all(|o| o.name.version() == Some(Version::FIRST)));
    for name in
        [ObjectName::Latest, ObjectName::Descriptor, ObjectName::Sweep, part(Version::FIRST)]
    {
        let error = objects.write(&name, Bytes::from_static(b"1")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{name}");
    }
    assert_eq!(objects.head().await.unwrap(), Some(Version::FIRST));
}

async fn a_publication_needs_its_objects_its_signature_and_its_number(world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    let objects = admin_objects(&world).await;
    let first = objects.read(&ObjectName::Manifest(Version::FIRST), None).await.unwrap();
    let commit = |version: u64, manifest: &Bytes| collective_repository::backend::Commit {
        version: Version::new(version).unwrap(),
        manifest: manifest.clone(),
        epoch: Epoch(0),
    };
    assert_eq!(objects.commit(commit(1, &first)).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(objects.commit(commit(3, &first)).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(objects.commit(commit(2, &first)).await.unwrap_err().kind(), ErrorKind::Corrupt);
    let error = publish_system(&world, &SigningKey::generate(), 2).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Denied | ErrorKind::Invalid));

    // The same version prepared elsewhere, without its packs.
    let pack = a_pack(&world).await.1;
    let path = world.repositories().join(repository_id(&world).await.to_string());
    std::fs::remove_file(path.join(pack.to_string())).unwrap();
    let error = republish(&world, &key).await.unwrap_err();
    assert!(error.chain().contains(&pack.to_string()), "{}", error.chain());
    assert_eq!(objects.head().await.unwrap(), Some(Version::FIRST));
}

async fn a_host_that_lost_the_lock_can_neither_upload_nor_publish(world: World) {
    world.peopled().await;
    let (attic, cellar) = (world.join("attic").await, world.join("cellar").await);
    let (ann, too) = (world.login(&attic, "ann").await, world.login(&cellar, "ann").await);
    let subscription = ann.subscribe().await.unwrap();
    let first = take(&ann, &subscription, false).await.unwrap().epoch;
    let here = ann.open(&subscription, first).await;
    let key = ann.secret.repository_secret(subscription.repository.id).signing_key();
    publish(&here, &key, DiskRole::User, first, 1).await.unwrap();
    let broken = too.client.take_lock(subscription.id, &TakeLock { break_lock: true }).await;
    let second = broken.unwrap().epoch;

    let error = publish(&here, &key, DiskRole::User, first, 2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let elsewhere = backend(&ann.client, subscription.repository.id, second.0);
    let name = ObjectName::Pack(Digest([7; 32]));
    let error = elsewhere.write(&name, Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "another's number is no right");
    let large = backend(&ann.client, subscription.repository.id, first.0);
    let error = large.write(&name, vec![1; LARGE_BYTES].into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "who still writes is told too: {error:?}");

    let there = too.open(&subscription, second).await;
    let published = publish(&there, &key, DiskRole::User, second, 3).await.unwrap();
    assert_eq!(published.version.number(), 2);
    too.client.release_lock(subscription.id, second).await.unwrap();
    let error = publish(&there, &key, DiskRole::User, second, 4).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let error = publish(&here, &key, DiskRole::User, first, 5).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

async fn a_crash_between_head_and_latest_is_repaired(mut world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    publish_system(&world, &key, 2).await.unwrap();
    let id = repository_id(&world).await;
    world.stop().await;
    let path = world.repositories().join(id.to_string()).join("latest");
    let right = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    world.start().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), right);
    assert_eq!(admin_objects(&world).await.head().await.unwrap(), Version::new(2));
    publish_system(&world, &key, 3).await.unwrap();
}

async fn what_a_kill_left_of_uploads_and_of_new_repositories_is_swept_at_the_start(
    mut world: World,
) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    world.appliance("empty").await;
    let empty = world.admin.appliance(&"empty".parse().unwrap()).await.unwrap().repository.id;
    let id = repository_id(&world).await;
    world.stop().await;
    let repositories = world.repositories();
    let before = files(&world);
    for place in ["", "packs", "versions/1"] {
        std::fs::write(repositories.join(id.to_string()).join(place).join(".tmp-abc"), "x")
            .unwrap();
    }
    // Made for rows that never came, at three moments.
    let strangers = [1, 2, 3].map(|byte| repositories.join(RepositoryId([byte; 16]).to_string()));
    strangers.iter().for_each(|path| std::fs::create_dir(path).unwrap());
    std::fs::write(strangers[1].join("repository.json"), "{}").unwrap();
    std::fs::write(strangers[2].join(".tmp-abc"), "half").unwrap();
    // A repository of another database has versions; it stays.
    let foreign = repositories.join(RepositoryId([4; 16]).to_string());
    std::fs::create_dir_all(foreign.join("versions/1")).unwrap();
    std::fs::write(foreign.join("repository.json"), "{}").unwrap();
    // And what another database's server took for a stranger is made again.
    std::fs::remove_dir_all(repositories.join(empty.to_string())).unwrap();

    world.start().await.unwrap();
    assert!(strangers.iter().all(|path| !path.exists()), "{strangers:?}");
    assert!(foreign.join("repository.json").exists());
    assert_eq!(files(&world), before + 1, "what was there, and the foreign one");
    let open = world.open("empty").await;
    assert_eq!(open.head().await.unwrap(), None);
    publish_system(&world, &key, 2).await.unwrap();
}

async fn verify_and_prune_work_where_the_objects_are(world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    publish_system(&world, &key, 2).await.unwrap();
    let report = world.admin.verify_appliance(&debian()).await.unwrap();
    assert!(report.objects > 0 && report.damages.is_empty(), "{report:?}");
    let request =
        PruneRequest { rule: Some(Retention::of_last(1)), keep: Vec::new(), dry_run: false };
    let path = world.repositories().join(repository_id(&world).await.to_string());
    // A publication that could not write `latest` any more is one all the same.
    std::fs::remove_file(path.join("latest")).unwrap();
    let report = world.admin.prune_appliance(&debian(), &request).await.unwrap();
    assert_eq!(report.versions, [Version::FIRST]);
    // The packs of version 1 are swept later, so only the other one is damage.
    for pack in admin_objects(&world).await.list("packs/").await.unwrap() {
        let path = path.join(pack.name.to_string());
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let report = world.admin.verify_appliance(&debian()).await.unwrap();
    assert!(report.damages.iter().any(|damage| damage.object.starts_with("packs/")), "{report:?}");
}

async fn a_removed_appliance_takes_its_objects_along(world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    world.admin.remove_appliance(&debian()).await.unwrap();
    assert_eq!(files(&world), 0);
    assert_eq!(world.admin.appliance(&debian()).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(world.admin.grants().await.unwrap().is_empty());
}

async fn a_store_of_another_server_is_refused(world: World) {
    let another = tempfile::tempdir().unwrap();
    let bucket = world.s3.as_ref().unwrap().bucket();
    let error =
        crate::world::start(another.path(), None, Some(bucket), world.upkeep).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    assert!(error.chain().contains("another server's"), "{error:?}");
}

async fn what_a_kill_left_in_a_store_is_swept_at_the_start(mut world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    world.appliance("empty").await;
    let empty = world.admin.appliance(&"empty".parse().unwrap()).await.unwrap().repository.id;
    world.stop().await;
    let before = files(&world);
    let bucket = world.s3.as_ref().unwrap().bucket();
    let put = async |byte, name| {
        let objects = bucket.repository(&RepositoryId([byte; 16]).to_string());
        objects.write(&name, Bytes::from_static(b"{}")).await.unwrap();
    };
    // One was made for a row that never came; the other is of another database, and has versions.
    put(1, ObjectName::Descriptor).await;
    put(2, ObjectName::Descriptor).await;
    put(2, ObjectName::Manifest(Version::FIRST)).await;
    bucket.repository(&empty.to_string()).remove_all().await.unwrap();
    world.start().await.unwrap();
    assert_eq!(files(&world), before + 2, "what was there, and the two of the other database");
    assert_eq!(world.open("empty").await.head().await.unwrap(), None);
    publish_system(&world, &key, 2).await.unwrap();
}

async fn objects_that_are_elsewhere_are_told_and_nothing_is_put_in_their_place(mut world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    let id = repository_id(&world).await;
    world.stop().await;
    let bucket = world.s3.as_ref().unwrap().bucket();
    let kept = world.repositories().with_file_name("kept");
    std::fs::rename(world.repositories().join(id.to_string()), &kept).unwrap();
    world.start().await.unwrap();
    assert_eq!(bucket.repository(&id.to_string()).list("").await.unwrap(), []);
    world.stop().await;
    // Objects have the same names everywhere, so they can be copied by whatever copies objects.
    std::fs::rename(&kept, world.repositories().join(id.to_string())).unwrap();
    world.start().await.unwrap();
    publish_system(&world, &key, 2).await.unwrap();
    assert_eq!(world.open("debian").await.head().await.unwrap(), Version::new(2));
}

pub async fn publish_system(world: &World, key: &SigningKey, seed: u8) -> Result<Published> {
    let repository = world.open("debian").await;
    publish(&repository, key, DiskRole::System, Epoch(0), seed).await
}

/// Publishes a disk whose content a seed decides, after the head.
pub async fn publish(
    repository: &Repository,
    key: &SigningKey,
    role: DiskRole,
    epoch: Epoch,
    seed: u8,
) -> Result<Published> {
    let mut file = tempfile::tempfile().unwrap();
    let mut content = vec![0; DISK_BYTES as usize];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut content);
    file.write_all(&content).unwrap();
    let source = disk(role, Some(file));
    publish_disk(repository, key, epoch, source).await
}

/// Publishes the same disk as at the head once more.
async fn republish(world: &World, key: &SigningKey) -> Result<Published> {
    let repository = world.open("debian").await;
    let source = DiskSource { base: repository.head().await?, ..disk(DiskRole::System, None) };
    publish_disk(&repository, key, Epoch(0), source).await
}

fn disk(role: DiskRole, file: Option<File>) -> DiskSource {
    let piece = |file| Piece {
        range: BlockRange::covering(0, DISK_BYTES),
        what: PieceData::File { file: Arc::new(file), offset: 0 },
    };
    let pieces = file.map(piece).into_iter().collect();
    DiskSource::new(role, DISK_BYTES, pieces)
}

async fn publish_disk(
    repository: &Repository,
    key: &SigningKey,
    epoch: Epoch,
    source: DiskSource,
) -> Result<Published> {
    let publication = Publication {
        epoch,
        hardware: (source.role == DiskRole::System).then(Hardware::default),
        id: "test".to_owned(),
        ..Publication::new(repository.head().await?, Timestamp(1_800_000_000_000), vec![source])
    };
    repository.publish(publication, key, &Silent).await
}

async fn repository_id(world: &World) -> RepositoryId {
    world.admin.appliance(&debian()).await.unwrap().repository.id
}

async fn admin_objects(world: &World) -> Http {
    backend(&world.admin, repository_id(world).await, 0)
}

async fn a_pack(world: &World) -> (Http, ObjectName) {
    let objects = admin_objects(world).await;
    let name = objects.list("packs/").await.unwrap().first().unwrap().name;
    (objects, name)
}

pub fn backend(client: &ServerClient, id: RepositoryId, epoch: u64) -> Http {
    Http::new(client.http().clone(), &client.repository_url(id), Epoch(epoch))
}

/// Counts the files below the directory of repositories.
fn files(world: &World) -> usize {
    fn count(path: &std::path::Path) -> usize {
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
        // Whose a store is, is no object of a repository.
        let entries = entries.filter(|entry| entry.file_name() != "owner");
        entries.map(|e| if e.path().is_dir() { count(&e.path()) } else { 1 }).sum()
    }
    count(&world.repositories())
}
