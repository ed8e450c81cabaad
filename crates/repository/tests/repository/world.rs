//! Disks that tests make up, and the few steps that all tests take.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use collective_model::{
    BLOCK_BYTES, BlockRange, DiskRole, Epoch, RepositoryId, Result, Silent, Timestamp, Version,
};
use collective_repository::backend::{Backend, Memory};
use collective_repository::{
    Descriptor, DiskReader, DiskSource, ExtentData, Kind, Piece, PieceData, Publication, Published,
    Repository, RepositorySecret, SigningKey, Trace, Trust,
};

pub const BLOCK: usize = BLOCK_BYTES as usize;

/// A repository in a backend, and the keys to it.
pub struct World {
    pub backend: Arc<dyn Backend>,
    pub repository: Repository,
    pub trust: Trust,
    pub key: SigningKey,
}

pub fn id() -> RepositoryId {
    RepositoryId(*b"tests' own house")
}

pub fn secret() -> RepositorySecret {
    RepositorySecret::new([0x5e; 32])
}

/// Small frames, so that small disks have many.
pub const FRAME_BYTES: u32 = 32 << 10;

impl World {
    pub async fn public(backend: Arc<dyn Backend>) -> Self {
        Self::try_public(backend).await.unwrap()
    }

    /// As [`public`](Self::public), over a backend that may fail.
    pub async fn try_public(backend: Arc<dyn Backend>) -> Result<Self> {
        let key = SigningKey::from_seed([7; 32]);
        let descriptor = Descriptor::public(id(), Kind::Appliance, key.publisher());
        Self::create(backend, descriptor, key, None).await
    }

    pub async fn private(backend: Arc<dyn Backend>) -> Self {
        let descriptor = Descriptor::private(id(), Kind::UserDisk, &secret());
        let key = secret().signing_key();
        Self::create(backend, descriptor, key, Some(secret())).await.unwrap()
    }

    /// A public and a private repository, both in memory.
    pub async fn both() -> [Self; 2] {
        [Self::public(Arc::new(Memory::new())).await, Self::private(Arc::new(Memory::new())).await]
    }

    async fn create(
        backend: Arc<dyn Backend>,
        descriptor: Descriptor,
        key: SigningKey,
        secret: Option<RepositorySecret>,
    ) -> Result<Self> {
        let descriptor = Descriptor { frame_bytes: FRAME_BYTES, ..descriptor };
        let trust = Trust { id: id(), publisher: key.publisher(), secret: secret.clone() };
        let repository = Repository::create(backend.clone(), descriptor, secret).await?;
        Ok(Self { backend, repository, trust, key })
    }

    /// Opens the repository anew, through another backend to the same objects.
    pub async fn reopen(&self, backend: Arc<dyn Backend>) -> Result<Repository> {
        Repository::open(backend, self.trust.clone()).await
    }

    pub async fn publish(&self, parent: u64, disks: Vec<DiskSource>) -> Result<Published> {
        let publication = publication(parent, disks);
        self.repository.publish(publication, &self.key, &Silent).await
    }
}

pub fn version(number: u64) -> Version {
    Version::new(number).expect("tests number versions from 1")
}

pub fn publication(parent: u64, disks: Vec<DiskSource>) -> Publication {
    Publication {
        epoch: Epoch(1),
        notes: "a test".to_owned(),
        id: format!("publication after {parent}"),
        ..Publication::new(Version::new(parent), Timestamp(1_700_000_000_000), disks)
    }
}

/// The content of a disk, block by block: 0 is a block of zeros, any other number stands for its own content.
pub type Content = Vec<u16>;

/// Blocks from this number on hold machine code, in which every call goes to one place.
pub const CODE: u16 = 10_000;

/// Returns the bytes of a block that a number stands for: compressible, but different all along.
pub fn block_bytes(number: u16) -> Vec<u8> {
    if number == 0 {
        return vec![0; BLOCK];
    }
    if number >= CODE {
        let calls = (0..455_u32).flat_map(|at| {
            let distance = u32::from(number) * 1000 - 9 * at;
            [0xe8].into_iter().chain(distance.to_le_bytes()).chain([0x90; 4])
        });
        return calls.chain([0x90; 1]).take(BLOCK).collect();
    }
    let text = format!("this is block {number} of somebody's diary; ");
    text.bytes().cycle().take(BLOCK).collect()
}

/// Makes a file of some blocks, with holes where they are zero.
pub fn file(content: &[u16]) -> PieceData {
    let file = tempfile::tempfile().unwrap();
    file.set_len((content.len() * BLOCK) as u64).unwrap();
    for (at, number) in content.iter().enumerate().filter(|(_, number)| **number != 0) {
        file.write_all_at(&block_bytes(*number), (at * BLOCK) as u64).unwrap();
    }
    PieceData::File { file: Arc::new(file), offset: 0 }
}

/// A whole disk.
pub fn whole(content: &[u16]) -> DiskSource {
    layer(content.len(), None, vec![(0, content.to_vec())])
}

/// A disk of some blocks that is its base but for some runs.
pub fn layer(blocks: usize, base: Option<u64>, runs: Vec<(u64, Content)>) -> DiskSource {
    let piece = |(start, content): (u64, Content)| Piece {
        range: BlockRange::new(start, content.len() as u64),
        what: file(&content),
    };
    DiskSource {
        base: base.map(version),
        ..DiskSource::new(
            DiskRole::System,
            (blocks * BLOCK) as u64,
            runs.into_iter().map(piece).collect(),
        )
    }
}

pub fn trace(ranges: &[(u64, u64)]) -> Trace {
    Trace { ranges: ranges.iter().map(|(at, count)| BlockRange::new(*at, *count)).collect() }
}

/// Reads a disk through the same door as everybody.
pub async fn read(disk: &DiskReader) -> Result<Vec<u8>> {
    let mut bytes = vec![0; disk.size_bytes().next_multiple_of(BLOCK_BYTES) as usize];
    let extents = disk.map(BlockRange::covering(0, disk.size_bytes())).await?;
    let mut frames = Vec::new();
    for extent in &extents {
        if let ExtentData::Frame { frame, .. } = extent.what {
            frames.push(frame);
        }
    }
    let mut plains = disk.fetch(&frames).await?.into_iter();
    let mut end = 0;
    for extent in extents {
        assert_eq!(extent.range.start, end, "extents leave no gap");
        end = extent.range.end();
        if let ExtentData::Frame { first, .. } = extent.what {
            let plain = plains.next().expect("one was fetched for each");
            let from = first as usize * BLOCK;
            let to = extent.range.offset_bytes() as usize;
            let length = extent.range.length_bytes() as usize;
            bytes[to..to + length].copy_from_slice(&plain[from..from + length]);
        }
    }
    assert_eq!(end * BLOCK_BYTES, bytes.len() as u64);
    bytes.truncate(disk.size_bytes() as usize);
    Ok(bytes)
}

/// Reads the system disk of a version.
pub async fn read_version(repository: &Repository, number: u64) -> Result<Vec<u8>> {
    let reader = repository.version(version(number)).await?;
    read(&reader.disk(DiskRole::System).await?).await
}

/// Says that a version holds a content.
pub async fn check(repository: &Repository, number: u64, content: &[u16]) {
    let bytes = read_version(repository, number).await.unwrap();
    let expected: Vec<u8> = content.iter().flat_map(|number| block_bytes(*number)).collect();
    assert!(bytes == expected, "version {number} is not what was published");
}

/// Sums the sizes of all packs.
pub async fn stored_packs(backend: &dyn Backend) -> u64 {
    backend.list("packs/").await.unwrap().iter().map(|pack| pack.size_bytes).sum()
}
