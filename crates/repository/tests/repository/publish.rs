//! What publishing stores, refuses and says.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use collective_model::{BlockRange, Digest, DiskRole, Epoch, ErrorKind, Silent};
use collective_repository::backend::{CallKind, Fault, Faulty, Memory, ObjectName};
use collective_repository::{
    DiskSource, ExtentData, FrameSink, Piece, PieceData, Publication, SigningKey,
};

use crate::world::{
    BLOCK, World, check, file, layer, publication, read_version, stored_packs, trace, version,
    whole,
};

fn numbers(range: std::ops::Range<u16>) -> Vec<u16> {
    range.collect()
}

#[tokio::test]
async fn a_whole_disk_a_layer_and_an_undo_are_read_as_they_were_published() {
    for world in World::both().await {
        let first = [numbers(1..60), vec![0; 40], numbers(60..101)].concat();
        world.publish(0, vec![whole(&first)]).await.unwrap();
        check(&world.repository, 1, &first).await;

        let mut second = first.clone();
        second[10..14].copy_from_slice(&[500, 501, 0, 502]);
        second[90] = 503;
        let runs = vec![(10, vec![500, 501, 0, 502]), (90, vec![503])];
        world.publish(1, vec![layer(140, Some(1), runs)]).await.unwrap();
        check(&world.repository, 2, &second).await;

        world.publish(2, vec![layer(140, Some(1), vec![])]).await.unwrap();
        for (number, content) in [(1, &first), (2, &second), (3, &first)] {
            check(&world.repository, number, content).await;
        }
        let versions: Vec<_> =
            world.repository.versions().await.unwrap().iter().map(|it| it.number()).collect();
        assert_eq!(versions, [1, 2, 3]);
    }
}

#[tokio::test]
async fn equal_blocks_are_stored_once() {
    for world in World::both().await {
        let content = numbers(1..200);
        let first = world.publish(0, vec![whole(&content)]).await.unwrap();
        assert!(first.stats.packs == 1 && first.stats.frames > 20, "{:?}", first.stats);
        let before = stored_packs(&*world.backend).await;

        // The same image again, shifted, and with every block twice.
        let shifted = [vec![0; 7], content.clone(), content.clone()].concat();
        let again = world.publish(1, vec![whole(&shifted)]).await.unwrap();
        assert_eq!((again.stats.packs, again.stats.frames), (0, 0));
        assert_eq!(again.stats.reused_bytes, (2 * content.len() * BLOCK) as u64);
        assert_eq!(stored_packs(&*world.backend).await, before);
        check(&world.repository, 2, &shifted).await;

        // Equal blocks within one publication.
        let twins = vec![999; 300];
        let third = world.publish(2, vec![whole(&twins)]).await.unwrap();
        assert_eq!(third.stats.changed_bytes, BLOCK as u64);
        check(&world.repository, 3, &twins).await;
    }
}

#[tokio::test]
async fn an_undo_stores_an_index_and_a_manifest_only_and_reads_no_pack() {
    let memory: Arc<Memory> = Arc::new(Memory::new());
    let world = World::public(memory.clone()).await;
    world.publish(0, vec![whole(&numbers(1..200))]).await.unwrap();
    world.publish(1, vec![layer(199, Some(1), vec![(5, vec![900])])]).await.unwrap();
    let no_packs = |call: collective_repository::backend::Call| match call.name {
        Some(ObjectName::Pack(_)) => Fault::Refuse,
        _ => Fault::Pass,
    };
    let repository = world.reopen(Arc::new(Faulty::new(memory, no_packs))).await.unwrap();
    let undo = publication(2, vec![layer(199, Some(1), vec![])]);
    let published = repository.publish(undo, &world.key, &Silent).await.unwrap();
    assert_eq!(published.stats.packs, 0);
    check(&world.repository, 3, &numbers(1..200)).await;
}

#[tokio::test]
async fn holes_and_zero_blocks_cost_nothing() {
    let world = World::public(Arc::new(Memory::new())).await;
    let mut content = vec![0; 100_000];
    content[70_000] = 1;
    let published = world.publish(0, vec![whole(&content)]).await.unwrap();
    assert!(published.stats.read_bytes <= 16 * BLOCK as u64, "{:?}", published.stats);
    assert!(published.stats.stored_bytes < 3000, "{:?}", published.stats);
    // Zeros that are written out are no more than holes.
    let zeros = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut &zeros, &vec![0; 50 * BLOCK]).unwrap();
    let piece = Piece {
        range: BlockRange::new(0, 50),
        what: PieceData::File { file: Arc::new(zeros), offset: 0 },
    };
    let source = DiskSource { pieces: vec![piece], ..layer(50, None, vec![]) };
    let published = world.publish(1, vec![source]).await.unwrap();
    assert_eq!((published.stats.frames, published.stats.packs), (0, 0));
    check(&world.repository, 2, &[0; 50]).await;
}

#[tokio::test]
async fn the_blocks_of_a_start_come_first_in_the_first_pack_in_its_order() {
    let world = World::public(Arc::new(Memory::new())).await;
    let boot = trace(&[(150, 8), (20, 8), (80, 16)]);
    let source = DiskSource { trace: Some(boot.clone()), ..whole(&numbers(1..200)) };
    world.publish(0, vec![source]).await.unwrap();
    let reader = world.repository.version(version(1)).await.unwrap();
    assert_eq!(reader.trace(DiskRole::System).await.unwrap(), boot);
    let disk = reader.disk(DiskRole::System).await.unwrap();
    let mut offset = 64;
    for range in boot.ranges {
        for extent in disk.map(range).await.unwrap() {
            let ExtentData::Frame { frame, first } = extent.what else { panic!("{extent:?}") };
            assert_eq!((frame.offset, first), (offset, 0));
            offset += u64::from(frame.stored_bytes);
        }
    }
    // A version without a recorded start of its own keeps that of its base.
    world.publish(1, vec![layer(199, Some(1), vec![])]).await.unwrap();
    let reader = world.repository.version(version(2)).await.unwrap();
    assert_eq!(reader.trace(DiskRole::System).await.unwrap().ranges.len(), 3);
}

#[tokio::test]
async fn a_disk_may_end_within_a_block_grow_and_shrink() {
    let world = World::private(Arc::new(Memory::new())).await;
    let size_bytes = (3 * BLOCK + 512) as u64;
    let short = |base, pieces| DiskSource { size_bytes, ..layer(4, base, pieces) };
    world.publish(0, vec![short(None, vec![(0, vec![1, 2, 3, 4])])]).await.unwrap();
    let bytes = read_version(&world.repository, 1).await.unwrap();
    assert_eq!(bytes.len() as u64, size_bytes);
    assert_eq!(bytes[3 * BLOCK..], crate::world::block_bytes(4)[..512]);
    world.publish(1, vec![layer(6, Some(1), vec![(3, vec![4])])]).await.unwrap();
    check(&world.repository, 2, &[1, 2, 3, 4, 0, 0]).await;
    world.publish(2, vec![layer(2, Some(2), vec![])]).await.unwrap();
    check(&world.repository, 3, &[1, 2]).await;
}

#[tokio::test]
async fn a_second_publisher_a_stale_lock_and_a_foreign_key_are_refused_and_change_nothing() {
    let world = World::public(Arc::new(Memory::new())).await;
    world.publish(0, vec![whole(&[1])]).await.unwrap();
    let late = world.publish(0, vec![whole(&[2])]).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Conflict);
    assert!(late.to_string().contains("version 1"), "{late}");

    let under = |epoch, parent| Publication {
        epoch: Epoch(epoch),
        ..publication(parent, vec![whole(&[3])])
    };
    world.repository.publish(under(5, 1), &world.key, &Silent).await.unwrap();
    let stale = world.repository.publish(under(4, 2), &world.key, &Silent).await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::Conflict, "{stale}");

    let foreign = SigningKey::from_seed([8; 32]);
    let denied = world.repository.publish(under(5, 2), &foreign, &Silent).await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Denied);
    assert_eq!(world.repository.head().await.unwrap(), Some(version(2)));
}

#[tokio::test]
async fn of_two_who_publish_at_once_one_wins_and_the_other_hears_it() {
    let world = World::public(Arc::new(Memory::new())).await;
    let (left, right) = tokio::join!(
        world.publish(0, vec![whole(&[1, 2])]),
        world.publish(0, vec![whole(&[3, 4])])
    );
    let (won, lost) = if left.is_ok() { (left, right) } else { (right, left) };
    assert_eq!(won.unwrap().version, version(1));
    assert_eq!(lost.unwrap_err().kind(), ErrorKind::Conflict);
    read_version(&world.repository, 1).await.unwrap();
}

#[tokio::test]
async fn a_commit_whose_answer_got_lost_is_recognised() {
    let memory: Arc<Memory> = Arc::new(Memory::new());
    let world = World::public(memory.clone()).await;
    let lose = |call: collective_repository::backend::Call| match call.kind {
        CallKind::Commit => Fault::LoseAnswer,
        _ => Fault::Pass,
    };
    let repository = world.reopen(Arc::new(Faulty::new(memory, lose))).await.unwrap();
    let published =
        repository.publish(publication(0, vec![whole(&[1])]), &world.key, &Silent).await.unwrap();
    assert_eq!(published.version, version(1));
}

#[tokio::test]
async fn a_file_that_is_cut_short_is_named_and_nothing_is_published() {
    let world = World::public(Arc::new(Memory::new())).await;
    let piece = Piece { range: BlockRange::new(0, 5), what: file(&[1, 2, 3]) };
    let source = DiskSource { pieces: vec![piece], ..layer(5, None, vec![]) };
    let error = world.publish(0, vec![source]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("system disk"), "{error}");
    assert_eq!(world.repository.head().await.unwrap(), None);
    assert_eq!(stored_packs(&*world.backend).await, 0);
}

#[tokio::test]
async fn a_version_that_does_not_exist_is_not_found_and_the_head_is_named() {
    let world = World::public(Arc::new(Memory::new())).await;
    let error = world.repository.version(version(1)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("no version yet"));
    world.publish(0, vec![whole(&[1])]).await.unwrap();
    let error = world.repository.version(version(9)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.to_string().contains("version 9") && error.to_string().contains("is 1"),
        "{error}"
    );
}

#[derive(Default)]
struct Seen(Mutex<Vec<(Digest, usize)>>);

impl FrameSink for Seen {
    fn frame(&self, hash: Digest, plain: &Bytes) {
        self.0.lock().unwrap().push((hash, plain.len()));
    }
}

#[tokio::test]
async fn a_sink_gets_every_new_frame_and_no_other() {
    let world = World::private(Arc::new(Memory::new())).await;
    world.publish(0, vec![whole(&numbers(1..100))]).await.unwrap();
    let seen = Arc::new(Seen::default());
    let content = numbers(50..150);
    let publication =
        Publication { sink: Some(seen.clone()), ..publication(1, vec![whole(&content)]) };
    world.repository.publish(publication, &world.key, &Silent).await.unwrap();
    let reader = world.repository.version(version(2)).await.unwrap();
    let disk = reader.disk(DiskRole::System).await.unwrap();
    let extents = disk.map(BlockRange::new(50, 50)).await.unwrap();
    let mut frames: Vec<_> = extents
        .iter()
        .map(|extent| match extent.what {
            ExtentData::Frame { frame, .. } => (frame.hash, frame.plain_bytes()),
            ExtentData::Zero => panic!("no block is zero"),
        })
        .collect();
    frames.dedup();
    assert_eq!(*seen.0.lock().unwrap(), frames);
}

#[tokio::test]
async fn the_same_input_gives_the_same_packs() {
    let mut lists = Vec::new();
    for _ in 0..2 {
        let world = World::public(Arc::new(Memory::new())).await;
        world.publish(0, vec![whole(&numbers(1..3000))]).await.unwrap();
        lists.push(world.backend.list("").await.unwrap());
    }
    assert_eq!(lists[0], lists[1]);
}
