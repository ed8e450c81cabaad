//! Damage by the thousand as a guest meets it: versions are read as disks, while the files of the cache below them and the
//! objects of the repository behind it are flipped, cut, zeroed, swapped, put back to what they were, lost or doubled.
//!
//! Beside it stands a model, the bytes that were published. A read gives them, or waits and is late with the name of what was
//! damaged. Once the repository is whole again every read comes to its end, those that waited too, and all is right.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use collective_model::{
    BlockRange, Digest, DiskRole, Error, ErrorKind, RepositoryId, Silent, Timestamp, Version,
};
use collective_repository::backend::{Backend, Memory, ObjectName};
use collective_repository::{
    Descriptor, DiskSource, Kind, Piece, PieceData, Publication, Repository, RepositorySecret,
    SigningKey, Trace, Trust, VersionReader,
};
use collective_testing::{Random, damage, each_seed_at_once};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::VersionDisk;
use crate::cache::{Cache, CacheOptions};
use crate::fetcher::{FetchSettings, Fetcher, Late};
use crate::source::Source;
use crate::storm::{self, Files, read_files, write_files};

const RUNS: u64 = 3000;
/// Most of a run is waiting.
const AT_ONCE: u64 = 6;
const BLOCK: usize = 4096;
const BLOCKS: usize = 96;
/// Less than both versions take, so that what was fetched goes and comes again.
const SMALL: CacheOptions = CacheOptions { capacity_bytes: 512 * 1024 };
/// Pauses of no length: what is damaged is found out as often as there is time.
const HASTY: FetchSettings = FetchSettings {
    demand_places: 4,
    first_pause: Duration::from_micros(100),
    longest_pause: Duration::from_millis(1),
    late_after: Duration::from_millis(1),
};
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
const VERSIONS: usize = 2;

type Objects = BTreeMap<ObjectName, Vec<u8>>;

#[test]
fn whatever_is_damaged_below_a_disk_a_read_is_right_or_late_with_a_name() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let samples: Vec<_> =
        (1..=6).map(|seed| runtime().block_on(Sample::make(&mut Random::new(seed)))).collect();
    let seen = Seen::default();
    let many = each_seed_at_once(AT_ONCE, RUNS, |mut random| {
        let sample = &samples[random.below(samples.len())];
        runtime().block_on(async {
            let run = Run::begin(sample, random, &seen).await;
            let all = tokio::time::timeout(PATIENCE, run.play());
            all.await.expect("every read comes to its end once the repository is whole");
        });
    });
    let seen = [seen.right, seen.late, seen.refused].map(AtomicUsize::into_inner);
    assert!(!many || seen.iter().all(|count| *count > 0), "right, late, refused: {seen:?}");
}

/// What came of all reads.
#[derive(Debug, Default)]
struct Seen {
    right: AtomicUsize,
    late: AtomicUsize,
    refused: AtomicUsize,
}

/// A repository with its history, and what it must show.
struct Sample {
    trust: Trust,
    /// The objects after each publication; the last is what is damaged.
    history: Vec<Objects>,
    model: Vec<Vec<u8>>,
}

impl Sample {
    async fn make(random: &mut Random) -> Self {
        let memory = Arc::new(Memory::new());
        let secret = random.once_in(2).then(|| RepositorySecret::new([7; 32]));
        let id = RepositoryId([5; 16]);
        let (descriptor, key) = match &secret {
            Some(secret) => (Descriptor::private(id, Kind::UserDisk, secret), secret.signing_key()),
            None => {
                let key = SigningKey::from_seed([3; 32]);
                (Descriptor::public(id, Kind::Appliance, key.publisher()), key)
            }
        };
        // Small frames, so that a small disk has many.
        let descriptor = Descriptor { frame_bytes: 32 << 10, ..descriptor };
        let trust = Trust { id, publisher: key.publisher(), secret: secret.clone() };
        let repository = Repository::create(memory.clone(), descriptor, secret).await.unwrap();
        let (mut content, mut history, mut model) =
            (vec![0; BLOCKS * BLOCK], Vec::new(), Vec::new());
        for base in [None, Some(Version::FIRST)] {
            let pieces = (0..4).map(|_| change(&mut content, random)).collect();
            repository.publish(publication(base, pieces), &key, &Silent).await.unwrap();
            let mut objects = Objects::new();
            for object in memory.list("").await.unwrap() {
                let bytes = memory.read(&object.name, None).await.unwrap();
                objects.insert(object.name, bytes.to_vec());
            }
            history.push(objects);
            model.push(content.clone());
        }
        Self { trust, history, model }
    }

    fn intact(&self) -> &Objects {
        &self.history[1]
    }
}

/// Writes a run of blocks that look like no others, and says where.
fn change(content: &mut [u8], random: &mut Random) -> Piece {
    let start = random.below(BLOCKS);
    let count = 1 + random.below((BLOCKS - start).min(40));
    let run = &mut content[start * BLOCK..(start + count) * BLOCK];
    run.chunks_exact_mut(2)
        .for_each(|two| two.copy_from_slice(&(random.below(1 << 16) as u16).to_le_bytes()));
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(run, 0).unwrap();
    let what = PieceData::File { file: Arc::<File>::new(file), offset: 0 };
    Piece { range: BlockRange::new(start as u64, count as u64), what }
}

fn publication(base: Option<Version>, pieces: Vec<Piece>) -> Publication {
    let disk = DiskSource {
        base,
        trace: Some(Trace { ranges: vec![BlockRange::new(7, 30), BlockRange::new(60, 8)] }),
        ..DiskSource::new(DiskRole::System, (BLOCKS * BLOCK) as u64, pieces)
    };
    Publication {
        id: format!("after {base:?}"),
        ..Publication::new(base, Timestamp(0), vec![disk])
    }
}

/// A host with one cache and the disks of both versions, in bad times.
struct Run<'a> {
    sample: &'a Sample,
    seen: &'a Seen,
    random: Random,
    memory: Arc<Memory>,
    objects: Objects,
    /// All that was damaged so far.
    damaged: BTreeSet<ObjectName>,
    directory: TempDir,
    /// The files of the cache as they were now and again.
    files: Vec<Files>,
    fetcher: Fetcher,
    disks: [Option<VersionDisk>; VERSIONS],
    /// Reads that wait for the repository to be whole.
    waiting: JoinSet<Read>,
    replays: JoinSet<Vec<Digest>>,
}

/// A read that came to its end.
struct Read {
    disk: usize,
    offset: usize,
    data: Bytes,
}

impl<'a> Run<'a> {
    async fn begin(sample: &'a Sample, random: Random, seen: &'a Seen) -> Self {
        let (memory, directory) = (Arc::new(Memory::new()), storm::directory());
        for (name, bytes) in sample.intact() {
            memory.write(name, bytes.clone().into()).await.unwrap();
        }
        let cache = Cache::open_any(directory.path(), SMALL).unwrap();
        Self {
            sample,
            seen,
            random,
            memory,
            objects: sample.intact().clone(),
            damaged: BTreeSet::new(),
            directory,
            files: Vec::new(),
            fetcher: Fetcher::new(cache, HASTY),
            disks: [None, None],
            waiting: JoinSet::new(),
            replays: JoinSet::new(),
        }
    }

    async fn play(mut self) {
        for _ in 0..8 + self.random.below(24) {
            match self.random.below(16) {
                0..8 => self.read().await,
                8 => self.read_now(),
                9 => self.replay().await,
                10 | 11 => self.damage_cache(),
                12 | 13 => self.damage_repository().await,
                14 => self.put_right().await,
                _ => drop(self.fetcher.cache().trim(self.random.below(1 << 19) as u64)),
            }
        }
        self.put_right().await;
        self.fetcher.retry_now();
        while let Some(read) = self.waiting.join_next().await {
            self.check(&read.unwrap());
        }
        while let Some(frames) = self.replays.join_next().await {
            assert!(!frames.unwrap().is_empty());
        }
        for disk in 0..VERSIONS {
            let reader = self.open(disk).await.expect("the repository is whole");
            let whole = reader.read(0, BLOCKS * BLOCK).await.unwrap();
            self.check(&Read { disk, offset: 0, data: whole });
        }
    }

    /// The disk of a version, opened when it is first wanted: whole, or refused for a reason.
    async fn open(&mut self, disk: usize) -> Option<VersionDisk> {
        if let Some(open) = &self.disks[disk] {
            return Some(open.clone());
        }
        let reader = async {
            let version = self.version(disk).await?;
            version.disk(DiskRole::System).await
        };
        match reader.await {
            Ok(reader) => {
                let open = VersionDisk::new(reader, self.fetcher.clone());
                self.disks[disk] = Some(open.clone());
                Some(open)
            }
            Err(error) => {
                self.check_error(&error);
                None
            }
        }
    }

    async fn version(&self, disk: usize) -> collective_model::Result<VersionReader> {
        let backend: Arc<dyn Backend> = self.memory.clone();
        let repository = Repository::open(backend, self.sample.trust.clone()).await?;
        repository.version(Version::new(disk as u64 + 1).unwrap()).await
    }

    /// Reads any part of any version, until it comes or is late with a name; then it goes on waiting.
    async fn read(&mut self) {
        let disk = self.random.below(VERSIONS);
        let Some(open) = self.open(disk).await else {
            self.seen.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let offset = self.random.below(BLOCKS * BLOCK);
        let length = 1 + self.random.below((BLOCKS * BLOCK - offset).min(20 * BLOCK));
        let mut late = open.late();
        let mut reading = Box::pin(async move {
            let data = open.read(offset as u64, length).await.unwrap();
            Read { disk, offset, data }
        });
        let damaged = &self.damaged;
        let named = |late: &Option<Late>| late.as_ref().is_some_and(|late| names(late, damaged));
        tokio::select! {
            read = &mut reading => self.check(&read),
            _ = late.wait_for(named) => {
                self.seen.late.fetch_add(1, Ordering::Relaxed);
                self.waiting.spawn(reading);
            }
        }
    }

    /// Reads what is there without waiting.
    fn read_now(&mut self) {
        let disk = self.random.below(VERSIONS);
        let Some(open) = &self.disks[disk] else { return };
        let offset = self.random.below(BLOCKS * BLOCK);
        let mut data = vec![0; 1 + self.random.below((BLOCKS * BLOCK - offset).min(9 * BLOCK))];
        if open.read_now(offset as u64, &mut data) {
            self.check(&Read { disk, offset, data: data.into() });
        }
    }

    /// Brings the boot of a version beside all else: it ends where what it needs is damaged, unless a read waits for that.
    async fn replay(&mut self) {
        let disk = self.random.below(VERSIONS);
        let Some(open) = self.open(disk).await else { return };
        let version = match self.version(disk).await {
            Ok(version) => version,
            Err(error) => return self.check_error(&error),
        };
        match version.trace(DiskRole::System).await {
            Ok(trace) => {
                self.replays.spawn(async move { open.replay(&trace).await });
            }
            Err(error) => self.check_error(&error),
        }
    }

    fn check(&self, read: &Read) {
        let Read { disk, offset, data } = read;
        let expected = &self.sample.model[*disk][*offset..offset + data.len()];
        assert!(data == expected, "{} wrong bytes at {offset} of version {disk}", data.len());
        self.seen.right.fetch_add(1, Ordering::Relaxed);
    }

    fn check_error(&self, error: &Error) {
        assert!([ErrorKind::Corrupt, ErrorKind::NotFound].contains(&error.kind()), "{error:?}");
        let named = self.damaged.iter().any(|name| error.chain().contains(&name.to_string()));
        // A version whose manifest is gone does not exist.
        let missing = error.kind() == ErrorKind::NotFound && error.chain().contains("version ");
        assert!(named || missing, "{} names none of {:?}", error.chain(), self.damaged);
    }

    fn damage_cache(&mut self) {
        let before = read_files(&["segments", "pins"].map(|it| self.directory.path().join(it)));
        let mut after = before.clone();
        damage(&mut after, &self.files, &mut self.random, |path: &PathBuf, random| {
            path.with_file_name(format!("{:016x}.segment", random.below(64)))
        });
        write_files(&before, &after);
        self.files.push(before);
    }

    async fn damage_repository(&mut self) {
        let mut after = self.objects.clone();
        damage(&mut after, &self.sample.history, &mut self.random, |_, random| {
            ObjectName::Pack(Digest([random.below(256) as u8; 32]))
        });
        self.become_objects(after).await;
        let other = |name: &&ObjectName| self.objects.get(*name) != self.sample.intact().get(*name);
        let damaged: Vec<_> =
            self.objects.keys().chain(self.sample.intact().keys()).filter(other).copied().collect();
        self.damaged.extend(damaged);
    }

    async fn put_right(&mut self) {
        self.become_objects(self.sample.intact().clone()).await;
    }

    async fn become_objects(&mut self, objects: Objects) {
        for (name, bytes) in &objects {
            if self.objects.get(name) != Some(bytes) {
                self.memory.write(name, bytes.clone().into()).await.unwrap();
            }
        }
        for name in self.objects.keys().filter(|name| !objects.contains_key(*name)) {
            self.memory.delete(name).await.unwrap();
        }
        self.objects = objects;
    }
}

/// Tells whether a late read says what is at fault.
fn names(late: &Late, damaged: &BTreeSet<ObjectName>) -> bool {
    damaged.iter().any(|name| late.reason.text.contains(&name.to_string()))
}
