//! Re-packing beside a model: hundreds of small publications reach few packs, hold little that is dead, and stay right.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use collective_model::{BlockRange, Digest, DiskRole, Silent, Timestamp};
use collective_repository::backend::{Call, CallKind, Fault, Faulty, Memory, ObjectName};
use collective_repository::{
    DiskReader, DiskSource, ExtentData, Piece, PieceData, PruneOptions, PublishStats, Retention,
};

use crate::world::{BLOCK, FRAME_BYTES, World, read_version, stored_packs, version};

/// The bound on small packs that the format's document states.
const SMALL_PACKS: usize = 3 * 8 + 1;

/// A disk as a list of numbers, each of which stands for a block that cannot be compressed; 0 for zeros.
struct Model {
    blocks: Vec<u64>,
    next: u64,
    random: u64,
}

impl Model {
    fn new(blocks: usize) -> Self {
        Self { blocks: vec![0; blocks], next: 0, random: 1 }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    /// Writes new blocks in a run somewhere, some of them zero; returns it as a piece.
    fn write(&mut self, most: u64) -> Piece {
        let count = 1 + self.below(most);
        let start = self.below(self.blocks.len() as u64 - count + 1);
        for at in start..start + count {
            self.next += 1;
            self.blocks[at as usize] = if self.below(10) == 0 { 0 } else { self.next };
        }
        let range = BlockRange::new(start, count);
        Piece { range, what: file(&self.blocks[start as usize..][..count as usize]) }
    }

    fn layer(&self, base: u64, pieces: Vec<Piece>) -> DiskSource {
        let base = (base > 0).then(|| version(base));
        let size_bytes = (self.blocks.len() * BLOCK) as u64;
        DiskSource { base, ..DiskSource::new(DiskRole::System, size_bytes, pieces) }
    }

    fn live_bytes(&self) -> u64 {
        (self.blocks.iter().filter(|number| **number != 0).count() * BLOCK) as u64
    }
}

fn block_bytes(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    if number != 0 {
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    }
    bytes
}

fn file(blocks: &[u64]) -> PieceData {
    let file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = blocks.iter().flat_map(|number| block_bytes(*number)).collect();
    std::io::Write::write_all(&mut &file, &bytes).unwrap();
    PieceData::File { file: Arc::new(file), offset: 0 }
}

/// Publishes `count` versions of some runs each, checks each, and prunes now and then; returns what all of it took.
async fn run(world: &World, model: &mut Model, count: u64, runs: u64, most: u64) -> PublishStats {
    let mut sum = PublishStats::default();
    let first = world.repository.head().await.unwrap().map_or(0, |head| head.number());
    for base in first..first + count {
        let pieces = (0..runs).map(|_| model.write(most)).collect();
        let stats = world.publish(base, vec![model.layer(base, pieces)]).await.unwrap().stats;
        assert!(stats.moved_bytes <= (8 << 20).max(stats.read_bytes / 2), "{stats:?}");
        sum.changed_bytes += stats.changed_bytes;
        sum.moved_bytes += stats.moved_bytes;
        let reader = world.repository.version(version(base + 1)).await.unwrap();
        let large = model.live_bytes() >> 22;
        let packs = reader.manifest().packs.len();
        assert!(packs <= SMALL_PACKS + large as usize, "version {}: {packs} packs", base + 1);
        let frames = frames(&reader.disk(DiskRole::System).await.unwrap()).await;
        let full = model.live_bytes() as usize / FRAME_BYTES as usize;
        assert!(frames <= 2 * full + 2 * SMALL_PACKS, "{frames} frames, {full} full ones");
        if base % 10 == 0 {
            check(world, base + 1, &model.blocks).await;
        }
        if base % 50 == 49 {
            prune(world, base as i64).await;
        }
    }
    prune(world, (first + count) as i64).await;
    sum
}

/// Counts the frames that a disk shows: each is a row of the index, and a part of a read.
async fn frames(disk: &DiskReader) -> usize {
    let extents = disk.map(BlockRange::covering(0, disk.size_bytes())).await.unwrap();
    let frames = extents.iter().filter_map(|extent| match extent.what {
        ExtentData::Frame { frame, .. } => Some(frame),
        ExtentData::Zero => None,
    });
    frames.collect::<HashSet<_>>().len()
}

/// Keeps the last three versions, and what became unreached goes at once.
async fn prune(world: &World, hours: i64) {
    for step in 0..2 {
        let now = Timestamp(hours * 3_600_000 + step);
        let (keep, grace) = (Vec::new(), Duration::ZERO);
        let rule = Retention::of_last(3);
        let options = PruneOptions { rule, keep, grace, now, dry_run: false };
        world.repository.prune(options).await.unwrap();
    }
}

async fn check(world: &World, number: u64, blocks: &[u64]) {
    let bytes = read_version(&world.repository, number).await.unwrap();
    for (at, (found, number_of_block)) in bytes.chunks(BLOCK).zip(blocks).enumerate() {
        assert!(found == block_bytes(*number_of_block), "block {at} of version {number}");
    }
}

#[tokio::test]
async fn three_hundred_small_backups_reach_few_packs_and_move_little() {
    for world in World::both().await {
        let mut model = Model::new(600);
        let image = Piece { range: BlockRange::new(0, 600), what: PieceData::Zero };
        world.publish(0, vec![model.layer(0, vec![image])]).await.unwrap();
        let sum = run(&world, &mut model, 300, 3, 4).await;
        assert!(sum.moved_bytes <= 5 * sum.changed_bytes, "{sum:?}");
        let (stored, live) = (stored_packs(&*world.backend).await, model.live_bytes());
        assert!(stored < 3 * live, "{stored} bytes are stored for {live}");
        check(&world, 301, &model.blocks).await;
        let report = world.repository.verify(&Silent).await.unwrap();
        assert_eq!(report.damages, []);
    }
}

#[tokio::test]
async fn packs_that_are_mostly_dead_are_left_behind() {
    let world = World::private(Arc::new(Memory::new())).await;
    let mut model = Model::new(4000);
    let image = model.write(4000);
    world.publish(0, vec![model.layer(0, vec![image])]).await.unwrap();
    let sum = run(&world, &mut model, 60, 10, 60).await;
    assert!(sum.moved_bytes <= 5 * sum.changed_bytes, "{sum:?}");
    let (stored, live) = (stored_packs(&*world.backend).await, model.live_bytes());
    // Three versions are kept: what the last two replaced is not dead yet.
    assert!(stored < 5 * live / 2, "{stored} bytes are stored for {live}");
}

#[tokio::test]
async fn old_versions_stay_right_while_new_ones_are_packed_anew() {
    let world = World::private(Arc::new(Memory::new())).await;
    let mut model = Model::new(300);
    let mut versions = vec![];
    for base in 0..40 {
        let pieces = vec![model.write(6), model.write(2)];
        world.publish(base, vec![model.layer(base, pieces)]).await.unwrap();
        versions.push(model.blocks.clone());
    }
    for (at, blocks) in versions.iter().enumerate() {
        check(&world, at as u64 + 1, blocks).await;
    }
    // An undo to an old version, and on from there.
    model.blocks.clone_from(&versions[4]);
    let piece = model.write(3);
    world.publish(40, vec![model.layer(5, vec![piece])]).await.unwrap();
    check(&world, 41, &model.blocks).await;
}

#[tokio::test]
async fn a_pack_that_cannot_be_read_is_left_where_it_is_and_backups_go_on() {
    for fault in [Fault::Flip(5), Fault::Refuse] {
        let bad: Arc<OnceLock<Digest>> = Arc::default();
        let seen = bad.clone();
        let faults = move |call: Call| match (call.name, call.kind) {
            (Some(ObjectName::Pack(pack)), CallKind::Read) if Some(&pack) == seen.get() => fault,
            _ => Fault::Pass,
        };
        let memory = Arc::new(Memory::new());
        let world = World::private(Arc::new(Faulty::new(memory.clone(), faults))).await;
        let mut model = Model::new(300);
        let first = Piece { range: BlockRange::new(0, 4), what: file(&[1, 2, 3, 4]) };
        model.blocks[..4].copy_from_slice(&[1, 2, 3, 4]);
        world.publish(0, vec![model.layer(0, vec![first])]).await.unwrap();
        let pack = world.repository.version(version(1)).await.unwrap().manifest().packs[0].id;
        bad.set(pack).unwrap();
        for base in 1..30 {
            let (at, number) = (100 + 2 * base, 1_000_000 + base);
            model.blocks[at as usize] = number;
            let piece = Piece { range: BlockRange::new(at, 1), what: file(&[number]) };
            world.publish(base, vec![model.layer(base, vec![piece])]).await.unwrap();
        }
        let reader = world.repository.version(version(30)).await.unwrap();
        let packs = &reader.manifest().packs;
        assert!(packs.iter().any(|entry| entry.id == pack) && packs.len() <= SMALL_PACKS);
        let well = World { repository: world.reopen(memory).await.unwrap(), ..world };
        check(&well, 30, &model.blocks).await;
    }
}

#[tokio::test]
async fn what_moves_is_never_plain_where_others_see_it() {
    let world = World::private(Arc::new(Memory::new())).await;
    let mut model = Model::new(300);
    let mut moved_bytes = 0;
    for base in 0..12 {
        let piece = model.write(4);
        let stats = world.publish(base, vec![model.layer(base, vec![piece])]).await.unwrap().stats;
        moved_bytes += stats.moved_bytes;
    }
    assert!(moved_bytes > 0);
    let secrets: Vec<Vec<u8>> =
        model.blocks.iter().filter(|it| **it != 0).map(|it| block_bytes(*it)).collect();
    for object in world.backend.list("").await.unwrap() {
        let stored: Bytes = world.backend.read(&object.name, None).await.unwrap();
        for secret in &secrets {
            assert!(!stored.windows(16).any(|part| part == &secret[..16]), "{}", object.name);
        }
    }
}
