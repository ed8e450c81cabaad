//! What the tests share: images with holes, sockets, Debian's NBD clients, and a published version.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use collective_disk::{Cache, CacheOptions, Export, FetchSettings, RawFile, Source, VersionDisk};
use collective_model::{BlockRange, DiskRole, ErrorKind, RepositoryId, Silent, Timestamp, Version};
use collective_repository::backend::{Backend, Call, Fault, Faulty, Line, Memory, ObjectName};
use collective_repository::{
    Descriptor, DiskReader, DiskSource, Kind, Piece, PieceData, Publication, Repository,
    SigningKey, Trace, Trust,
};
use collective_testing::Random;
use tempfile::TempDir;

/// Bytes of the images in these tests.
pub const IMAGE_BYTES: u64 = 24 * 1024 * 1024;

/// An image of data, holes and an odd end, exported as `system`.
pub struct Served {
    pub directory: TempDir,
    pub export: Export,
}

impl Served {
    pub fn start() -> Self {
        let directory = TempDir::new().unwrap();
        write_image(&directory.path().join("image"), IMAGE_BYTES);
        let export = Export::bind(directory.path().join("s")).unwrap();
        let source = RawFile::open(&directory.path().join("image")).unwrap();
        export.add("system", Arc::new(source)).unwrap();
        Self { directory, export }
    }

    pub fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    pub fn uri(&self) -> String {
        uri(&self.export)
    }
}

pub fn uri(export: &Export) -> String {
    format!("nbd+unix:///system?socket={}", export.path().display())
}

/// Writes an image: a third of it data, in runs of different lengths.
pub fn write_image(path: &Path, size_bytes: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size_bytes).unwrap();
    let mut random = Random::new(7);
    for run in 0..size_bytes / (1 << 20) {
        let length = 4096 * (1 + random.below(80));
        let mut bytes = vec![0; length];
        random.fill(&mut bytes);
        file.write_all_at(&bytes, run << 20).unwrap();
    }
}

/// Runs a program to its end; returns what it printed. Fails the test if the program fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    std::io::stderr().write_all(err.as_bytes()).unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A published disk with holes, the bytes that it must show, and the backend that it lies in.
pub struct World {
    pub image: Vec<u8>,
    pub directory: TempDir,
    pub backend: Arc<Memory>,
    trust: Trust,
}

/// What the start of the published disk touches: some blocks of many runs, in no order of the disk.
pub fn boot_trace() -> Trace {
    let runs = [4, 0, 2, 8, 3, 17, 11, 5, 1, 14, 9, 12];
    Trace { ranges: runs.map(|run| BlockRange::new(256 * run, 50)).to_vec() }
}

impl World {
    pub async fn create() -> Self {
        Self::with_frames(256 << 10).await
    }

    pub async fn with_frames(frame_bytes: u32) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("image");
        write_image(&path, IMAGE_BYTES);
        let backend = Arc::new(Memory::new());
        let (id, publisher) = (RepositoryId([5; 16]), key().publisher());
        let descriptor = Descriptor::public(id, Kind::Appliance, publisher);
        let descriptor = Descriptor { frame_bytes, ..descriptor };
        Repository::create(Arc::clone(&backend) as _, descriptor, None).await.unwrap();
        let trust = Trust { id, publisher, secret: None };
        let mut world = Self { image: Vec::new(), directory, backend, trust };
        world.publish(None).await;
        world
    }

    /// Publishes the image as it is now.
    pub async fn publish(&mut self, parent: Option<Version>) {
        let path = self.directory.path().join("image");
        let pieces = vec![Piece {
            range: BlockRange::covering(0, IMAGE_BYTES),
            what: PieceData::File { file: Arc::new(File::open(&path).unwrap()), offset: 0 },
        }];
        let disk = DiskSource {
            trace: Some(boot_trace()),
            ..DiskSource::new(DiskRole::System, IMAGE_BYTES, pieces)
        };
        let publication = Publication {
            id: format!("after {parent:?}"),
            ..Publication::new(parent, Timestamp(0), vec![disk])
        };
        let repository = self.repository(Arc::clone(&self.backend) as _).await;
        repository.publish(publication, &key(), &Silent).await.unwrap();
        self.image = std::fs::read(path).unwrap();
    }

    /// Opens the repository through a backend.
    pub async fn repository(&self, backend: Arc<dyn Backend>) -> Repository {
        Repository::open(backend, self.trust.clone()).await.unwrap()
    }

    /// Opens the disk through a backend that does what `script` says with each read of a pack.
    pub async fn reader(
        &self,
        script: impl Fn(Call) -> Fault + Send + Sync + 'static,
    ) -> DiskReader {
        self.reader_of(Arc::clone(&self.backend) as _, script).await
    }

    /// Lays a line to the objects.
    pub fn line(&self, bytes_per_second: u64, round_trip: Duration) -> Arc<Line> {
        Arc::new(Line::new(Arc::clone(&self.backend) as _, bytes_per_second, round_trip))
    }

    /// As [`reader`](Self::reader), at the far end of something.
    pub async fn reader_of(
        &self,
        backend: Arc<dyn Backend>,
        script: impl Fn(Call) -> Fault + Send + Sync + 'static,
    ) -> DiskReader {
        let packs_only = move |call: Call| match call.name {
            Some(ObjectName::Pack(_)) => script(call),
            _ => Fault::Pass,
        };
        let backend = Faulty::new(backend, packs_only);
        let repository = self.repository(Arc::new(backend)).await;
        let version = repository.version(Version::FIRST).await.unwrap();
        version.disk(DiskRole::System).await.unwrap()
    }

    /// Opens the cache; if one was just dropped, once its last fetch is stored.
    pub async fn cache(&self) -> Cache {
        open_cache(&self.directory.path().join("cache"), 64 << 20).await
    }

    /// Checks what was read of the disk.
    pub fn check(&self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        let expected = &self.image[offset..offset + data.len()];
        assert!(data == expected, "{} wrong bytes at {offset}", data.len());
    }

    /// Reads the whole disk and checks it.
    pub async fn check_all(&self, disk: &VersionDisk) {
        for offset in (0..IMAGE_BYTES).step_by(1 << 20) {
            self.check(offset, &disk.read(offset, 1 << 20).await.unwrap());
        }
    }
}

fn key() -> SigningKey {
    SigningKey::from_seed([3; 32])
}

/// Opens a cache as soon as whoever has it open lets go.
pub async fn open_cache(path: &Path, capacity_bytes: u64) -> Cache {
    let opening = async {
        loop {
            match Cache::open(path, CacheOptions { capacity_bytes }) {
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                opened => return opened.unwrap(),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), opening).await.expect("the cache is let go")
}

/// Settings with pauses that tests can wait for.
pub fn quick() -> FetchSettings {
    FetchSettings {
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(20),
        late_after: Duration::from_millis(50),
        ..FetchSettings::default()
    }
}
