//! Booting over a line, on a computer that has never seen the version: the time beside the least that it can take.
//!
//! That least is the longer of two: the same boot from a local raw file, and the compressed bytes of what the guest
//! reads over the rate of the line. The repository is a directory under a stranger's web server, so nothing but files
//! is served. Peers read the same disk over the same line.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};
use collective_disk::{
    Cache, CacheOptions, FetchSettings, Fetcher, Heard, Recorder, Source, VersionDisk,
};
use collective_model::{BLOCK_BYTES, DiskRole, Epoch};
use collective_repository::backend::Http;
use collective_repository::{Descriptor, Repository, Trust, VersionReader};
use collective_testing::Nginx;
use collective_vm::spec::{Backing, NbdExport};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixListener};
use tokio::task::AbortHandle;

use crate::boot::{boot, exported, private_directory};
use crate::link::{BROADBAND, DSL, LAN, Line, Link};
use crate::report::{Report, Row, say};
use crate::sample::Sample;
use crate::scene::{Scene, chain};

/// What frames of the floor hold, as in DESIGN 4.3.
pub const FLOOR_FRAME_BLOCKS: usize = 64;
/// The level of publishing.
pub const FLOOR_LEVEL: i32 = 3;

/// Boots over all lines, and reports. `local_seconds` is the boot from a raw file.
pub async fn measure(
    scene: &Scene,
    descriptor: &Descriptor,
    version: &VersionReader,
    local_seconds: f64,
    report: &mut Report,
) -> Result<()> {
    let web = Nginx::serve(&scene.directory)?;
    let floor_bytes = floor_bytes(scene, version).await?;
    say(&format!("a boot reads {:.1} MB compressed", floor_bytes / 1e6));
    let (mut fetched, mut moved) = (Sample::default(), Sample::default());
    let lines = [
        ("boot.cold.lan", LAN, scene.rounds(3, 1)),
        ("boot.cold.broadband", BROADBAND, scene.rounds(3, 1)),
        // One boot takes minutes here, and a peer's eight.
        ("boot.cold.dsl", DSL, scene.rounds(1, 0)),
    ];
    for (id, line, rounds) in lines.into_iter().filter(|(_, _, rounds)| *rounds > 0) {
        let mut seconds = Sample::default();
        for _ in 0..rounds {
            let (took, bytes) = from_repository(scene, &web, line, descriptor).await?;
            say(&format!("{id}: {took:.1} s"));
            seconds.push(took);
            fetched.push(bytes as f64 / 1e6);
            moved.push(bytes as f64 / floor_bytes);
        }
        let floor = local_seconds.max(line.seconds(floor_bytes));
        let mut beside = vec![("floor", [floor].into_iter().collect())];
        // At DSL they take half an hour.
        if !scene.quick && id != "boot.cold.dsl" {
            beside.push(("qemu-nbd", [nbd(scene, line).await?].into_iter().collect()));
            beside.push(("nbdkit curl", [curl(scene, &web, line).await?].into_iter().collect()));
        }
        report.add(Row { id, unit: "s", goal: "<= 1.15" }, &seconds, &beside);
    }
    let floor = [floor_bytes / 1e6].into_iter().collect();
    let row = Row { id: "boot.cold.fetched", unit: "MB", goal: "-" };
    report.add(row, &fetched, &[("floor", floor)]);
    let of_floor = Row { id: "boot.cold.bytes", unit: "of the floor", goal: "<= 1.08" };
    report.add(of_floor, &moved, &[]);
    Ok(())
}

/// The compressed bytes of the blocks that a boot reads, in the order that it reads them.
async fn floor_bytes(scene: &Scene, version: &VersionReader) -> Result<f64> {
    let disk = disk(scene, version.clone(), "boot-cache").await?;
    let recorder = Arc::<Recorder>::default();
    exported(scene, Arc::new(Heard::new(Arc::new(disk.clone()), Arc::clone(&recorder)))).await?;
    let (mut bytes, mut frame) = (0, Vec::new());
    for range in recorder.trace().ranges {
        for block in range.start..range.end() {
            let block =
                disk.read(block * BLOCK_BYTES, BLOCK_BYTES as usize).await.map_err(chain)?;
            if block.iter().any(|byte| *byte != 0) {
                frame.extend_from_slice(&block);
            }
            if frame.len() == FLOOR_FRAME_BLOCKS * BLOCK_BYTES as usize {
                bytes += zstd::bulk::compress(&frame, FLOOR_LEVEL)?.len();
                frame.clear();
            }
        }
    }
    bytes += zstd::bulk::compress(&frame, FLOOR_LEVEL)?.len();
    Ok(bytes as f64)
}

async fn disk(scene: &Scene, version: VersionReader, cache: &str) -> Result<VersionDisk> {
    let options = CacheOptions { capacity_bytes: 8 << 30 };
    let cache = Cache::open(&scene.directory.join(cache), options).map_err(chain)?;
    let fetcher = Fetcher::new(cache, FetchSettings::default());
    Ok(VersionDisk::new(version.disk(DiskRole::System).await.map_err(chain)?, fetcher))
}

/// Opens the repository and boots its first version, from nothing; returns the seconds and the bytes that came.
async fn from_repository(
    scene: &Scene,
    web: &Nginx,
    line: Line,
    descriptor: &Descriptor,
) -> Result<(f64, u64)> {
    scene.fresh("cold-cache")?;
    let link = Link::lay(line, web.address()).await?;
    let started = std::time::Instant::now();
    let url = format!("http://{}/repository", link.address);
    let backend = Http::new(reqwest::Client::new(), &url, Epoch(0));
    let trust = Trust { id: descriptor.id, publisher: descriptor.publisher, secret: None };
    let repository = Repository::open(Arc::new(backend), trust).await.map_err(chain)?;
    let head = repository.head().await.map_err(chain)?.context("nothing is published")?;
    let version = repository.version(head).await.map_err(chain)?;
    let disk = disk(scene, version.clone(), "cold-cache").await?;
    let trace = version.trace(DiskRole::System).await.map_err(chain)?;
    let ahead = tokio::spawn({
        let disk = disk.clone();
        async move { disk.replay(&trace).await }
    });
    let opened = started.elapsed().as_secs_f64();
    let booted = exported(scene, Arc::new(disk.clone())).await?;
    ahead.abort();
    let stats = disk.stats();
    say(&format!(
        "{}: opened after {opened:.2} s, {:.1} MB of frames, {:.1} MB over the line",
        line.name,
        stats.fetched_bytes as f64 / 1e6,
        link.down_bytes() as f64 / 1e6
    ));
    Ok((opened + booted, link.down_bytes()))
}

/// Boots from `qemu-nbd` on the raw file, over the line.
async fn nbd(scene: &Scene, line: Line) -> Result<f64> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = Command::new("qemu-nbd");
    command.args(["-f", "raw", "-r", "-t", "-e", "8", "-x", "system", "-b", "127.0.0.1", "-p"]);
    let _server = Ended::start(command.arg(port.port().to_string()).arg(&scene.appliance.system))?;
    while TcpStream::connect(port).await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let link = Link::lay(line, port).await?;
    let directory = private_directory()?;
    let socket = directory.path().join("disk.sock");
    let _bridge = bridge(&socket, link.address)?;
    boot(scene, Backing::Nbd(NbdExport { socket, export: "system".to_owned() })).await
}

/// Boots from the raw file on the web server through nbdkit's `curl`, over the line.
async fn curl(scene: &Scene, web: &Nginx, line: Line) -> Result<f64> {
    let link = Link::lay(line, web.address()).await?;
    let directory = private_directory()?;
    let socket = directory.path().join("disk.sock");
    let raw = scene.appliance.system.strip_prefix(&scene.directory)?.display().to_string();
    let mut command = Command::new("nbdkit");
    command.args(["-f", "-r", "-U"]).arg(&socket);
    let url = format!("url=http://{}/{raw}", link.address);
    let _server = Ended::start(command.args(["curl", &url]))?;
    while !socket.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    boot(scene, Backing::Nbd(NbdExport { socket, export: String::new() })).await
}

/// Hands what connects to a Unix socket on to an address.
fn bridge(socket: &Path, address: std::net::SocketAddr) -> Result<Bridge> {
    let listener = UnixListener::bind(socket)?;
    let task = tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = TcpStream::connect(address).await?;
                copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    Ok(Bridge(task.abort_handle()))
}

struct Bridge(AbortHandle);

impl Drop for Bridge {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A peer's server; ended when dropped.
pub struct Ended(Child);

impl Ended {
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn();
        Ok(Self(child.with_context(|| format!("{name} does not start"))?))
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
