//! Copies: what was read is there without the server, what is damaged is read again, and what is large is not waited for.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use collective_disk::{Cache, CacheOptions, FetchSettings, Fetcher};
use collective_model::{BlockRange, Digest, DiskRole, RepositoryId, Silent, Timestamp, Version};
use collective_repository::backend::{
    Backend, Directory, Fault, Faulty, Line, Memory, ObjectName, PartKind,
};
use collective_repository::{
    Descriptor, DiskSource, ExtentData, Kind, Piece, PieceData, Publication, Repository,
    SigningKey, Trust, VersionReader,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{Copies, Replica, WHOLE_INDEX_BYTES};

#[tokio::test]
async fn what_was_read_once_is_there_without_the_server() {
    let directory = Place::new();
    let real = Arc::new(Memory::default());
    real.write(&ObjectName::Descriptor, Bytes::from_static(b"repository")).await.unwrap();
    let near = replica(real, &directory);
    near.read(&ObjectName::Descriptor, None).await.unwrap();
    assert_eq!(near.head().await.unwrap(), None);

    let away = replica(Arc::new(Memory::default()), &directory);
    let bytes = away.read(&ObjectName::Descriptor, Some(2..4)).await.unwrap();
    assert_eq!(&bytes[..], b"po");
    assert!(away.read(&ObjectName::Descriptor, Some(2..40)).await.is_err());
    assert!(away.distrust(&ObjectName::Descriptor).await);
    assert!(!away.distrust(&ObjectName::Descriptor).await);
    assert!(away.read(&ObjectName::Descriptor, None).await.is_err());
}

#[tokio::test]
async fn a_damaged_copy_is_read_again_and_no_damage_is_kept() {
    let directory = Place::new();
    let (real, trust) = one_version().await;
    let near = || Arc::new(replica(Arc::clone(&real) as _, &directory));
    let read = async || {
        let repository = Repository::open(near(), trust.clone()).await?;
        let version = repository.version(Version::FIRST).await?;
        version.trace(DiskRole::System).await?;
        version.disk(DiskRole::System).await?.map(BlockRange::new(0, 1)).await
    };
    read().await.unwrap();
    let copies: Vec<_> = std::fs::read_dir(directory.copies()).unwrap().flatten().collect();
    let copies = copies.iter().filter(|copy| copy.file_name() != "head.json");
    let copies: Vec<_> = copies.map(std::fs::DirEntry::path).collect();
    assert_eq!(copies.len(), 4, "{copies:?}");
    for copy in copies {
        let whole = std::fs::read(&copy).unwrap();
        std::fs::write(&copy, &whole[..whole.len() / 2]).unwrap();
        read().await.unwrap();
        assert_eq!(std::fs::read(&copy).unwrap(), whole);
    }
}

#[tokio::test]
async fn copies_of_old_versions_go() {
    let directory = Place::new();
    let near = replica(Arc::new(Memory::default()), &directory);
    let version = |number| Version::new(number).unwrap();
    for number in [1, 99, 100, 101, 300] {
        near.keep(&ObjectName::Manifest(version(number)), b"manifest");
    }
    near.drop_older(version(300));
    let left = [1, 99, 100, 101, 300]
        .map(|number| near.copy(&ObjectName::Manifest(version(number)), None).is_some());
    assert_eq!(left, [false, false, true, true, true]);
}

#[tokio::test]
async fn a_large_index_is_read_by_ranges_at_once_and_copied_behind_that() {
    let place = Place::new();
    let (name, object) = large_index();
    let line = Arc::new(slow(&object).await);
    let near = replica(line.clone(), &place);
    let size_bytes = object.len() as u64;
    let read = async |range: std::ops::Range<u64>| {
        let before = line.carried_bytes();
        let bytes = near.read(&name, Some(range.clone())).await.unwrap();
        assert!(bytes == object[range.start as usize..range.end as usize]);
        line.carried_bytes() - before
    };
    // The directory at the end, and pages from anywhere: of the copy only little comes between.
    let mut asked = 0;
    for range in [size_bytes - 12_000..size_bytes, 500_000..540_000, 0..40_000] {
        asked += range.end - range.start;
        let came = read(range.clone()).await;
        assert!(came < range.end - range.start + size_bytes / 4, "{came} for {range:?}");
    }
    whole(&near, &name).await;
    assert_eq!(line.carried_bytes(), asked + size_bytes, "something came twice");
    assert_eq!(read(0..size_bytes).await, 0);
    let away = replica(Arc::new(Memory::default()), &place);
    assert!(away.read(&name, None).await.unwrap() == object);
    assert_eq!(away.size(&name).await.unwrap(), Some(size_bytes));
}

#[tokio::test]
async fn a_copy_that_was_cut_short_goes_on_where_it_was() {
    let place = Place::new();
    let (name, object) = large_index();
    let line = Arc::new(slow(&object).await);
    let stop = CancellationToken::new();
    let first = replica_until(line.clone(), &place, stop.clone());
    first.read(&name, Some(0..40_000)).await.unwrap();
    first.read(&name, Some(200_000..240_000)).await.unwrap();
    let part = super::part_of(&first.path(&name));
    let came = async || {
        while std::fs::metadata(&part).map_or(0, |metadata| metadata.len()) < 100_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, came()).await.unwrap();
    stop.cancel();
    idle(&line).await;
    let kept = std::fs::metadata(&part).unwrap().len();
    drop(first);

    // The server is away at first.
    let refusals = |call: collective_repository::backend::Call| match call.number {
        ..2 => Fault::Refuse,
        _ => Fault::Pass,
    };
    let memory = at_rest(&object).await;
    let counted = Arc::new(Line::new(memory, 1 << 40, Duration::ZERO));
    let away = Arc::new(Faulty::new(counted.clone(), refusals));
    let second = replica(away, &place);
    second.read(&name, Some(200_000..240_000)).await.unwrap_err();
    whole(&second, &name).await;
    assert_eq!(counted.carried_bytes(), object.len() as u64 - kept);
    assert!(second.read(&name, None).await.unwrap() == object);
}

#[tokio::test]
async fn only_who_holds_a_version_copies_a_huge_index() {
    let place = Place::new();
    let (name, _) = large_index();
    let object = vec![7; super::COPIED_BYTES as usize + 1];
    let counted = Arc::new(Line::new(at_rest(&object).await, 1 << 40, Duration::ZERO));
    let near = replica(counted.clone(), &place);
    for _ in 0..100 {
        near.read(&name, Some(0..10)).await.unwrap();
    }
    idle(&counted).await;
    // One question here, one by who would copy it, and no more of them.
    assert!(counted.requests() <= 103, "{}", counted.requests());
    assert!(counted.carried_bytes() <= 1000 && near.copy(&name, None).is_none());
    near.keep_whole(&name).await.unwrap();
    assert!(near.copy(&name, None).unwrap().unwrap() == object);
    assert!(near.distrust(&name).await, "it can be given up");
}

#[tokio::test]
async fn a_large_index_is_used_without_the_server_and_a_damaged_page_of_its_copy_is_not() {
    let place = Place::new();
    let (real, trust) = many_extents().await;
    let open = async |backend: Arc<dyn Backend>| {
        let repository =
            Repository::open(Arc::new(replica(backend, &place)), trust.clone()).await?;
        repository.version(Version::FIRST).await
    };
    let map = async |version: &VersionReader, part: BlockRange| {
        version.disk(DiskRole::System).await?.map(part).await
    };
    let version = open(real.clone()).await.unwrap();
    let disk = version.manifest().disk(DiskRole::System).unwrap();
    let (name, size_bytes) = (disk.index_name(Version::FIRST), disk.index.bytes);
    assert!(size_bytes > WHOLE_INDEX_BYTES, "{size_bytes}");
    let all = BlockRange::new(0, EXTENTS * STRIDE);
    let extents = map(&version, all).await.unwrap();
    assert_eq!(extents.iter().filter(|it| it.what != ExtentData::Zero).count() as u64, EXTENTS);
    let near = replica(real.clone(), &place);
    whole(&near, &name).await;

    let away: Arc<dyn Backend> = Arc::new(Faulty::new(real.clone(), |_| Fault::Refuse));
    let offline = async || map(&open(away.clone()).await?, all).await;
    assert_eq!(offline().await.unwrap(), extents);
    let mut bytes = near.copy(&name, None).unwrap().unwrap().to_vec();
    bytes[size_bytes as usize / 3] ^= 1;
    std::fs::write(near.path(&name), bytes).unwrap();
    assert_eq!(map(&open(real.clone()).await.unwrap(), all).await.unwrap(), extents);
    whole(&near, &name).await;
    assert_eq!(offline().await.unwrap(), extents);
}

/// Runs of one block, and blocks for each.
const EXTENTS: u64 = 60_000;
const STRIDE: u64 = 500;

/// A repository whose first version has so many runs that a slow line takes seconds for their index.
async fn many_extents() -> (Arc<dyn Backend>, Trust) {
    let blocks = tempfile::NamedTempFile::new().unwrap();
    let random = |number: u64| u64::from_le_bytes(digest(number).0[..8].try_into().unwrap());
    let plain: Vec<u8> = (1..=100 * 512).flat_map(|at| random(at).to_le_bytes()).collect();
    std::fs::write(blocks.path(), plain).unwrap();
    let file = Arc::new(File::open(blocks.path()).unwrap());
    let piece = |run: u64| Piece {
        range: BlockRange::new(run * STRIDE + random(run) % STRIDE, 1),
        what: PieceData::File { file: Arc::clone(&file), offset: random(run) % 100 * 4096 },
    };
    let disk = DiskSource::new(
        DiskRole::System,
        EXTENTS * STRIDE * 4096,
        (0..EXTENTS).map(piece).collect(),
    );
    let publication =
        Publication { id: "many".to_owned(), ..Publication::new(None, Timestamp(0), vec![disk]) };
    let signer = SigningKey::from_seed([3; 32]);
    let (id, publisher) = (RepositoryId([5; 16]), signer.publisher());
    let real = Arc::new(Memory::default());
    let descriptor = Descriptor::public(id, Kind::Appliance, publisher);
    let repository = Repository::create(real.clone(), descriptor, None).await.unwrap();
    repository.publish(publication, &signer, &Silent).await.unwrap();
    (real, Trust { id, publisher, secret: None })
}

fn digest(number: u64) -> Digest {
    Digest(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a host keeps its copies, and what fetches for it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn copies(&self) -> &Path {
        self.0.path()
    }
}

/// A host's view of a repository, as after a start of the daemon.
fn replica(real: Arc<dyn Backend>, place: &Place) -> Replica {
    replica_until(real, place, CancellationToken::new())
}

fn replica_until(real: Arc<dyn Backend>, place: &Place, stop: CancellationToken) -> Replica {
    let cache = tempfile::tempdir().unwrap();
    let options = CacheOptions { capacity_bytes: collective_disk::CACHE_CAPACITY_MINIMUM_BYTES };
    let cache = Cache::open(cache.path(), options).unwrap();
    let copies = Copies::new(Fetcher::new(cache, FetchSettings::default()), stop);
    Replica::new(real, place.copies(), copies).unwrap()
}

/// An index that is larger than what is copied at once; what is in it, nobody here looks at.
fn large_index() -> (ObjectName, Bytes) {
    let name =
        ObjectName::part(Version::FIRST, DiskRole::System, PartKind::Index, &Digest([1; 32]));
    let object: Bytes = (0..8 * WHOLE_INDEX_BYTES).map(|at| (at / 1000) as u8).collect();
    (name, object)
}

async fn at_rest(object: &[u8]) -> Arc<Memory> {
    let memory = Arc::new(Memory::default());
    memory.write(&large_index().0, Bytes::copy_from_slice(object)).await.unwrap();
    memory
}

/// The object behind a line that carries it in about a second.
async fn slow(object: &Bytes) -> Line {
    Line::new(at_rest(object).await, object.len() as u64, Duration::from_millis(5))
}

/// Waits until nobody has a backend but the test and the replica in front of it: no copy is being made.
async fn idle(backend: &Arc<Line>) {
    let ended = async {
        while Arc::strong_count(backend) > 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the copying ends");
}

/// Waits until a copy is whole.
async fn whole(near: &Replica, name: &ObjectName) {
    let copied = async {
        while near.copy(name, None).is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, copied).await.expect("the copy is made");
}

/// A repository whose first version has an index and a trace.
async fn one_version() -> (Arc<Directory>, Trust) {
    let sample = "../../testdata/repository-v1/public";
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join(sample);
    let real = Directory::open(sample).unwrap();
    let descriptor = real.read(&ObjectName::Descriptor, None).await.unwrap();
    let Descriptor { id, publisher, .. } = Descriptor::decode(&descriptor).unwrap();
    (Arc::new(real), Trust { id, publisher, secret: None })
}
