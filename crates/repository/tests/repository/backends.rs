//! What every backend keeps that can be written: the same tests in memory, in a directory and in S3.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use collective_model::{Digest, DiskRole, Epoch, ErrorKind, Silent, Timestamp};
use collective_repository::backend::{Backend, Commit, Directory, Memory, ObjectName, PartKind};
use collective_repository::{
    Descriptor, DiskSource, Kind, PruneOptions, Publication, Repository, Retention, SigningKey,
};
use futures::TryStreamExt;

use crate::s3_server::S3Server;
use crate::world::{World, check, id, layer, publication, trace, version, whole};

/// Makes one test per backend of an async function that takes a [`Place`].
macro_rules! on_every_backend {
    ($($name:ident)*) => {
        on_every_backend! { @memory $($name)* }
        on_every_backend! { @directory $($name)* }
        on_every_backend! { @s3 $($name)* }
    };
    (@$backend:ident $($name:ident)*) => {
        mod $backend {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Place::$backend().await).await;
            })*
        }
    };
}

on_every_backend! {
    an_object_is_read_in_whole_and_in_parts_replaced_and_removed
    a_large_object_comes_back_whole_and_in_pieces
    what_is_too_short_or_too_long_is_corrupt
    lists_are_in_order_have_sizes_and_dates_and_know_prefixes
    what_is_published_is_read_through_another_door
    a_commit_needs_its_objects_its_number_and_its_lock
    of_two_who_publish_at_once_one_wins_and_its_version_is_what_is_read
    pruning_removes_versions_at_once_and_packs_after_the_grace
    a_repository_is_made_once
}

/// A backend, and a second one to the same objects, as another process has it.
struct Place {
    backend: Arc<dyn Backend>,
    another: Arc<dyn Backend>,
    _kept: Box<dyn Any>,
}

impl Place {
    async fn memory() -> Self {
        let memory = Arc::new(Memory::new());
        memory.set_now(now());
        Self { backend: memory.clone(), another: memory, _kept: Box::new(()) }
    }

    async fn directory() -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("repository");
        let backend = Arc::new(Directory::create(&path).unwrap());
        let another = Arc::new(Directory::open(&path).unwrap());
        Self { backend, another, _kept: Box::new(root) }
    }

    async fn s3() -> Self {
        let server = S3Server::start().await;
        let [backend, another] =
            [(); 2].map(|()| Arc::new(server.bucket().repository("abc")) as Arc<dyn Backend>);
        Self { backend, another, _kept: Box::new(server) }
    }
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

fn pack(number: u8) -> ObjectName {
    ObjectName::Pack(Digest([number; 32]))
}

async fn an_object_is_read_in_whole_and_in_parts_replaced_and_removed(place: Place) {
    let backend = place.backend;
    let missing = backend.read(&pack(1), None).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert_eq!(backend.size(&pack(1)).await.unwrap(), None);
    for text in ["a pack of packs", "another", ""] {
        backend.write(&pack(1), text.into()).await.unwrap();
        assert_eq!(place.another.read(&pack(1), None).await.unwrap(), text);
        assert_eq!(backend.size(&pack(1)).await.unwrap(), Some(text.len() as u64));
    }
    backend.write(&pack(1), "0123456789".into()).await.unwrap();
    for range in [0..10, 0..1, 9..10, 3..7, 4..4] {
        let part = backend.read(&pack(1), Some(range.clone())).await.unwrap();
        assert_eq!(part, "0123456789"[range.start as usize..range.end as usize]);
    }
    for _ in 0..2 {
        backend.delete(&pack(1)).await.unwrap();
        assert_eq!(place.another.size(&pack(1)).await.unwrap(), None);
    }
}

async fn a_large_object_comes_back_whole_and_in_pieces(place: Place) {
    let large: Vec<u8> = (0..3_500_000_u32).flat_map(u32::to_le_bytes).collect();
    let large = Bytes::from(large);
    place.backend.write(&pack(2), large.clone()).await.unwrap();
    assert!(place.another.read(&pack(2), None).await.unwrap() == large);
    let range: Range<u64> = 1..large.len() as u64 - 1;
    let pieces = place.another.stream(&pack(2), range.clone()).await.unwrap();
    let pieces: Vec<Bytes> = pieces.try_collect().await.unwrap();
    assert!(pieces.concat() == large[range.start as usize..range.end as usize]);
}

async fn what_is_too_short_or_too_long_is_corrupt(place: Place) {
    let backend = place.backend;
    backend.write(&pack(3), "0123456789".into()).await.unwrap();
    for range in [5..11, 10..11, 20..30] {
        let error = backend.read(&pack(3), Some(range)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    }
    backend.write(&ObjectName::Latest, vec![b'1'; 65].into()).await.unwrap();
    let error = backend.read(&ObjectName::Latest, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(backend.head().await.unwrap_err().kind(), ErrorKind::Corrupt);
}

async fn lists_are_in_order_have_sizes_and_dates_and_know_prefixes(place: Place) {
    let part = |number: u64| {
        ObjectName::part(version(number), DiskRole::System, PartKind::Index, &Digest([7; 32]))
    };
    let names = [
        ObjectName::Latest,
        pack(0x0a),
        pack(0xa0),
        ObjectName::Descriptor,
        ObjectName::Manifest(version(1)),
        part(1),
        part(11),
        part(2),
    ];
    let before = now().0 - 2000;
    for (at, name) in names.iter().rev().enumerate() {
        place.backend.write(name, vec![7; 8 - at].into()).await.unwrap();
    }
    for (prefix, expected) in [
        ("", &names[..]),
        ("packs/", &names[1..3]),
        ("packs/a", &names[2..3]),
        ("versions/", &names[4..]),
        ("versions/1", &names[4..7]),
        ("versions/1/", &names[4..6]),
        ("versions/1/m", &names[4..5]),
        ("no", &[]),
        ("../", &[]),
    ] {
        let listed = place.another.list(prefix).await.unwrap();
        let listed_names: Vec<_> = listed.iter().map(|listed| listed.name).collect();
        assert_eq!(listed_names, expected, "{prefix}");
        for object in listed {
            let at = names.iter().position(|name| *name == object.name).unwrap();
            assert_eq!(object.size_bytes, at as u64 + 1);
            assert!((before..=now().0).contains(&object.modified.0), "{object:?}");
        }
    }
}

async fn what_is_published_is_read_through_another_door(place: Place) {
    let world = World::private(place.backend.clone()).await;
    let first: Vec<u16> = (1..200).collect();
    let boot = Some(trace(&[(50, 8), (3, 2)]));
    world.publish(0, vec![DiskSource { trace: boot, ..whole(&first) }]).await.unwrap();
    let reader = world.reopen(place.another).await.unwrap();
    check(&reader, 1, &first).await;
    let mut second = first.clone();
    second[10] = 500;
    world.publish(1, vec![layer(199, Some(1), vec![(10, vec![500])])]).await.unwrap();
    world.publish(2, vec![layer(199, Some(1), vec![])]).await.unwrap();
    for (number, content) in [(1, &first), (2, &second), (3, &first)] {
        check(&reader, number, content).await;
    }
    assert_eq!(reader.head().await.unwrap(), Some(version(3)));
    assert_eq!(reader.versions().await.unwrap(), [1, 2, 3].map(version));
    let report = reader.verify(&Silent).await.unwrap();
    assert!(report.damages.is_empty(), "{report:?}");
}

async fn a_commit_needs_its_objects_its_number_and_its_lock(place: Place) {
    let world = World::public(place.backend.clone()).await;
    let under = |epoch, parent: u64| Publication {
        epoch: Epoch(epoch),
        ..publication(parent, vec![whole(&[parent as u16 + 1])])
    };
    for parent in 0..2 {
        world.repository.publish(under(5, parent), &world.key, &Silent).await.unwrap();
    }
    for refused in [under(5, 0), under(4, 2)] {
        let error = world.repository.publish(refused, &world.key, &Silent).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    }
    // A manifest whose packs are not here.
    let twin = World::public(Arc::new(Memory::new())).await;
    for parent in 0..3 {
        twin.publish(parent, vec![whole(&[parent as u16 + 101])]).await.unwrap();
    }
    let manifest = twin.backend.read(&ObjectName::Manifest(version(3)), None).await.unwrap();
    let commit = Commit { version: version(3), manifest, epoch: Epoch(5) };
    let error = place.another.commit(commit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.chain().contains("not stored"), "{error:?}");
    assert_eq!(place.another.head().await.unwrap(), Some(version(2)));
    assert_eq!(world.repository.versions().await.unwrap(), [1, 2].map(version));
}

async fn of_two_who_publish_at_once_one_wins_and_its_version_is_what_is_read(place: Place) {
    let left = World::public(place.backend.clone()).await;
    let right = left.reopen(place.another.clone()).await.unwrap();
    for parent in 0..12 {
        let contents = [[1, 2, parent as u16 + 10], [3, parent as u16 + 10, 4]];
        let [one, other] = contents.map(|content| {
            let id = format!("{content:?} after {parent}");
            Publication { id, ..publication(parent, vec![whole(&content)]) }
        });
        let (one, other) = tokio::join!(
            left.repository.publish(one, &left.key, &Silent),
            right.publish(other, &left.key, &Silent),
        );
        let (won, lost, content) = match one.is_ok() {
            true => (one, other, contents[0]),
            false => (other, one, contents[1]),
        };
        assert_eq!(won.unwrap().version, version(parent + 1));
        let lost = lost.unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::Conflict, "{lost:?}");
        for repository in [&left.repository, &right] {
            assert_eq!(repository.head().await.unwrap(), Some(version(parent + 1)));
            check(repository, parent + 1, &content).await;
        }
    }
}

async fn pruning_removes_versions_at_once_and_packs_after_the_grace(place: Place) {
    let world = World::private(place.backend.clone()).await;
    for number in 0..3_u16 {
        let content: Vec<u16> = (1..50).map(|block| 100 * number + block).collect();
        world.publish(u64::from(number), vec![whole(&content)]).await.unwrap();
    }
    let grace = Duration::from_secs(3600);
    let rule = Retention::of_last(1);
    let options = |now| PruneOptions { rule, keep: Vec::new(), grace, now, dry_run: false };
    let first = world.repository.prune(options(now())).await.unwrap();
    // Of a user disk the version stays to which an undo goes back.
    assert_eq!(first.removed_versions, [version(1)]);
    assert_eq!(first.waiting_objects, 2, "an index and a pack");
    assert_eq!(place.another.list("packs/").await.unwrap().len(), 3);
    let second = world.repository.prune(options(now().after(2 * grace))).await.unwrap();
    assert_eq!((second.removed_objects, second.waiting_objects), (2, 0));
    assert_eq!(place.another.list("packs/").await.unwrap().len(), 2);
    assert!(world.repository.verify(&Silent).await.unwrap().damages.is_empty());
}

async fn a_repository_is_made_once(place: Place) {
    World::public(place.backend.clone()).await;
    World::public(place.another.clone()).await;
    let key = SigningKey::from_seed([9; 32]);
    let descriptor = Descriptor::public(id(), Kind::Appliance, key.publisher());
    let another = Repository::create(place.another, descriptor, None).await;
    assert_eq!(another.unwrap_err().kind(), ErrorKind::Conflict);
}
