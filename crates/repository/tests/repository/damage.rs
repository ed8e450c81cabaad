//! Damage: any byte of any object turned, cut or swapped is found, named, and never served.

use std::sync::Arc;

use collective_model::{ErrorKind, Silent};
use collective_repository::backend::{Backend, Directory, Listed, Memory, ObjectName, PartKind};
use collective_repository::{DiskSource, Repository};

use crate::world::{BLOCK, World, block_bytes, layer, read_version, trace, version, whole};

/// Two versions with traces, whose packs and indexes are small enough to damage at every byte.
async fn sample(private: bool) -> (Arc<Memory>, World) {
    let memory = Arc::new(Memory::new());
    let world = if private {
        World::private(memory.clone()).await
    } else {
        World::public(memory.clone()).await
    };
    let traced = DiskSource { trace: Some(trace(&[(4, 2), (0, 1)])), ..whole(&[1, 2, 3, 4, 5, 6]) };
    world.publish(0, vec![traced]).await.unwrap();
    world.publish(1, vec![layer(6, Some(1), vec![(2, vec![7, 8])])]).await.unwrap();
    (memory, world)
}

fn contents(number: u64) -> Vec<u8> {
    let blocks = if number == 1 { [1, 2, 3, 4, 5, 6] } else { [1, 2, 7, 8, 5, 6] };
    blocks.iter().flat_map(|block| block_bytes(*block)).collect()
}

/// Reads all there is, as somebody who trusts the publisher; what is read must be right, damage must be told.
async fn read_all(world: &World) -> collective_model::Result<()> {
    let repository = world.reopen(world.backend.clone()).await?;
    repository.head().await?;
    for number in [1, 2] {
        let bytes = read_version(&repository, number).await?;
        assert!(bytes == contents(number), "wrong bytes were served");
        let reader = repository.version(version(number)).await?;
        reader.trace(collective_model::DiskRole::System).await?;
    }
    Ok(())
}

async fn damages(repository: &Repository) -> Vec<String> {
    let report = repository.verify(&Silent).await.unwrap();
    report.damages.into_iter().map(|damage| damage.object).collect()
}

/// Tells whether reading meets every byte of an object. The frames of packs are met; their headers and tables are for others.
fn is_read_whole(name: &ObjectName) -> bool {
    !matches!(name, ObjectName::Pack(_))
}

async fn objects(memory: &Memory) -> Vec<Listed> {
    memory.list("").await.unwrap()
}

#[tokio::test]
async fn any_byte_turned_anywhere_is_found_and_named() {
    for private in [false, true] {
        let (memory, world) = sample(private).await;
        assert_eq!(damages(&world.repository).await, Vec::<String>::new());
        for object in objects(&memory).await {
            let intact = memory.read(&object.name, None).await.unwrap();
            for at in 0..intact.len() {
                let mut damaged = intact.to_vec();
                damaged[at] ^= 1 << (at % 8);
                memory.write(&object.name, damaged.into()).await.unwrap();
                let place = format!("{} byte {at}, private {private}", object.name);
                match read_all(&world).await {
                    Ok(()) => assert!(!is_read_whole(&object.name), "{place}"),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Corrupt, "{place}: {error:?}");
                        let named = error.chain().contains(&object.name.to_string());
                        assert!(named, "{place}: {error:?}");
                    }
                }
                // Verification reads everything each time: a fifth of the places, and all of packs, which reading does not meet whole.
                if at % 5 == 0 || !is_read_whole(&object.name) {
                    let found = damages(&world.repository).await;
                    assert_eq!(found, [object.name.to_string()], "{place}");
                }
            }
            memory.write(&object.name, intact).await.unwrap();
        }
        read_all(&world).await.unwrap();
    }
}

#[tokio::test]
async fn an_object_cut_at_any_byte_or_gone_is_found_and_named() {
    let (memory, world) = sample(true).await;
    for object in objects(&memory).await {
        let intact = memory.read(&object.name, None).await.unwrap();
        for length in (0..intact.len()).step_by(7) {
            memory.write(&object.name, intact.slice(..length)).await.unwrap();
            if let Err(error) = read_all(&world).await {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{} at {length}", object.name);
            } else {
                assert!(!is_read_whole(&object.name), "{} at {length}", object.name);
            }
            assert_eq!(damages(&world.repository).await, [object.name.to_string()]);
        }
        if !matches!(object.name, ObjectName::Descriptor | ObjectName::Latest) {
            memory.delete(&object.name).await.unwrap();
            let found = damages(&world.repository).await.concat();
            // A manifest that is gone is a version that was removed, unless it is the head's.
            let removed = object.name == ObjectName::Manifest(version(1));
            assert!(removed || !found.is_empty(), "{}", object.name);
        }
        memory.write(&object.name, intact).await.unwrap();
    }
}

#[tokio::test]
async fn objects_swapped_for_others_of_their_kind_are_refused() {
    for private in [false, true] {
        let (memory, world) = sample(private).await;
        let listed = objects(&memory).await;
        let same_kind = |left: &ObjectName, right: &ObjectName| match (left, right) {
            (ObjectName::Part { kind: left, .. }, ObjectName::Part { kind: right, .. }) => {
                left == right && *left == PartKind::Index
            }
            (ObjectName::Pack(_), ObjectName::Pack(_)) => true,
            (ObjectName::Manifest(_), ObjectName::Manifest(_)) => true,
            _ => false,
        };
        for left in &listed {
            for right in listed.iter().filter(|it| same_kind(&left.name, &it.name) && *it != left) {
                let intact = memory.read(&left.name, None).await.unwrap();
                let other = memory.read(&right.name, None).await.unwrap();
                memory.write(&left.name, other).await.unwrap();
                let error = read_all(&world).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{} as {}", right.name, left.name);
                memory.write(&left.name, intact).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_server_cannot_rename_a_version_or_take_one_from_another_repository() {
    let (memory, world) = sample(false).await;
    let first = memory.read(&ObjectName::Manifest(version(1)), None).await.unwrap();
    // The old version as the new one, and as one that does not exist yet.
    let third = ObjectName::Manifest(version(3));
    memory.write(&third, first.clone()).await.unwrap();
    let latest = collective_repository::backend::encode_latest(version(3));
    memory.write(&ObjectName::Latest, latest.into()).await.unwrap();
    let repository = world.reopen(memory.clone()).await.unwrap();
    let error = repository.version(version(3)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.chain().contains("signed as version 1"));

    // The same publisher's version of another repository.
    let mut manifest = collective_repository::Manifest::peek(&first).unwrap();
    manifest.repository = collective_model::RepositoryId([9; 16]);
    let other = collective_repository::Descriptor {
        id: manifest.repository,
        ..world.repository.descriptor().clone()
    };
    let error = collective_repository::Manifest::open(&first, &other, version(1)).unwrap_err();
    assert!(error.chain().contains("of repository"), "{error:?}");
}

#[tokio::test]
async fn a_server_cannot_take_the_head_back_from_who_has_seen_it() {
    let (memory, world) = sample(false).await;
    let older = collective_repository::backend::encode_latest(version(1));
    memory.write(&ObjectName::Latest, older.into()).await.unwrap();
    let error = world.repository.head().await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Corrupt && error.to_string().contains("went back"),
        "{error}"
    );
    // Who opens it anew knows it only if they remember.
    let fresh = world.reopen(memory.clone()).await.unwrap();
    assert_eq!(fresh.head().await.unwrap(), Some(version(1)));
    fresh.remember(version(2));
    assert_eq!(fresh.head().await.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_private_repository_shows_no_plain_text_and_only_its_own_secret_opens_it() {
    let (memory, world) = sample(true).await;
    for object in objects(&memory).await {
        let bytes = memory.read(&object.name, None).await.unwrap();
        let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(!holds(b"diary"), "{}", object.name);
        for number in 1..9 {
            let hash = blake3::hash(&block_bytes(number));
            assert!(!holds(&hash.as_bytes()[..8]), "{} tells of block {number}", object.name);
        }
    }
    let wrong = collective_repository::Trust {
        secret: Some(collective_repository::RepositorySecret::new([1; 32])),
        ..world.trust.clone()
    };
    let error = Repository::open(memory.clone(), wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);

    // A server without the secret verifies all of it and reads none of it.
    let closed = collective_repository::Trust { secret: None, ..world.trust.clone() };
    let closed = Repository::open(memory.clone(), closed).await.unwrap();
    let error = read_version(&closed, 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert_eq!(damages(&closed).await, Vec::<String>::new());
    for object in objects(&memory).await {
        let intact = memory.read(&object.name, None).await.unwrap();
        for at in (0..intact.len()).step_by(11) {
            let mut damaged = intact.to_vec();
            damaged[at] ^= 0x20;
            memory.write(&object.name, damaged.into()).await.unwrap();
            assert_eq!(damages(&closed).await, [object.name.to_string()], "byte {at}");
        }
        memory.write(&object.name, intact).await.unwrap();
    }
}

#[tokio::test]
async fn a_table_that_a_server_forged_misleads_no_publisher() {
    let (memory, world) = sample(false).await;
    let pack = world.repository.version(version(2)).await.unwrap().manifest().packs[0];
    let name = ObjectName::Pack(pack.id);
    // A table that claims that the first frame holds block 9, with a footer that fits it.
    let bytes = memory.read(&name, None).await.unwrap();
    let mut forged = bytes.to_vec();
    let footer = forged.len() - 64;
    let table = forged.len() - pack.table_bytes as usize;
    let frames = u32::from_le_bytes(forged[table..table + 4].try_into().unwrap()) as usize;
    let claim = blake3::hash(&block_bytes(9));
    let hashes = table + 4 + 40 * frames;
    forged[hashes..hashes + 20].copy_from_slice(&claim.as_bytes()[..20]);
    let hash = blake3::hash(&forged[table..footer]);
    forged[footer + 12..footer + 44].copy_from_slice(hash.as_bytes());
    memory.write(&name, forged.into()).await.unwrap();
    let repository = world.reopen(memory.clone()).await.unwrap();
    let publication = crate::world::publication(2, vec![whole(&[9])]);
    repository.publish(publication, &world.key, &Silent).await.unwrap();
    assert_eq!(read_version(&repository, 3).await.unwrap(), block_bytes(9));
    assert_eq!(block_bytes(9).len(), BLOCK);
}

/// Publishes with all changes lost from a certain one on, as a crash would; a reader then sees the old head or the new one.
#[tokio::test]
async fn a_publication_cut_at_any_write_leaves_the_old_head_or_the_new_one() {
    use collective_repository::backend::{CallKind, Fault, Faulty};
    let directory = tempfile::tempdir().unwrap();
    let mut whole_ones = 0;
    for cut in 0.. {
        let path = directory.path().join(cut.to_string());
        let backend: Arc<dyn Backend> = Arc::new(Directory::create(path).unwrap());
        let world = World::public(backend.clone()).await;
        world.publish(0, vec![whole(&[1, 2, 3])]).await.unwrap();
        let changes = std::sync::atomic::AtomicU64::new(0);
        let faulty = Faulty::new(backend, move |call| match call.kind {
            CallKind::Write | CallKind::Commit | CallKind::Delete => {
                let number = changes.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                if number < cut { Fault::Pass } else { Fault::Refuse }
            }
            _ => Fault::Pass,
        });
        let repository = world.reopen(Arc::new(faulty)).await.unwrap();
        let publication = crate::world::publication(1, vec![whole(&[4, 5, 6])]);
        let published = repository.publish(publication, &world.key, &Silent).await.is_ok();
        let fresh = world.reopen(world.backend.clone()).await.unwrap();
        let head = fresh.head().await.unwrap().unwrap().number();
        assert_eq!(head, if published { 2 } else { 1 }, "cut at {cut}");
        assert_eq!(damages(&fresh).await, Vec::<String>::new(), "cut at {cut}");
        read_version(&fresh, head).await.unwrap();
        // And it can be done again.
        if !published {
            world.publish(1, vec![whole(&[4, 5, 6])]).await.unwrap();
        }
        whole_ones += u64::from(published);
        if whole_ones == 2 {
            break;
        }
    }
}

/// The files as a crash within the commit leaves them: the manifest is there, `latest` is not, or has a one-time name.
#[tokio::test]
async fn a_commit_cut_before_latest_moved_is_not_seen_and_done_again() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Directory::create(directory.path().join("repository")).unwrap();
    let world = World::public(Arc::new(backend.clone())).await;
    world.publish(0, vec![whole(&[1])]).await.unwrap();
    let latest = std::fs::read(backend.path().join("latest")).unwrap();
    world.publish(1, vec![whole(&[2])]).await.unwrap();
    std::fs::write(backend.path().join("latest"), &latest).unwrap();
    std::fs::write(backend.path().join(".tmp-latest"), b"2 ").unwrap();
    let fresh = world.reopen(world.backend.clone()).await.unwrap();
    assert_eq!(fresh.version(version(2)).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(fresh.versions().await.unwrap(), [version(1)]);
    let publication = crate::world::publication(1, vec![whole(&[3])]);
    fresh.publish(publication, &world.key, &Silent).await.unwrap();
    assert_eq!(read_version(&fresh, 2).await.unwrap(), block_bytes(3));
}
