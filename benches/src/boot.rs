//! Booting: from a local raw file, from our export with a warm cache, and with an empty one.
//!
//! Each boot is a fresh layer over the disk, from the launch of QEMU until the guest agent answers, which the
//! appliance's agent does when multi-user is reached.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use collective_disk::{
    Cache, CacheOptions, Export, FetchSettings, Fetcher, Heard, RawFile, Recorder, Source,
    VersionDisk,
};
use collective_model::{ByteCount, DiskRole};
use collective_repository::{Trace, VersionReader};
use collective_vm::agent::Agent;
use collective_vm::spec::{Backing, DiskSpec, MachineSpec, NbdExport, Sockets};
use collective_vm::{layer, process};

use crate::report::{Report, Row, say};
use crate::sample::Sample;
use crate::scene::{Scene, chain};

/// The longest boot that is waited for.
const BOOT_LIMIT: Duration = Duration::from_secs(1800);
const POLL: Duration = Duration::from_millis(50);

/// Boots in turn from all three, and reports; returns the seconds from a raw file.
pub async fn measure(scene: &Scene, version: &VersionReader, report: &mut Report) -> Result<f64> {
    let (mut raw, mut warm, mut cold) = (Sample::default(), Sample::default(), Sample::default());
    for round in 0..scene.rounds(5, 2) {
        raw.push(boot(scene, Backing::File(scene.appliance.system.clone())).await?);
        let directory = scene.fresh("boot-cache")?;
        let (seconds, _) = from_export(scene, version, &directory).await?;
        cold.push(seconds);
        let (seconds, bytes) = from_export(scene, version, &directory).await?;
        warm.push(seconds);
        say(&format!("round {round}: the warm start fetched {}", ByteCount(bytes)));
    }
    let local_seconds = raw.median();
    let peer = [("local raw", raw)];
    report.add(Row { id: "boot.warm", unit: "s", goal: "<= 1.03" }, &warm, &peer);
    report.add(Row { id: "boot.cold", unit: "s", goal: "-" }, &cold, &peer);
    Ok(local_seconds)
}

/// Boots once through a recorder: what an unattended start at publishing does.
pub async fn record(scene: &Scene) -> Result<Trace> {
    let raw = RawFile::open(&scene.appliance.system).map_err(chain)?;
    let recorder = Arc::<Recorder>::default();
    exported(scene, Arc::new(Heard::new(Arc::new(raw), Arc::clone(&recorder)))).await?;
    Ok(recorder.trace())
}

/// Boots from a cache in `directory`; returns the seconds and the bytes that were fetched.
async fn from_export(
    scene: &Scene,
    version: &VersionReader,
    directory: &Path,
) -> Result<(f64, u64)> {
    let cache = Cache::open(directory, CacheOptions { capacity_bytes: 8 << 30 }).map_err(chain)?;
    let fetcher = Fetcher::new(cache, FetchSettings::default());
    let disk = VersionDisk::new(version.disk(DiskRole::System).await.map_err(chain)?, fetcher);
    let trace = version.trace(DiskRole::System).await.map_err(chain)?;
    let ahead = tokio::spawn({
        let disk = disk.clone();
        async move { disk.replay(&trace).await }
    });
    let seconds = exported(scene, Arc::new(disk.clone())).await?;
    ahead.abort();
    Ok((seconds, disk.stats().fetched_bytes))
}

pub async fn exported(scene: &Scene, source: Arc<dyn Source>) -> Result<f64> {
    let directory = private_directory()?;
    let socket = directory.path().join("disk.sock");
    let export = Export::bind(&socket).map_err(chain)?;
    export.add("system", source).map_err(chain)?;
    let backing = Backing::Nbd(NbdExport { socket, export: "system".to_owned() });
    let seconds = boot(scene, backing).await;
    export.shutdown().await;
    seconds
}

/// Boots once and returns the seconds.
pub async fn boot(scene: &Scene, backing: Backing) -> Result<f64> {
    let directory = private_directory()?;
    let path = directory.path();
    let mut disks = vec![disk(DiskRole::System, backing, &scene.appliance.system, path).await?];
    if let Some(user) = &scene.appliance.user {
        disks.push(disk(DiskRole::User, Backing::File(user.clone()), user, path).await?);
    }
    let spec = MachineSpec {
        name: "bench".to_owned(),
        accelerator: scene.accelerator.accelerator,
        hardware: scene.appliance.hardware.clone(),
        disks,
        sockets: Sockets::within(path),
        serial_log: path.join("serial.log"),
        qemu_log: path.join("qemu.log"),
        pid_file: path.join("pid"),
    };
    let started = Instant::now();
    let machine = process::launch(&scene.qemu, &spec).await.map_err(chain)?;
    let agent = Agent::new(spec.sockets.agent.clone());
    let booted = loop {
        if agent.ping().await.is_ok() {
            break Ok(started.elapsed().as_secs_f64());
        }
        if started.elapsed() > BOOT_LIMIT || !machine.process.is_alive() {
            break Err(anyhow::anyhow!("the guest does not come up"));
        }
        tokio::time::sleep(POLL).await;
    };
    machine.process.kill().await.map_err(chain)?;
    match booted {
        Ok(seconds) => Ok(seconds),
        Err(error) => bail!("{error}: {}", tail(&spec.serial_log)),
    }
}

async fn disk(role: DiskRole, backing: Backing, image: &Path, path: &Path) -> Result<DiskSpec> {
    let top: PathBuf = path.join(format!("{role}.qcow2"));
    layer::create(&top, std::fs::metadata(image)?.len()).await.map_err(chain)?;
    Ok(DiskSpec { role, backing, layers: vec![top] })
}

/// A directory that nobody else may enter, as sockets want it.
pub fn private_directory() -> Result<tempfile::TempDir> {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    Ok(tempfile::Builder::new().prefix("bench").permissions(mode).tempdir()?)
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned()
}
