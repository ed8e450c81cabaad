//! Publishing: bytes of data a second of one processor, and what is stored, beside compressors of whole images.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use collective_model::{DiskRole, RepositoryId, Silent, Version};
use collective_repository::backend::Directory;
use collective_repository::{
    Descriptor, DiskSource, Kind, Piece, PieceData, Publication, Published, Repository, SigningKey,
    Trace, VersionReader,
};
use rustix::time::{ClockId, clock_gettime};

use crate::boot;
use crate::report::{Report, Row};
use crate::sample::Sample;
use crate::scene::{Scene, chain};

/// Publishes the appliance's system disk a few times, and returns the last result with its boot trace.
pub async fn measure(scene: &Scene, report: &mut Report) -> Result<(Descriptor, VersionReader)> {
    let trace = boot::record(scene).await?;
    let mut rate = Sample::default();
    let mut wall = Sample::default();
    let mut last = None;
    for _ in 0..scene.rounds(3, 2) {
        let round = publish(scene, &trace).await?;
        let data = round.published.stats.read_bytes as f64 / 1e6;
        rate.push(data / round.processor.as_secs_f64());
        wall.push(data / round.wall.as_secs_f64());
        last = Some(round);
    }
    let last = last.context("there was no round")?;
    let peers = [("zstd -3", compressor(scene, "zstd-rate")?)];
    report.add(
        Row { id: "publish.rate", unit: "MB/s of a core", goal: ">= 150 MB/s" },
        &rate,
        &peers,
    );
    report.add(Row { id: "publish.wall", unit: "MB/s", goal: "-" }, &wall, &[]);
    stored(scene, &last.published, report)?;
    let version = last.repository.version(Version::FIRST).await.map_err(chain)?;
    Ok((last.repository.descriptor().clone(), version))
}

struct Round {
    repository: Repository,
    published: Published,
    processor: Duration,
    wall: Duration,
}

async fn publish(scene: &Scene, trace: &Trace) -> Result<Round> {
    let backend = Arc::new(Directory::create(scene.fresh("repository")?).map_err(chain)?);
    let signer = SigningKey::generate();
    let id = RepositoryId(*b"collective-bench");
    let descriptor = Descriptor::public(id, Kind::Appliance, signer.publisher());
    let repository = Repository::create(backend, descriptor, None).await.map_err(chain)?;
    let publication = publication(&scene.appliance.system, Some(trace), None)?;
    let (wall, processor) = (SystemTime::now(), processor_time());
    let published = repository.publish(publication, &signer, &Silent).await.map_err(chain)?;
    Ok(Round {
        repository,
        published,
        processor: processor_time() - processor,
        wall: wall.elapsed()?,
    })
}

/// A whole image as the next version.
pub fn publication(
    image: &Path,
    trace: Option<&Trace>,
    parent: Option<Version>,
) -> Result<Publication> {
    let file = File::open(image)?;
    let size_bytes = file.metadata()?.len();
    let range = collective_model::BlockRange::covering(0, size_bytes);
    let what = PieceData::File { file: Arc::new(file), offset: 0 };
    let disk = DiskSource {
        trace: trace.cloned(),
        ..DiskSource::new(DiskRole::System, size_bytes, vec![Piece { range, what }])
    };
    Ok(publication_of(parent, disk))
}

/// A version that has one disk.
pub fn publication_of(parent: Option<Version>, disk: DiskSource) -> Publication {
    Publication {
        hardware: Some(collective_model::Hardware::default()),
        id: "bench".to_owned(),
        ..Publication::new(parent, SystemTime::now().into(), vec![disk])
    }
}

/// What the repository takes, beside whole images of the same disk.
fn stored(scene: &Scene, published: &Published, report: &mut Report) -> Result<()> {
    let ours = megabytes(published.stats.stored_bytes);
    let image = &scene.appliance.system;
    let qcow2 = scene.directory.join("peer.qcow2");
    let converted = Command::new("qemu-img")
        .args(["convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd"])
        .args([image, &qcow2])
        .status()?;
    ensure!(converted.success(), "qemu-img convert failed");
    let peers = [
        ("qcow2 zstd", megabytes(std::fs::metadata(&qcow2)?.len())),
        ("zstd -3 whole", megabytes(std::fs::metadata(scene.directory.join("peer.zst"))?.len())),
    ];
    report.add(Row { id: "publish.stored", unit: "MB", goal: "-" }, &ours, &peers);
    std::fs::remove_file(qcow2)?;
    std::fs::remove_file(scene.directory.join("peer.zst"))?;
    Ok(())
}

/// MB of data that one processor of `zstd -3` takes in a second.
fn compressor(scene: &Scene, name: &str) -> Result<Sample> {
    let image = &scene.appliance.system;
    let data = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(image)?) * 512;
    let output = scene.directory.join("peer.zst");
    let before = children_time();
    let status = Command::new("zstd")
        .args(["-q", "-3", "-f", "--single-thread"])
        .arg(image)
        .arg("-o")
        .arg(&output)
        .status()?;
    ensure!(status.success(), "{name} failed");
    let took = children_time() - before;
    Ok([data as f64 / 1e6 / took.as_secs_f64()].into_iter().collect())
}

fn megabytes(bytes: u64) -> Sample {
    [bytes as f64 / 1e6].into_iter().collect()
}

/// Processor time of this process, all threads.
pub fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Processor time of the children that ended: `/proc/self/stat` counts it in hundredths of a second.
pub fn children_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(13) + ticks(14)) * 10)
}
