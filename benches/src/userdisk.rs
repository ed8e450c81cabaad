//! Saving a user disk while it is in use: what a snapshot sends, what one costs that has nothing to send, and how long
//! the guest's writes stand still while its layer is frozen or gets a new base.
//!
//! The guest is QEMU's storage daemon with a user disk as the host opens it (an export below, a layer of ours on top),
//! and a client that writes. What it writes is what a session left behind: the disk's file system is mounted and worked
//! in, and the blocks that changed are written to the layer, frozen, and published over the version before, as the host
//! does it. The floor of what is sent is those blocks compressed: 4 KiB pieces in 256 KiB frames, zstd -3.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use collective_disk::{Export, RawFile};
use collective_model::{BLOCK_BYTES, BlockRange, DiskRole, Epoch, RepositoryId, Silent, Version};
use collective_repository::backend::Directory;
use collective_repository::{
    Descriptor, DiskSource, Kind, Piece, PieceData, Publication, Repository, RepositorySecret,
};
use collective_vm::graph;
use collective_vm::layer::{self, LayerData};
use collective_vm::qmp::Qmp;
use collective_vm::spec::NbdExport;
use rustix::fs::{SeekFrom, seek};
use serde_json::json;

use crate::boot::private_directory;
use crate::cold::{Ended, FLOOR_FRAME_BLOCKS, FLOOR_LEVEL};
use crate::peers::size_of;
use crate::report::{Report, Row, say};
use crate::sample::Sample;
use crate::scene::{Scene, chain};
use crate::versions::copy;
use crate::writer::Writer;

const ROLE: DiskRole = DiskRole::User;
const BLOCK: usize = BLOCK_BYTES as usize;
/// What is written and not synced when a layer is frozen, or gets a new base: 16 and 256 MiB.
const UNSYNCED: [(u64, [&str; 2]); 2] = [
    (1 << 12, ["freeze, 16 MiB", "rebase, 16 MiB"]),
    (1 << 16, ["freeze, 256 MiB", "rebase, 256 MiB"]),
];
const FILLED_BYTES: usize = 256 << 10;
/// Bytes of two disks that are compared at once.
const COMPARED_BYTES: usize = 1 << 20;
/// What is done on the disk before each snapshot: documents written, one changed in place, a database that grows, a tree
/// of sources unpacked, things moved and removed.
const SESSIONS: [&str; 5] = [
    "mkdir -p ann/letters; for n in $(seq 40); do sed s/^/$n:/ /usr/share/common-licenses/GPL-3 | head -c 20000 > ann/letters/$n; done",
    "cp -r /etc ann/tables; dd if=/dev/urandom of=ann/photo bs=64k count=20 status=none",
    "echo changed >> ann/letters/7; sed -i s/the/an/ ann/letters/9; echo note > ann/note",
    "tar -cf ann/backup.tar ann/letters; rm -r ann/tables; mv ann/letters ann/old",
    "for n in $(seq 300); do echo $n >> ann/log; done; cp ann/backup.tar ann/backup-2.tar; rm ann/photo",
];

/// Measures and reports.
pub async fn measure(scene: &Scene, report: &mut Report) -> Result<()> {
    let image = scene.appliance.user.clone().context("the appliance has no user disk")?;
    snapshots(scene, &image, report).await?;
    let guest = Guest::start(scene, &image, "userdisk-idle").await?;
    idle(scene, &guest, report).await?;
    pauses(scene, &guest, report).await?;
    guest.end().await
}

/// A user disk that is open as a machine opens it, without the machine.
struct Guest {
    directory: PathBuf,
    sockets: tempfile::TempDir,
    size_bytes: u64,
    export: Export,
    qmp: Qmp,
    daemon: Ended,
}

impl Guest {
    async fn start(scene: &Scene, image: &Path, name: &str) -> Result<Self> {
        let (directory, sockets) = (scene.fresh(name)?, private_directory()?);
        let size_bytes = std::fs::metadata(image)?.len();
        let base = sockets.path().join("base");
        let export = Export::bind(&base).map_err(chain)?;
        export.add("user", Arc::new(RawFile::open(image).map_err(chain)?)).map_err(chain)?;
        let layer = directory.join("layer-0");
        layer::create(&layer, size_bytes).await.map_err(chain)?;
        let nodes = [
            json!({"driver": "nbd", "node-name": "user-base-0", "export": "user", "read-only": true,
                   "server": {"type": "unix", "path": base}, "reconnect-delay": 60}),
            json!({"driver": "file", "node-name": "user-file-0", "filename": layer,
                   "discard": "unmap"}),
            json!({"driver": "qcow2", "node-name": "user-layer-0", "file": "user-file-0",
                   "backing": "user-base-0", "discard": "unmap", "detect-zeroes": "unmap"}),
        ];
        let mut command = Command::new("qemu-storage-daemon");
        for node in &nodes {
            command.arg("--blockdev").arg(node.to_string());
        }
        let (qmp, guest) = (sockets.path().join("qmp"), sockets.path().join("guest"));
        command
            .arg("--chardev")
            .arg(format!("socket,id=qmp,path={},server=on,wait=off", qmp.display()))
            .args(["--monitor", "chardev=qmp", "--nbd-server"])
            .arg(format!("addr.type=unix,addr.path={}", guest.display()))
            .args(["--export", "nbd,id=guest,node-name=user-layer-0,name=guest,writable=on"]);
        let mut daemon = Ended::start(&mut command)?;
        while Writer::connect(&guest, "guest").is_err() {
            ensure!(daemon.is_alive(), "qemu-storage-daemon ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let qmp = Qmp::connect(&qmp).await.map_err(chain)?;
        Ok(Self { directory, sockets, size_bytes, export, qmp, daemon })
    }

    fn writer(&self) -> Result<Writer> {
        Writer::connect(&self.sockets.path().join("guest"), "guest")
    }

    fn layer(&self, number: usize) -> PathBuf {
        self.directory.join(format!("layer-{number}"))
    }

    /// Freezes the layer that takes the writes; the next one has that number.
    async fn freeze(&self, next: usize) -> Result<()> {
        layer::create(&self.layer(next), self.size_bytes).await.map_err(chain)?;
        graph::freeze(&self.qmp, ROLE, &self.layer(next)).await.map_err(chain)?;
        Ok(())
    }

    /// Puts a layer on the base, as it is done when those before it are published.
    async fn rebase(&self, number: usize) -> Result<()> {
        let socket = self.sockets.path().join("base");
        let base = NbdExport { socket, export: "user".to_owned() };
        graph::rebase(&self.qmp, ROLE, &self.layer(number), &base).await.map_err(chain)?;
        Ok(std::fs::remove_file(self.layer(number - 1))?)
    }

    async fn end(self) -> Result<()> {
        drop(self.daemon);
        self.export.shutdown().await;
        Ok(std::fs::remove_dir_all(&self.directory)?)
    }
}

/// Publishes sessions one after the other, and reports what was sent beside the compressed changes.
async fn snapshots(scene: &Scene, image: &Path, report: &mut Report) -> Result<()> {
    let stored = scene.fresh("userdisk-repository")?;
    let private = Private::create(&stored).await?;
    let (mut before, work) =
        (scene.directory.join("userdisk-0.raw"), scene.directory.join("userdisk.raw"));
    copy(image, &work)?;
    copy(&work, &before)?;
    let all = BlockRange::covering(0, std::fs::metadata(&work)?.len());
    let what = PieceData::File { file: Arc::new(File::open(&before)?), offset: 0 };
    let mut base = private.publish(None, vec![Piece { range: all, what }], all).await?;
    let mut share = Sample::default();
    let sessions = &SESSIONS[..scene.rounds(SESSIONS.len(), 2)];
    for (number, session) in sessions.iter().enumerate() {
        let after = scene.directory.join(format!("userdisk-{}.raw", number + 1));
        work_in(&work, session)?;
        copy(&work, &after)?;
        let guest = Guest::start(scene, &before, "userdisk-session").await?;
        let changes = changes(&before, &after)?;
        let mut writer = guest.writer()?;
        for change in &changes {
            writer.write(change.offset, &change.data)?;
        }
        writer.flush()?;
        guest.freeze(1).await?;
        let bytes = size_of(&stored)?;
        base = private.publish(Some(base), pieces(&guest.layer(0)).await?, all).await?;
        let sent = (size_of(&stored)? - bytes) as f64;
        let floor = floor_bytes(&changes)?;
        let count = changes.len();
        say(&format!("{count} changes: {:.1} kB sent, floor {:.1}", sent / 1e3, floor / 1e3));
        share.push(sent / floor);
        drop(writer);
        guest.end().await?;
        std::fs::remove_file(&before)?;
        before = after;
    }
    std::fs::remove_file(before)?;
    std::fs::remove_file(work)?;
    report.add(Row { id: "userdisk.bytes", unit: "of the floor", goal: "<= 1.15" }, &share, &[]);
    Ok(())
}

/// The repository of a user disk.
struct Private {
    repository: Repository,
    secret: RepositorySecret,
}

impl Private {
    async fn create(directory: &Path) -> Result<Self> {
        let secret = RepositorySecret::generate();
        let backend = Arc::new(Directory::create(directory).map_err(chain)?);
        let descriptor =
            Descriptor::private(RepositoryId(*b"collective-user-"), Kind::UserDisk, &secret);
        let repository = Repository::create(backend, descriptor, Some(secret.clone())).await;
        Ok(Self { repository: repository.map_err(chain)?, secret })
    }

    async fn publish(
        &self,
        base: Option<Version>,
        pieces: Vec<Piece>,
        all: BlockRange,
    ) -> Result<Version> {
        let size_bytes = all.length_bytes();
        let disk = DiskSource { base, ..DiskSource::new(ROLE, size_bytes, pieces) };
        let publication = Publication {
            epoch: Epoch(1),
            id: "0123456789abcdef0123456789abcdef".to_owned(),
            ..Publication::new(base, SystemTime::now().into(), vec![disk])
        };
        let signer = self.secret.signing_key();
        let published = self.repository.publish(publication, &signer, &Silent).await;
        Ok(published.map_err(chain)?.version)
    }
}

/// Works in the disk's file system.
fn work_in(disk: &Path, commands: &str) -> Result<()> {
    let script = "set -eu; at=$(mktemp -d); mount -o loop,noatime \"$1\" \"$at\"; cd \"$at\"; \
                  sh -euc \"$2\"; cd /; umount \"$at\"; rmdir \"$at\"";
    let worked = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "session"])
        .arg(disk)
        .arg(commands)
        .status()?;
    ensure!(worked.success(), "cannot work in a user disk (root, loop devices?)");
    Ok(())
}

/// A block that differs.
struct Change {
    offset: u64,
    data: Vec<u8>,
}

fn changes(before: &Path, after: &Path) -> Result<Vec<Change>> {
    let (before, after) = (File::open(before)?, File::open(after)?);
    let size = after.metadata()?.len();
    let (mut old, mut new) = (vec![0; COMPARED_BYTES], vec![0; COMPARED_BYTES]);
    let mut changes = Vec::new();
    let next_data = |at| {
        let data = [&before, &after].map(|file| seek(file, SeekFrom::Data(at)).unwrap_or(size));
        data[0].min(data[1]) / BLOCK_BYTES * BLOCK_BYTES
    };
    let mut start = next_data(0);
    while start < size {
        let length = COMPARED_BYTES.min((size - start) as usize);
        before.read_exact_at(&mut old[..length], start)?;
        after.read_exact_at(&mut new[..length], start)?;
        let blocks = old[..length].chunks_exact(BLOCK).zip(new[..length].chunks_exact(BLOCK));
        for (at, (_, data)) in blocks.enumerate().filter(|(_, (old, new))| old != new) {
            changes.push(Change { offset: start + (at * BLOCK) as u64, data: data.to_vec() });
        }
        start = next_data(start + length as u64);
    }
    Ok(changes)
}

/// What the changed blocks that are not zero take compressed.
fn floor_bytes(changes: &[Change]) -> Result<f64> {
    let full: Vec<&Change> =
        changes.iter().filter(|change| change.data.iter().any(|byte| *byte != 0)).collect();
    let mut bytes = 0;
    for frame in full.chunks(FLOOR_FRAME_BLOCKS) {
        let plain: Vec<u8> = frame.iter().flat_map(|change| &change.data).copied().collect();
        bytes += zstd::bulk::compress(&plain, FLOOR_LEVEL)?.len();
    }
    Ok(bytes as f64)
}

/// What a frozen layer holds, as the host publishes it.
async fn pieces(path: &Path) -> Result<Vec<Piece>> {
    let file = Arc::new(File::open(path)?);
    let extents = layer::map(path).await.map_err(chain)?;
    let piece = |extent: layer::LayerExtent| Piece {
        range: extent.range,
        what: match extent.what {
            LayerData::Zero => PieceData::Zero,
            LayerData::Data { file_offset } => {
                PieceData::File { file: Arc::clone(&file), offset: file_offset }
            }
        },
    };
    Ok(extents.into_iter().map(piece).collect())
}

/// What the host does when a snapshot is due and nothing was written: it looks at the chain, asks for the head, and
/// finds the layer empty.
async fn idle(scene: &Scene, guest: &Guest, report: &mut Report) -> Result<()> {
    let private = Private::create(&scene.fresh("userdisk-repository")?).await?;
    let mut took = Sample::default();
    for _ in 0..scene.rounds(100, 20) {
        let begun = Instant::now();
        let chain_of_disk = graph::nodes(&guest.qmp, ROLE).await.map_err(chain)?;
        private.repository.head().await.map_err(chain)?;
        let map = layer::map(&chain_of_disk.top().file).await.map_err(chain)?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
        ensure!(map.is_empty(), "nothing was written, and the layer is not empty");
    }
    report.add(Row { id: "userdisk.idle", unit: "ms", goal: "<= 10" }, &took, &[]);
    Ok(())
}

/// Freezes and rebases again and again while a client writes, with little and with much that is not synced, and reports
/// the longest write around each step: the worst case is the figure.
async fn pauses(scene: &Scene, guest: &Guest, report: &mut Report) -> Result<()> {
    let mut between = Sample::default();
    let (mut number, mut worst, mut cases) = (0, 0.0_f64, Vec::new());
    for (blocks, names) in UNSYNCED {
        let client = Client::start(guest.writer()?, blocks);
        let mut steps = [Sample::default(), Sample::default()];
        for _ in 0..scene.rounds(100, 40) {
            number += 1;
            client.fill().await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            between.push(client.longest_ms());
            client.fill().await?;
            guest.freeze(number).await?;
            steps[0].push(client.longest_ms_after().await);
            client.fill().await?;
            guest.rebase(number).await?;
            steps[1].push(client.longest_ms_after().await);
        }
        client.end()?;
        for (name, step) in names.into_iter().zip(steps) {
            worst = worst.max(step.percentile(0.99));
            cases.push((name, p99(&step)));
        }
    }
    cases.insert(0, ("without a step", p99(&between)));
    let row = Row { id: "userdisk.pause", unit: "ms, p99", goal: "<= 100" };
    report.add(row, &[worst].into_iter().collect(), &cases);
    Ok(())
}

fn p99(sample: &Sample) -> Sample {
    [sample.percentile(0.99)].into_iter().collect()
}

/// A client that writes blocks without a pause, and when asked to, all there is.
struct Client {
    shared: Arc<Shared>,
    thread: std::thread::JoinHandle<Result<()>>,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    /// Everything is to be written once more.
    fill: AtomicBool,
    longest_us: AtomicU64,
}

impl Client {
    fn start(mut writer: Writer, blocks: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let fill = vec![2; FILLED_BYTES];
            let mut block = 0;
            while !told.over.load(Ordering::Relaxed) {
                if told.fill.load(Ordering::Acquire) {
                    for offset in (0..blocks * BLOCK_BYTES).step_by(FILLED_BYTES) {
                        writer.write(offset, &fill)?;
                    }
                    told.longest_us.store(0, Ordering::Relaxed);
                    told.fill.store(false, Ordering::Release);
                }
                // Apart, so that the writes jump about.
                block = (block + 7919) % blocks;
                let begun = Instant::now();
                writer.write(block * BLOCK_BYTES, &[1; BLOCK])?;
                told.longest_us.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { shared, thread }
    }

    /// Has everything written, none of which is synced then.
    async fn fill(&self) -> Result<()> {
        self.shared.fill.store(true, Ordering::Release);
        while self.shared.fill.load(Ordering::Acquire) {
            ensure!(!self.thread.is_finished(), "the writing broke off");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    fn longest_ms(&self) -> f64 {
        self.shared.longest_us.swap(0, Ordering::Relaxed) as f64 / 1e3
    }

    /// As `longest_ms`, with the write that a step held up, which ends after it.
    async fn longest_ms_after(&self) -> f64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.longest_ms()
    }

    fn end(self) -> Result<()> {
        self.shared.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the writing broke off"))?
    }
}
