//! The export: reads of a warm disk by QEMU's own client, beside `qemu-nbd` on the raw file.
//!
//! The disk is the data of the appliance's disk without its holes, which both servers would answer without reading anything.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use collective_disk::{Cache, CacheOptions, Export, FetchSettings, Fetcher, Source, VersionDisk};
use collective_model::{BLOCK_BYTES, DiskRole, RepositoryId, Silent};
use collective_repository::backend::Memory;
use collective_repository::{Descriptor, DiskReader, Kind, Repository, SigningKey};
use rustix::fs::{SeekFrom, seek};

use crate::publish::publication;
use crate::report::{Report, Row};
use crate::sample::Sample;
use crate::scene::{Scene, chain};

/// One way of reading.
struct Load {
    id: &'static str,
    depth: u32,
    size_bytes: u64,
    /// A prime number of blocks from one read to the next: no two reads of a run are near each other, none is repeated.
    step_blocks: u64,
    count: u64,
    goal: &'static str,
}

/// The disk is a multiple of this, so that no read goes beyond its end.
const LARGEST_BYTES: u64 = 128 << 10;

const LOADS: [Load; 3] = [
    Load {
        id: "export.4k.qd1",
        depth: 1,
        size_bytes: 4096,
        step_blocks: 7919,
        count: 40_000,
        goal: ">= 1.0",
    },
    Load {
        id: "export.4k.qd32",
        depth: 32,
        size_bytes: 4096,
        step_blocks: 7919,
        count: 80_000,
        goal: ">= 1.3",
    },
    Load {
        id: "export.128k.seq",
        depth: 8,
        size_bytes: LARGEST_BYTES,
        step_blocks: 32,
        count: 8_000,
        goal: ">= 1.5",
    },
];

/// Measures every load on both servers in turn.
pub async fn measure(scene: &Scene, report: &mut Report) -> Result<()> {
    let image = dense(scene)?;
    let directory = tempfile::tempdir()?;
    let cache =
        Cache::open(&scene.fresh("export-cache")?, CacheOptions { capacity_bytes: 8 << 30 })
            .map_err(chain)?;
    let reader = published(&image).await?;
    let disk = VersionDisk::new(reader, Fetcher::new(cache, FetchSettings::default()));
    warm(&disk).await?;
    let ours = directory.path().join("ours.sock");
    let export = Export::bind(&ours).map_err(chain)?;
    export.add("disk", Arc::new(disk)).map_err(chain)?;
    let theirs = directory.path().join("theirs.sock");
    let mut peer = serve_peer(&image, &theirs)?;
    let result = measure_loads(scene, report, &ours, &theirs).await;
    peer.kill()?;
    peer.wait()?;
    export.shutdown().await;
    result
}

/// Makes the disk: everything in the appliance's that is no hole.
fn dense(scene: &Scene) -> Result<PathBuf> {
    let mut image = File::open(&scene.appliance.system)?;
    let path = scene.directory.join("dense.raw");
    let mut dense = File::create(&path)?;
    let mut end = 0;
    while let Ok(data) = seek(&image, SeekFrom::Data(end)) {
        end = seek(&image, SeekFrom::Hole(data))?;
        image.seek(std::io::SeekFrom::Start(data))?;
        std::io::copy(&mut (&image).take(end - data), &mut dense)?;
    }
    let size = dense.metadata()?.len();
    dense.set_len(size - size % LARGEST_BYTES)?;
    Ok(path)
}

async fn published(image: &Path) -> Result<DiskReader> {
    let signer = SigningKey::generate();
    let id = RepositoryId(*b"collective-dense");
    let descriptor = Descriptor::public(id, Kind::Appliance, signer.publisher());
    let backend = Arc::new(Memory::default());
    let repository = Repository::create(backend, descriptor, None).await.map_err(chain)?;
    let published = repository.publish(publication(image, None, None)?, &signer, &Silent).await;
    let version = published.map_err(chain)?.version;
    let version = repository.version(version).await.map_err(chain)?;
    version.disk(DiskRole::System).await.map_err(chain)
}

async fn measure_loads(
    scene: &Scene,
    report: &mut Report,
    ours: &Path,
    theirs: &Path,
) -> Result<()> {
    for load in &LOADS {
        let (mut our_rates, mut peer_rates) = (Sample::default(), Sample::default());
        for _ in 0..scene.rounds(7, 3) {
            our_rates.push(run(load, ours.to_owned()).await?);
            peer_rates.push(run(load, theirs.to_owned()).await?);
        }
        let row = Row { id: load.id, unit: "reads/s", goal: load.goal };
        report.add(row, &our_rates, &[("qemu-nbd raw", peer_rates)]);
    }
    Ok(())
}

/// Brings the whole disk into the cache.
async fn warm(disk: &VersionDisk) -> Result<()> {
    const PIECE_BYTES: u64 = 1 << 20;
    let size = disk.size_bytes();
    for offset in (0..size).step_by(PIECE_BYTES as usize) {
        let length = PIECE_BYTES.min(size - offset);
        disk.read(offset, length as usize).await.map_err(chain)?;
    }
    Ok(())
}

fn serve_peer(image: &Path, socket: &Path) -> Result<Child> {
    let mut peer = Command::new("qemu-nbd")
        .args(["--read-only", "--persistent", "--shared=8", "--format=raw", "--export-name=disk"])
        .arg("--socket")
        .arg(socket)
        .arg(image)
        .stdin(Stdio::null())
        .spawn()
        .context("qemu-nbd")?;
    let limit = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        if Instant::now() > limit || peer.try_wait()?.is_some() {
            bail!("qemu-nbd does not serve");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(peer)
}

/// Reads a second.
async fn run(load: &Load, socket: PathBuf) -> Result<f64> {
    let image = format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export=disk",
        socket.display()
    );
    let output = tokio::process::Command::new("qemu-img")
        .args(["bench", "--image-opts", "-c", &load.count.to_string()])
        .args(["-d", &load.depth.to_string(), "-s", &load.size_bytes.to_string()])
        .args(["-S", &(load.step_blocks * BLOCK_BYTES).to_string(), &image])
        .output()
        .await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "qemu-img bench: {}", String::from_utf8_lossy(&output.stderr));
    let seconds: f64 = text
        .split("completed in ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("qemu-img bench said {text:?}"))?;
    Ok(load.count as f64 / seconds)
}
