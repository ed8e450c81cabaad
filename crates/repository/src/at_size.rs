//! Repositories of many versions: how many calls, how much memory and how much time pruning and verifying take.
//!
//! The generator makes what publishing makes (packs, indexes, signed manifests), of frames whose blocks are all the same, so that a
//! repository of ten million blocks takes a minute and half a gigabyte. The small form is an ordinary test; the large one is in
//! `figures`, which only `make bench` builds and runs.

#[cfg(feature = "at-size")]
mod figures;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use collective_model::{
    BLOCK_BYTES, BlockRange, DiskRole, Epoch, RepositoryId, Silent, Timestamp, Version,
};

use crate::backend::{Backend, CallKind, Commit, Directory, Fault, Faulty, Memory, ObjectName};
use crate::descriptor::{Descriptor, FORMAT, Kind, Trust};
use crate::frame::{Effort, FrameRef};
use crate::index::{Index, IndexExtent};
use crate::keys::SigningKey;
use crate::manifest::{DiskManifest, Manifest, PackEntry};
use crate::pack::PackWriter;
use crate::prune::{PruneOptions, PruneReport};
use crate::publish::{DiskSource, Piece, PieceData, Publication};
use crate::reader::{ExtentData, VersionReader};
use crate::repository::Repository;
use crate::retention::Retention;

const HOUR_MS: i64 = 3_600_000;
const BEGIN: Timestamp = Timestamp(1_767_225_600_000);
const FRAME_BLOCKS: u64 = 64;

/// What is made.
#[derive(Clone, Copy, Debug)]
struct Shape {
    versions: u64,
    /// Frames that each version writes, over the oldest ones when the disk is full.
    frames: u64,
    /// Frames that the disk has room for.
    disk_frames: u64,
}

/// A repository being made.
struct Maker {
    repository: Repository,
    key: SigningKey,
    shape: Shape,
    /// The frames of the disk, oldest first, with their places on it.
    live: VecDeque<(FrameRef, u64)>,
    packs: VecDeque<PackEntry>,
    written: u64,
}

impl Maker {
    async fn make(backend: Arc<dyn Backend>, shape: Shape) -> Self {
        let key = SigningKey::from_seed([7; 32]);
        let id = RepositoryId([1; 16]);
        let descriptor = Descriptor::public(id, Kind::UserDisk, key.publisher());
        let repository = Repository::create(backend, descriptor, None).await.unwrap();
        let (live, packs) = (VecDeque::new(), VecDeque::new());
        let mut maker = Self { repository, key, shape, live, packs, written: 0 };
        for number in 1..=shape.versions {
            maker.version(Version::new(number).unwrap()).await;
        }
        maker
    }

    async fn version(&mut self, version: Version) {
        self.pack().await;
        let index = self.index();
        let disk_blocks = self.shape.disk_frames * FRAME_BLOCKS;
        let packs: Vec<PackEntry> = self.packs.iter().copied().collect();
        let encoded = index.encode(disk_blocks, &packs, self.repository.sealer()).unwrap();
        let disk = DiskManifest {
            role: DiskRole::User,
            size_bytes: disk_blocks * BLOCK_BYTES,
            data_bytes: index.data_bytes(),
            index: encoded.entry,
            trace: None,
        };
        let name = disk.index_name(version);
        self.repository.backend().write(&name, encoded.bytes.into()).await.unwrap();
        let manifest = Manifest {
            format: FORMAT,
            repository: self.repository.descriptor().id,
            version,
            parent: Version::new(version.number() - 1),
            time: time_of(version),
            notes: String::new(),
            id: String::new(),
            epoch: Epoch::default(),
            hardware: None,
            disks: vec![disk],
            packs,
        };
        let (manifest, epoch) = (manifest.sign(&self.key), Epoch::default());
        self.repository.backend().commit(Commit { version, manifest, epoch }).await.unwrap();
    }

    /// Writes the frames of a version into a pack of its own, and forgets what they replace.
    async fn pack(&mut self) {
        let mut writer = PackWriter::new(self.repository.descriptor());
        let sealer = self.repository.sealer();
        let mut frames = Vec::new();
        for _ in 0..self.shape.frames {
            let block = self.written.to_le_bytes().repeat(BLOCK_BYTES as usize / 8);
            let plain = block.repeat(FRAME_BLOCKS as usize);
            let frame = self.repository.encoder().encode(&plain, Effort::Much, sealer).unwrap();
            let hashes = vec![sealer.block_hash(&block); FRAME_BLOCKS as usize];
            frames.push((writer.append(&frame, &hashes), self.written % self.shape.disk_frames));
            self.written += 1;
        }
        let pack = writer.finish();
        let name = ObjectName::Pack(pack.entry.id);
        self.repository.backend().write(&name, pack.bytes).await.unwrap();
        self.packs.push_back(pack.entry);
        self.live.extend(frames.into_iter().map(|(it, place)| (it.in_pack(pack.entry.id), place)));
        let dead = self.live.len().saturating_sub(self.shape.disk_frames as usize);
        self.live.drain(..dead);
        while self.packs.front().is_some_and(|pack| pack.id != self.live[0].0.pack) {
            self.packs.pop_front();
        }
    }

    fn index(&self) -> Index {
        let frames = self.live.iter().map(|(frame, _)| *frame).collect();
        let extent = |(number, (_, place)): (usize, &(FrameRef, u64))| IndexExtent {
            start: place * FRAME_BLOCKS,
            count: FRAME_BLOCKS as u32,
            frame: number as u32,
            first: 0,
        };
        let mut extents: Vec<IndexExtent> = self.live.iter().enumerate().map(extent).collect();
        extents.sort_unstable_by_key(|extent| extent.start);
        Index { extents, frames }
    }
}

fn time_of(version: Version) -> Timestamp {
    Timestamp(BEGIN.0 + version.number() as i64 * HOUR_MS)
}

async fn prune(repository: &Repository, rule: Retention, now: Timestamp) -> PruneReport {
    let (grace, keep) = (Duration::from_millis(HOUR_MS as u64), Vec::new());
    repository.prune(PruneOptions { rule, keep, grace, now, dry_run: false }).await.unwrap()
}

/// Opens a repository anew, through what counts its calls.
async fn counted(
    backend: Arc<dyn Backend>,
    of: &Repository,
) -> (Repository, Arc<Mutex<BTreeMap<String, u64>>>) {
    let counts = Arc::new(Mutex::new(BTreeMap::new()));
    let noted = counts.clone();
    let counting = Faulty::new(backend, move |call| {
        *noted.lock().unwrap().entry(format!("{:?}", call.kind)).or_default() += 1;
        Fault::Pass
    });
    let descriptor = of.descriptor();
    let trust = Trust { id: descriptor.id, publisher: descriptor.publisher, secret: None };
    (Repository::open(Arc::new(counting), trust).await.unwrap(), counts)
}

#[tokio::test]
async fn pruning_and_verifying_two_hundred_versions_take_a_few_calls_for_each() {
    let shape = Shape { versions: 200, frames: 4, disk_frames: 100 };
    let memory = Arc::new(Memory::new());
    let maker = Maker::make(memory.clone(), shape).await;
    let (repository, counts) = counted(memory.clone(), &maker.repository).await;
    let calls = || std::mem::take(&mut *counts.lock().unwrap());
    let of = |counts: &BTreeMap<String, u64>, kind: CallKind| {
        counts.get(&format!("{kind:?}")).copied().unwrap_or_default()
    };
    calls();
    let report = repository.verify(&Silent).await.unwrap();
    assert_eq!((report.damages, report.objects), (vec![], 2 + 3 * 200));
    let verified = calls();
    // Twice the manifest, the index and the pack of each.
    assert!(of(&verified, CallKind::Read) <= 4 * 200 + 5, "{verified:?}");
    assert!(of(&verified, CallKind::Size) <= 200 && of(&verified, CallKind::List) <= 1);

    let now = time_of(Version::new(200).unwrap());
    let first = prune(&repository, Retention::of_last(20), now).await;
    assert_eq!((first.kept_versions.len(), first.removed_versions.len()), (20, 180));
    let noted = calls();
    assert!(of(&noted, CallKind::Read) <= 200 + 20 + 5, "{noted:?}");
    assert_eq!((of(&noted, CallKind::List), of(&noted, CallKind::Delete)), (3, 180));
    let second = prune(&repository, Retention::of_last(20), now.after(Duration::from_secs(7200)));
    // 180 indexes; packs of the last 20 + 25 versions are reached.
    assert_eq!(second.await.removed_objects, 180 + 200 - 20 - 24);
    let swept = calls();
    assert!(of(&swept, CallKind::Read) <= 2 * 20 + 5, "{swept:?}");
    assert!(of(&swept, CallKind::Head) <= 20 && of(&swept, CallKind::Write) == 1, "{swept:?}");
    assert_eq!(repository.verify(&Silent).await.unwrap().damages, []);
}

#[tokio::test]
async fn a_verification_goes_on_where_it_was_and_finds_the_same() {
    let shape = Shape { versions: 12, frames: 3, disk_frames: 9 };
    let memory = Arc::new(Memory::new());
    let maker = Maker::make(memory.clone(), shape).await;
    let pack = ObjectName::Pack(maker.packs[1].id);
    let mut bytes = memory.read(&pack, None).await.unwrap().to_vec();
    bytes[70] ^= 1;
    memory.write(&pack, bytes.into()).await.unwrap();
    let whole = maker.repository.verify(&Silent).await.unwrap();
    assert_eq!(whole.damages.iter().map(|it| &it.object).collect::<Vec<_>>(), [&pack.to_string()]);
    let steps = 12 + 12 + 12;
    for cut in 0..=steps {
        let mut first = maker.repository.verification(Default::default()).await.unwrap();
        for _ in 0..cut {
            assert!(first.step().await.unwrap());
        }
        let kept = serde_json::to_string(first.state()).unwrap();
        let (repository, counts) = counted(memory.clone(), &maker.repository).await;
        let mut second =
            repository.verification(serde_json::from_str(&kept).unwrap()).await.unwrap();
        while second.step().await.unwrap() {}
        assert_eq!(second.state().report, whole, "cut after {cut} steps");
        if cut == steps {
            // Manifests, and the tables of packs; no index again.
            assert!(counts.lock().unwrap()["Read"] <= 12 + 12 + 3, "{counts:?}");
        }
    }
}

#[tokio::test]
async fn what_is_pruned_while_it_is_verified_is_no_damage_and_what_is_lost_is() {
    let shape = Shape { versions: 12, frames: 3, disk_frames: 9 };
    let memory = Arc::new(Memory::new());
    let maker = Maker::make(memory.clone(), shape).await;
    for steps in 0..36 {
        let copy = Arc::new(Memory::new());
        for object in memory.list("").await.unwrap() {
            let bytes = memory.read(&object.name, None).await.unwrap();
            copy.write(&object.name, bytes).await.unwrap();
        }
        let (repository, _) = counted(copy.clone(), &maker.repository).await;
        let mut verification = repository.verification(Default::default()).await.unwrap();
        for _ in 0..steps {
            verification.step().await.unwrap();
        }
        let now = time_of(Version::new(12).unwrap());
        prune(&repository, Retention::of_last(3), now).await;
        prune(&repository, Retention::of_last(3), now.after(Duration::from_secs(7200))).await;
        let lost = ObjectName::Pack(maker.packs.back().unwrap().id);
        copy.delete(&lost).await.unwrap();
        while verification.step().await.unwrap() {}
        let damages = verification.state().report.damages.iter();
        let found: Vec<_> = damages.map(|it| it.object.clone()).collect();
        match steps {
            0..12 => assert_eq!(found, [lost.to_string()], "after {steps} steps"),
            // The pack may have been read before.
            12..24 => assert!(found.is_empty() || found == [lost.to_string()], "{found:?}"),
            _ => assert!(found.is_empty(), "after {steps} steps: {found:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prune_cuts_neither_a_reader_nor_publications_under_way() {
    let shape = Shape { versions: 60, frames: 2, disk_frames: 40 };
    let directory = tempfile::tempdir().unwrap();
    let backend: Arc<dyn Backend> = Arc::new(Directory::create(directory.path()).unwrap());
    let maker = Maker::make(backend, shape).await;
    let (repository, done) = (maker.repository.clone(), Arc::new(AtomicBool::new(false)));
    // Of a version that the first prune removes.
    let old = repository.version(Version::new(30).unwrap()).await.unwrap();
    let reader = tokio::spawn(read_on(old, done.clone()));
    let key = || maker.key.clone();
    let publisher = tokio::spawn(publish_on(repository.clone(), key(), OFTEN, done.clone()));
    let first = prune(&repository, Retention::of_last(10), in_days(60)).await;
    assert!(first.removed_versions.contains(&Version::new(30).unwrap()));
    done.store(true, Ordering::SeqCst);
    assert!(reader.await.unwrap() > 0);
    assert!(publisher.await.unwrap().0 > 0);

    // What the first noted goes, and publications go on beside it.
    let done = Arc::new(AtomicBool::new(false));
    let head = repository.head().await.unwrap().unwrap();
    let reader = tokio::spawn(read_on(repository.version(head).await.unwrap(), done.clone()));
    let publisher = tokio::spawn(publish_on(repository.clone(), key(), OFTEN, done.clone()));
    let second = prune(&repository, Retention::of_last(10), in_days(61)).await;
    assert!(second.removed_objects > 50 + 20, "{second:?}");
    done.store(true, Ordering::SeqCst);
    assert!(reader.await.unwrap() > 0);
    assert!(publisher.await.unwrap().0 > 0);
    assert_eq!(repository.verify(&Silent).await.unwrap().damages, []);
}

fn in_days(days: u64) -> Timestamp {
    let now = Timestamp::from(std::time::SystemTime::now());
    now.after(Duration::from_secs(days * 24 * 3600))
}

/// Between two publications and two reads of a test that wants them in the way.
const OFTEN: Duration = Duration::from_millis(20);
const READ_PAUSE: Duration = Duration::from_millis(1);

/// Reads here and there on a disk until the work is done, at least once.
async fn read_on(version: VersionReader, done: Arc<AtomicBool>) -> u64 {
    let disk = version.disk(DiskRole::User).await.unwrap();
    let extents = disk.map(BlockRange::covering(0, disk.size_bytes())).await.unwrap();
    let mut reads = 0;
    while reads == 0 || !done.load(Ordering::SeqCst) {
        let extent = extents[reads as usize * 7919 % extents.len()];
        if let ExtentData::Frame { frame, .. } = extent.what {
            disk.fetch_one(&frame).await.unwrap();
        }
        reads += 1;
        tokio::time::sleep(READ_PAUSE).await;
    }
    reads
}

/// Publishes version after version until the work is done, at least one; returns how many, and how long the longest took.
async fn publish_on(
    repository: Repository,
    key: SigningKey,
    pause: Duration,
    done: Arc<AtomicBool>,
) -> (u64, Duration) {
    let (mut versions, mut longest) = (0, Duration::ZERO);
    while versions == 0 || !done.load(Ordering::SeqCst) {
        let head = repository.head().await.unwrap();
        let parent = repository.version(head.unwrap()).await.unwrap();
        let bytes = Bytes::from(format!("{head:?} ").repeat(400));
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes[..BLOCK_BYTES as usize], 0).unwrap();
        let what = PieceData::File { file: Arc::new(file), offset: 0 };
        let disk = DiskSource {
            base: head,
            ..DiskSource::new(
                DiskRole::User,
                parent.manifest().disk(DiskRole::User).unwrap().size_bytes,
                vec![Piece { range: BlockRange::new(versions, 1), what }],
            )
        };
        let publication = Publication::new(head, parent.manifest().time, vec![disk]);
        let begin = Instant::now();
        repository.publish(publication, &key, &Silent).await.unwrap();
        longest = longest.max(begin.elapsed());
        versions += 1;
        tokio::time::sleep(pause).await;
    }
    (versions, longest)
}
