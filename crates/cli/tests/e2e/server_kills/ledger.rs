//! What a server acknowledged, noted beside it: versions of a repository, and who holds a lock.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use collective_api::server::Lock;
use collective_model::{
    BLOCK_BYTES, BlockRange, DiskRole, Epoch, HostId, Result, Silent, Timestamp, Version,
};
use collective_repository::{
    DiskSource, ExtentData, Piece, PieceData, Publication, Repository, SigningKey,
};

const BLOCKS: u64 = 64;
/// Parts of the disk, one of which each publication changes.
const PARTS: u64 = 4;

/// The versions of a repository, by the ids of their publications.
#[derive(Default)]
pub struct Versions {
    acknowledged: Vec<u64>,
    /// The publication under way when the server was killed.
    attempted: Option<u64>,
    role: Option<DiskRole>,
    last: u64,
}

impl Versions {
    pub async fn publish(
        &mut self,
        repository: &Repository,
        key: &SigningKey,
        role: DiskRole,
        epoch: Epoch,
    ) -> Result<()> {
        self.role = Some(role);
        self.last += 1;
        self.attempted = Some(self.last);
        let publication = Publication {
            epoch,
            id: self.last.to_string(),
            ..Publication::new(
                Version::new(self.acknowledged.len() as u64),
                Timestamp(1_800_000_000_000),
                vec![disk(role, self.last)],
            )
        };
        let published = repository.publish(publication, key, &Silent).await?;
        self.acknowledged.push(self.last);
        self.attempted = None;
        assert_eq!(published.version.number(), self.acknowledged.len() as u64);
        Ok(())
    }

    /// Says that nothing acknowledged is missing, and settles what became of the last attempt.
    pub async fn check(&mut self, repository: &Repository) {
        let head = repository.head().await.unwrap().map_or(0, Version::number);
        let known = self.acknowledged.len() as u64;
        let attempted = self.attempted.take();
        if head == known + 1 && attempted.is_some() {
            self.acknowledged.extend(attempted);
        } else {
            assert_eq!(head, known, "versions, {attempted:?} was being published");
        }
        if let Some(newest) = self.acknowledged.len().checked_sub(1) {
            self.check_version(repository, newest).await;
        }
    }

    /// Reads every version; returns how many there are.
    pub async fn check_all(&self, repository: &Repository) -> u64 {
        for at in 0..self.acknowledged.len() {
            self.check_version(repository, at).await;
        }
        self.acknowledged.len() as u64
    }

    async fn check_version(&self, repository: &Repository, at: usize) {
        let (version, id) = (Version::new(at as u64 + 1).unwrap(), self.acknowledged[at]);
        let reader = repository.version(version).await.unwrap();
        assert_eq!(reader.manifest().id, id.to_string(), "version {version} is another one");
        let disk = reader.disk(self.role.unwrap()).await.unwrap();
        let extents = disk.map(BlockRange::new(0, BLOCKS)).await.unwrap();
        let frames = extents.iter().map(|extent| match extent.what {
            ExtentData::Frame { frame, first } => (frame, first),
            ExtentData::Zero => panic!("version {version} has a hole at {:?}", extent.range),
        });
        let (frames, firsts): (Vec<_>, Vec<_>) = frames.unzip();
        let plains = disk.fetch(&frames).await.unwrap();
        for ((extent, plain), first) in extents.iter().zip(plains).zip(firsts) {
            let found = plain.chunks_exact(BLOCK_BYTES as usize).skip(first as usize);
            for (block, found) in (extent.range.start..extent.range.end()).zip(found) {
                assert!(found == block_bytes(id, block), "block {block} of version {version}");
            }
        }
    }
}

/// A disk of which every publication changes a part.
fn disk(role: DiskRole, id: u64) -> DiskSource {
    let file = tempfile::tempfile().unwrap();
    for block in 0..BLOCKS {
        file.write_all_at(&block_bytes(id, block), block * BLOCK_BYTES).unwrap();
    }
    let what = PieceData::File { file: Arc::new(file), offset: 0 };
    let pieces = vec![Piece { range: BlockRange::new(0, BLOCKS), what }];
    DiskSource::new(role, BLOCKS * BLOCK_BYTES, pieces)
}

fn block_bytes(id: u64, block: u64) -> Vec<u8> {
    let changed = block * PARTS / BLOCKS == id % PARTS;
    let mut bytes = vec![0; BLOCK_BYTES as usize];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&block.to_le_bytes());
    hasher.update(&(if changed { id } else { 0 }).to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Who holds the lock of a subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Known {
    #[default]
    Free,
    Held(HostId, Epoch),
    /// The server was killed before it answered.
    Unsure,
}

/// The lock of a subscription, and the highest fencing number that was seen.
#[derive(Default)]
pub struct Locks {
    known: Known,
    highest: Epoch,
}

/// What was known before something was asked for.
pub struct Before(Known);

impl Locks {
    pub fn held(&self) -> Option<(HostId, Epoch)> {
        match self.known {
            Known::Held(host, epoch) => Some((host, epoch)),
            Known::Free | Known::Unsure => None,
        }
    }

    /// Notes that something is asked for that changes the lock.
    pub fn begin(&mut self) -> Before {
        Before(std::mem::replace(&mut self.known, Known::Unsure))
    }

    pub fn released(&mut self) {
        self.known = Known::Free;
    }

    pub fn taken(&mut self, Before(before): Before, host: HostId, lock: &Lock) {
        assert_eq!(lock.host, host);
        match before {
            Known::Held(holder, epoch) if holder == host => assert_eq!(lock.epoch, epoch),
            Known::Unsure => {
                assert!(lock.epoch >= self.highest, "{lock:?} after {:?}", self.highest)
            }
            _ => assert!(lock.epoch > self.highest, "{lock:?} after {:?}", self.highest),
        }
        self.highest = lock.epoch;
        self.known = Known::Held(host, lock.epoch);
    }

    /// Says that the server knows what it acknowledged, and settles what it was killed over.
    pub fn check(&mut self, found: Option<&Lock>) {
        let found = found.map_or(Known::Free, |lock| Known::Held(lock.host, lock.epoch));
        if self.known != Known::Unsure {
            assert_eq!(found, self.known);
        }
        if let Known::Held(_, epoch) = found {
            assert!(epoch >= self.highest, "{epoch} after {}", self.highest);
            self.highest = epoch;
        }
        self.known = found;
    }
}
