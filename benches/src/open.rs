//! Opening a huge disk on a computer that never saw it, over the slowest line: how long until its first byte is there.
//!
//! The disk has 100 GB, of which a million runs of a block each, scattered, hold data (the appliance's own, each
//! block made different), so that its map has a million extents. It is published once and read at places far apart,
//! each time with everything opened anew: descriptor, head, manifest, the directory of the index, the pages that map
//! the place, and the frame.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use collective_disk::{Cache, CacheOptions, FetchSettings, Fetcher, Source, VersionDisk};
use collective_model::{BLOCK_BYTES, BlockRange, DiskRole, Epoch, RepositoryId, Silent};
use collective_repository::backend::{Directory, Http};
use collective_repository::{
    Descriptor, DiskSource, Kind, Piece, PieceData, Repository, SigningKey, Trust,
};
use collective_testing::Nginx;
use rustix::fs::{SeekFrom, seek};

use crate::link::{DSL, Link};
use crate::publish::publication_of;
use crate::report::{Report, Row, say};
use crate::sample::Sample;
use crate::scene::{Scene, chain};

const REPOSITORY: &str = "huge-repository";
/// 100 GB in whole blocks.
const DISK_BYTES: u64 = 24_414_063 * BLOCK_BYTES;
/// Runs of data, and blocks that differ: 1 GiB, each shown four times, so that the map is large and the run short.
const RUNS: u64 = 1 << 20;
const DIFFERENT_BLOCKS: u64 = 1 << 18;
/// The same for the quick form.
const QUICK_RUNS: u64 = 1 << 16;
const QUICK_DIFFERENT_BLOCKS: u64 = 1 << 14;
/// A block that lies in no rhythm with pages and frames, to begin the reading at.
const FIRST_READ: u64 = 12_345;
const BLOCK: usize = BLOCK_BYTES as usize;

/// Publishes the disk, opens it a few times, and reports.
pub async fn measure(scene: &Scene, report: &mut Report) -> Result<()> {
    let (runs, different) =
        if scene.quick { (QUICK_RUNS, QUICK_DIFFERENT_BLOCKS) } else { (RUNS, DIFFERENT_BLOCKS) };
    let data = scene.directory.join("huge-data");
    write_blocks(&scene.appliance.system, &data, different)?;
    let descriptor = publish(scene, &data, runs, different).await?;
    std::fs::remove_file(&data)?;
    let web = Nginx::serve(&scene.directory)?;
    let mut seconds = Sample::default();
    let rounds = scene.rounds(9, 5) as u64;
    for round in 0..rounds {
        let run = (FIRST_READ + round * (runs / rounds)) % runs;
        seconds.push(first_byte(scene, &web, &descriptor, start(run, runs)).await?);
    }
    std::fs::remove_dir_all(scene.directory.join(REPOSITORY))?;
    report.add(Row { id: "open.cold.dsl", unit: "s", goal: "<= 1" }, &seconds, &[]);
    Ok(())
}

/// The block of a run: somewhere in the run's share of the disk.
fn start(run: u64, runs: u64) -> u64 {
    let share = DISK_BYTES / BLOCK_BYTES / runs;
    run * share + (run.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % share
}

/// Writes blocks with the content of an image, each with its number in front, so that no two are the same.
pub fn write_blocks(image: &Path, to: &Path, blocks: u64) -> Result<()> {
    let image = File::open(image)?;
    let size = image.metadata()?.len();
    let mut file = BufWriter::new(File::create(to)?);
    let (mut at, mut block) = (0, vec![0; BLOCK]);
    for number in 0..blocks {
        at = match seek(&image, SeekFrom::Data(at)) {
            Ok(data) if data + BLOCK_BYTES <= size => data / BLOCK_BYTES * BLOCK_BYTES,
            _ => 0,
        };
        image.read_exact_at(&mut block, at)?;
        block[..8].copy_from_slice(&(number + 1).to_le_bytes());
        file.write_all(&block)?;
        at += BLOCK_BYTES;
    }
    Ok(file.flush()?)
}

async fn publish(scene: &Scene, data: &Path, runs: u64, different: u64) -> Result<Descriptor> {
    let directory = scene.fresh(REPOSITORY)?;
    let backend = Arc::new(Directory::create(&directory).map_err(chain)?);
    let signer = SigningKey::generate();
    let id = RepositoryId(*b"collective-huge-");
    let descriptor = Descriptor::public(id, Kind::Appliance, signer.publisher());
    let repository = Repository::create(backend, descriptor, None).await.map_err(chain)?;
    let file = Arc::new(File::open(data)?);
    let piece = |run: u64| Piece {
        range: BlockRange::new(start(run, runs), 1),
        what: PieceData::File { file: Arc::clone(&file), offset: run % different * BLOCK_BYTES },
    };
    let disk = DiskSource::new(DiskRole::System, DISK_BYTES, (0..runs).map(piece).collect());
    let publication = publication_of(None, disk);
    let published = repository.publish(publication, &signer, &Silent).await.map_err(chain)?;
    let version = repository.version(published.version).await.map_err(chain)?;
    let index = &version.manifest().disk(DiskRole::System).map_err(chain)?.index;
    say(&format!(
        "a disk of {runs} extents: an index of {} bytes, {} of them its directory; {} frames",
        index.bytes, index.directory_bytes, published.stats.frames
    ));
    Ok(repository.descriptor().clone())
}

/// Opens everything anew and reads a block; returns the seconds.
async fn first_byte(
    scene: &Scene,
    web: &Nginx,
    descriptor: &Descriptor,
    block: u64,
) -> Result<f64> {
    let options = CacheOptions { capacity_bytes: 1 << 30 };
    let cache = Cache::open(&scene.fresh("huge-cache")?, options).map_err(chain)?;
    let fetcher = Fetcher::new(cache, FetchSettings::default());
    let link = Link::lay(DSL, web.address()).await?;
    let begun = Instant::now();
    let url = format!("http://{}/{REPOSITORY}", link.address);
    let backend = Arc::new(Http::new(reqwest::Client::new(), &url, Epoch(0)));
    let trust = Trust { id: descriptor.id, publisher: descriptor.publisher, secret: None };
    let repository = Repository::open(backend, trust).await.map_err(chain)?;
    let head = repository.head().await.map_err(chain)?.context("nothing is published")?;
    let version = repository.version(head).await.map_err(chain)?;
    let (manifest, manifest_bytes) = (begun.elapsed().as_secs_f64(), link.down_bytes());
    let reader = version.disk(DiskRole::System).await.map_err(chain)?;
    let (opened, opened_bytes) = (begun.elapsed().as_secs_f64(), link.down_bytes());
    let disk = VersionDisk::new(reader, fetcher);
    let read = disk.read(block * BLOCK_BYTES, BLOCK).await.map_err(chain)?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(read.iter().any(|byte| *byte != 0), "a block that holds data reads as zeros");
    say(&format!(
        "manifest after {manifest:.2} s ({manifest_bytes} bytes), disk {opened:.2} s \
         ({opened_bytes}), first byte {seconds:.2} s ({})",
        link.down_bytes()
    ));
    Ok(seconds)
}
