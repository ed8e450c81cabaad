//! Freezing and rebasing on a real storage daemon, while a client keeps writing, and after cuts between the steps.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use collective_model::{DiskRole, Result};
use collective_vm::graph;
use collective_vm::layer::{self, LayerData};
use collective_vm::qmp::Qmp;
use collective_vm::spec::NbdExport;
use serde_json::json;
use tempfile::TempDir;

use crate::scene::Daemon;

const DISK_BYTES: u64 = 8 << 20;
const ROLE: DiskRole = DiskRole::User;

/// A disk as the guest of a storage daemon: an NBD base, one layer, and an export in the machine's place.
struct Disk {
    directory: TempDir,
    qmp: Qmp,
    bases: Vec<Daemon>,
    _daemon: Daemon,
}

impl Disk {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("base-0.raw"), pattern(0, DISK_BYTES)).unwrap();
        let base = serve(directory.path(), 0);
        layer::create(&path("layer-0"), DISK_BYTES).await.unwrap();
        let nodes = [
            json!({"driver": "nbd", "node-name": "user-base-0", "export": "v0", "read-only": true,
                   "server": {"type": "unix", "path": path("nbd-0")}, "reconnect-delay": 60}),
            json!({"driver": "file", "node-name": "user-file-0", "filename": path("layer-0")}),
            json!({"driver": "qcow2", "node-name": "user-layer-0", "file": "user-file-0",
                   "backing": "user-base-0", "discard": "unmap", "detect-zeroes": "unmap"}),
        ];
        let qmp_socket = path("qmp");
        let mut command = Command::new("qemu-storage-daemon");
        for node in &nodes {
            command.arg("--blockdev").arg(node.to_string());
        }
        command
            .arg("--chardev")
            .arg(format!("socket,id=qmp,path={},server=on,wait=off", qmp_socket.display()))
            .args(["--monitor", "chardev=qmp"])
            .arg("--chardev")
            .arg(format!("socket,id=cut,path={},server=on,wait=off", path("qmp-cut").display()))
            .args(["--monitor", "chardev=cut"])
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={}", path("guest").display()))
            .args(["--export", "nbd,id=guest,node-name=user-layer-0,name=guest,writable=on"]);
        let daemon = start(&mut command);
        wait_for(&path("guest"));
        let qmp = Qmp::connect(&qmp_socket).await.unwrap();
        Self { directory, qmp, bases: vec![base], _daemon: daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Connects a client that is killed when its first `commands` commands have been carried out, before it hears of the last.
    async fn killed_after(&self, commands: usize) -> (Result<Qmp>, JoinHandle<Cut>) {
        self.through(move |client, monitor| pass_on(&client, &monitor, commands)).await
    }

    /// Connects a client through somebody who stands between it and a monitor.
    async fn through<T: Send + 'static>(
        &self,
        between: impl FnOnce(UnixStream, UnixStream) -> T + Send + 'static,
    ) -> (Result<Qmp>, JoinHandle<T>) {
        let socket = self.path("between");
        let listener = UnixListener::bind(&socket).unwrap();
        let monitor = self.path("qmp-cut");
        let thread = std::thread::spawn(move || {
            let client = listener.accept().unwrap().0;
            between(client, UnixStream::connect(monitor).unwrap())
        });
        let qmp = Qmp::connect(&socket).await;
        fs::remove_file(socket).unwrap();
        (qmp, thread)
    }

    /// Lists the nodes of the disk that the daemon has open.
    async fn node_names(&self) -> Vec<String> {
        let nodes = self.qmp.execute("query-named-block-nodes", json!({"flat": true})).await;
        let nodes = nodes.unwrap();
        let names = nodes.as_array().unwrap().iter();
        let names = names.map(|node| node["node-name"].as_str().unwrap().to_owned());
        names.filter(|name| name.starts_with("user-")).collect()
    }

    fn guest(&self) -> String {
        format!("nbd+unix:///guest?socket={}", self.path("guest").display())
    }

    /// Serves what the guest's disk shall be based on next.
    fn publish(&mut self, version: usize, content: &[u8]) -> NbdExport {
        fs::write(self.path(&format!("base-{version}.raw")), content).unwrap();
        self.bases.push(serve(self.directory.path(), version));
        NbdExport { socket: self.path(&format!("nbd-{version}")), export: format!("v{version}") }
    }
}

/// How a client that [`pass_on`] served came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// It was killed.
    Killed,
    /// It had nothing more to say.
    Finished,
}

/// Stands between a client and a monitor for so many commands, and keeps the last answer.
fn pass_on(client: &UnixStream, monitor: &UnixStream, commands: usize) -> Cut {
    watch(client, monitor, commands, |_| {})
}

/// As [`pass_on`], and shows each command before the monitor has it.
fn watch(
    client: &UnixStream,
    monitor: &UnixStream,
    commands: usize,
    mut seen: impl FnMut(&str),
) -> Cut {
    let mut questions = BufReader::new(client).lines();
    let mut answers = BufReader::new(monitor).lines();
    let (mut to_client, mut to_monitor) = (client, monitor);
    writeln!(to_client, "{}", answers.next().unwrap().unwrap()).unwrap();
    for left in (0..commands).rev() {
        let Some(Ok(question)) = questions.next() else {
            return Cut::Finished;
        };
        seen(&question);
        writeln!(to_monitor, "{question}").unwrap();
        let answer = answers.by_ref().map(|line| line.unwrap());
        let answer = answer.into_iter().find(|line| line.contains("\"id\"")).unwrap();
        if left > 0 {
            writeln!(to_client, "{answer}").unwrap();
        }
    }
    Cut::Killed
}

/// Content that tells its place and its maker.
fn pattern(seed: u8, length: u64) -> Vec<u8> {
    (0..length).map(|at| (at / 4096 % 251) as u8 ^ seed).collect()
}

fn start(command: &mut Command) -> Daemon {
    Daemon(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
}

fn serve(directory: &Path, version: usize) -> Daemon {
    let socket = directory.join(format!("nbd-{version}"));
    let daemon = start(
        Command::new("qemu-nbd")
            .args(["--persistent", "--read-only", "--format=raw", "--shared=0", "--socket"])
            .arg(&socket)
            .args(["--export-name", &format!("v{version}")])
            .arg(directory.join(format!("base-{version}.raw"))),
    );
    wait_for(&socket);
    daemon
}

/// Waits until somebody listens: the only sign that another process gives.
fn wait_for(socket: &Path) {
    let until = Instant::now() + Duration::from_secs(60);
    while UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < until, "nobody listens at {}", socket.display());
        std::thread::yield_now();
    }
}

fn io(disk: &str, commands: &[String]) {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]);
    commands.iter().for_each(|text| {
        command.args(["-c", text]);
    });
    let output = command.arg(disk).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("verification failed"), "{said}");
}

/// Puts what a layer holds over the content that it was written on: a publication.
async fn apply(layer_file: &Path, content: &mut [u8]) {
    let file = fs::File::open(layer_file).unwrap();
    for extent in layer::map(layer_file).await.unwrap() {
        let start = extent.range.offset_bytes() as usize;
        let target = &mut content[start..start + extent.range.length_bytes() as usize];
        match extent.what {
            LayerData::Zero => target.fill(0),
            LayerData::Data { file_offset } => file.read_exact_at(target, file_offset).unwrap(),
        }
    }
}

fn read_disk(disk: &Disk) -> Vec<u8> {
    let copy = disk.path("copy.raw");
    let status = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "raw", &disk.guest()])
        .arg(&copy)
        .status()
        .unwrap();
    assert!(status.success());
    fs::read(copy).unwrap()
}

/// Writes in the background what `expected` then holds: one block of every 64 KiB, `seed` of them apart.
fn keep_writing(disk: &str, seed: u8) -> JoinHandle<()> {
    let disk = disk.to_owned();
    std::thread::spawn(move || {
        let commands: Vec<String> = (0..DISK_BYTES / 65536)
            .map(|at| format!("write -P {seed} {} 4k", at * 65536 + u64::from(seed) % 16 * 4096))
            .collect();
        io(&disk, &commands);
    })
}

fn expect_written(content: &mut [u8], seed: u8) {
    for at in 0..DISK_BYTES / 65536 {
        let start = (at * 65536 + u64::from(seed) % 16 * 4096) as usize;
        content[start..start + 4096].fill(seed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_under_a_writing_client_lose_and_invent_nothing() {
    let mut disk = Disk::new().await;
    let mut published = pattern(0, DISK_BYTES);
    let mut expected = published.clone();
    for round in 1..=6u8 {
        let old = disk.path(&format!("layer-{}", round - 1));
        let new = disk.path(&format!("layer-{round}"));
        layer::create(&new, DISK_BYTES).await.unwrap();
        let writer = keep_writing(&disk.guest(), round * 2);
        assert_eq!(layer::map(&new).await.unwrap(), [], "nobody wrote to it yet");
        let chain = graph::freeze(&disk.qmp, ROLE, &new).await.unwrap();
        assert_eq!(chain.top().file, new);
        assert_eq!(chain.layers.len(), 2);
        let map = layer::map(&old).await.unwrap();
        apply(&old, &mut published).await;
        let second = keep_writing(&disk.guest(), round * 2 + 1);
        assert_eq!(layer::map(&old).await.unwrap(), map, "a frozen layer changed");
        let base = disk.publish(round.into(), &published);
        let chain = graph::rebase(&disk.qmp, ROLE, &new, &base).await.unwrap();
        assert_eq!(chain.layers.len(), 1);
        assert!(chain.strays.is_empty());
        fs::remove_file(&old).unwrap();
        drop(disk.bases.remove(0));
        writer.join().unwrap();
        second.join().unwrap();
        expect_written(&mut expected, round * 2);
        expect_written(&mut expected, round * 2 + 1);
        assert!(read_disk(&disk) == expected, "content differs in round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_cut_short_is_seen_and_finished_by_repeating_it() {
    let mut disk = Disk::new().await;
    io(&disk.guest(), &["write -P 7 64k 4k".to_owned()]);
    let new = disk.path("layer-1");
    layer::create(&new, DISK_BYTES).await.unwrap();
    // As a daemon leaves it that was killed after opening the new layer, before the switch.
    let file = json!({"driver": "file", "node-name": "user-file-1", "filename": new,
        "discard": "unmap"});
    disk.qmp.execute("blockdev-add", file).await.unwrap();
    let node = json!({"driver": "qcow2", "node-name": "user-layer-1", "file": "user-file-1",
        "backing": null});
    disk.qmp.execute("blockdev-add", node).await.unwrap();
    let cut = graph::nodes(&disk.qmp, ROLE).await.unwrap();
    assert_eq!(cut.top().file, disk.path("layer-0"));
    assert_eq!(cut.strays, ["user-layer-1", "user-file-1"]);
    for _ in 0..2 {
        let chain = graph::freeze(&disk.qmp, ROLE, &new).await.unwrap();
        assert_eq!((chain.top().file.as_path(), chain.strays.len()), (new.as_path(), 0));
    }
    // A second frozen layer; only the older one is published.
    io(&disk.guest(), &["write -P 8 128k 4k".to_owned()]);
    let top = disk.path("layer-2");
    layer::create(&top, DISK_BYTES).await.unwrap();
    graph::freeze(&disk.qmp, ROLE, &top).await.unwrap();
    let mut content = pattern(0, DISK_BYTES);
    apply(&disk.path("layer-0"), &mut content).await;
    let base = disk.publish(1, &content);
    for _ in 0..2 {
        let chain = graph::rebase(&disk.qmp, ROLE, &new, &base).await.unwrap();
        let files: Vec<_> = chain.layers.iter().map(|layer| layer.file.clone()).collect();
        assert_eq!(files, [new.clone(), top.clone()]);
        assert!(chain.strays.is_empty());
    }
    fs::remove_file(disk.path("layer-0")).unwrap();
    drop(disk.bases.remove(0));
    let checks = ["read -P 7 64k 4k", "read -P 8 128k 4k", "write -P 9 192k 4k"];
    io(&disk.guest(), &checks.map(str::to_owned));
    // Nobody serves this version: refused, and the disk is as before.
    let nobody = NbdExport { socket: disk.path("nbd-9"), export: "v9".to_owned() };
    graph::rebase(&disk.qmp, ROLE, &top, &nobody).await.unwrap_err();
    assert_eq!(graph::nodes(&disk.qmp, ROLE).await.unwrap().layers.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_synced_before_the_guest_waits_for_it() {
    let mut disk = Disk::new().await;
    // Not in a directory that is only in memory, where nothing is ever synced.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let files = [0, 1].map(|number| directory.path().join(format!("layer-{number}")));
    for file in &files {
        layer::create(file, DISK_BYTES).await.unwrap();
    }
    let base = disk.publish(1, &pattern(1, DISK_BYTES));
    graph::freeze(&disk.qmp, ROLE, &files[0]).await.unwrap();
    // It stays, because it flushes when it goes.
    let mut client = Command::new("qemu-io");
    client
        .args(["-f", "raw", "-t", "writeback", &disk.guest()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut client = Daemon(client.spawn().unwrap());
    let mut client_in = client.0.stdin.take().unwrap();
    let mut client_out = BufReader::new(client.0.stdout.take().unwrap()).lines();
    for (layer, command) in files.iter().zip(["blockdev-snapshot", "blockdev-reopen"]) {
        let (watched, shown) = (layer.clone(), format!("\"{command}\""));
        let (qmp, left) = disk
            .through(move |client, monitor| {
                let mut left = Vec::new();
                watch(&client, &monitor, usize::MAX, |question| {
                    if question.contains(&shown) {
                        left.push(unsynced(&watched));
                    }
                });
                left
            })
            .await;
        let qmp = qmp.unwrap();
        // What the kernel writes by itself right after the write is written again.
        let mut writes = 0..10;
        while !unsynced(layer) {
            let seed = writes.next().expect("the kernel syncs at once here");
            writeln!(client_in, "write -P {} {} 1M", seed + 1, (seed % 8) << 20).unwrap();
            while !client_out.next().unwrap().unwrap().contains("wrote") {}
        }
        if command == "blockdev-snapshot" {
            graph::freeze(&qmp, ROLE, &files[1]).await.unwrap();
        } else {
            graph::rebase(&qmp, ROLE, layer, &base).await.unwrap();
        }
        drop(qmp);
        assert_eq!(left.join().unwrap(), [false], "unsynced at `{command}`");
    }
}

/// Tells whether a file has bytes that the file system has not even given a place on the disk.
fn unsynced(file: &Path) -> bool {
    let output = Command::new("filefrag").arg("-v").arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).contains("delalloc")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_killed_after_any_command_is_made_good_by_repeating() {
    /// More commands than a freeze or a rebase has.
    const MOST_COMMANDS: usize = 30;
    let mut disk = Disk::new().await;
    let mut published = pattern(0, DISK_BYTES);
    let mut expected = published.clone();
    for commands in 1.. {
        assert!(commands < MOST_COMMANDS, "no rebase comes to its end");
        let old = disk.path(&format!("layer-{}", commands - 1));
        let new = disk.path(&format!("layer-{commands}"));
        let block = commands * 65536;
        io(&disk.guest(), &[format!("write -P {commands} {block} 4k")]);
        expected[block..block + 4096].fill(u8::try_from(commands).unwrap());
        layer::create(&new, DISK_BYTES).await.unwrap();

        let (killed, cut) = disk.killed_after(commands).await;
        if let Ok(qmp) = killed {
            let _ = graph::freeze(&qmp, ROLE, &new).await;
        }
        let freeze_cut = cut.join().unwrap();
        let chain = graph::freeze(&disk.qmp, ROLE, &new).await.unwrap();
        assert_eq!((chain.top().file.as_path(), chain.layers.len()), (new.as_path(), 2));
        apply(&old, &mut published).await;
        assert!(published == expected, "the frozen layer misses a write in round {commands}");

        let base = disk.publish(commands, &published);
        let (killed, cut) = disk.killed_after(commands).await;
        if let Ok(qmp) = killed {
            let _ = graph::rebase(&qmp, ROLE, &new, &base).await;
        }
        let rebase_cut = cut.join().unwrap();
        let once = graph::rebase(&disk.qmp, ROLE, &new, &base).await.unwrap();
        let names = disk.node_names().await;
        assert_eq!(names.len(), 3, "a base, a layer and its file: {names:?}");
        let again = graph::rebase(&disk.qmp, ROLE, &new, &base).await.unwrap();
        assert_eq!(again, once);
        assert_eq!(disk.node_names().await, names, "repeated, it adds or replaces a node");
        fs::remove_file(&old).unwrap();
        drop(disk.bases.remove(0));
        assert!(read_disk(&disk) == expected, "content differs in round {commands}");
        if (freeze_cut, rebase_cut) == (Cut::Finished, Cut::Finished) {
            return;
        }
    }
}
