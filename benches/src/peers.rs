//! What others take to store a line of disks, and to move from one version to the next.
//!
//! Each peer is a program of Debian's with its own way of finding what is there already: content-defined chunks
//! (casync, restic), fixed ones (borg), clusters of an image chain (qcow2), a rolling search (rsync), or the whole old
//! disk as a dictionary (xdelta3, zstd). All compress; none but restic encrypts, which costs it next to nothing.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::{SeekFrom, seek};

use crate::publish::children_time;
use crate::report::say;
use crate::scene::Scene;
use crate::versions::copy;

/// What somebody took for each disk of a line.
#[derive(Debug)]
pub struct Taken {
    pub name: &'static str,
    /// Bytes that storing it added; empty for a peer that only moves disks.
    pub stored: Vec<u64>,
    /// Bytes that a computer with the disk before it lacks, from the second disk on.
    pub moved: Vec<u64>,
    /// Processor time of storing it; of no use if anything else ran at the same time.
    pub processor: Vec<Duration>,
}

/// Takes a disk, whose place in the line is told, after those before it.
type Step = fn(&Path, &[PathBuf], usize) -> Result<Bytes>;

/// What one disk took.
#[derive(Debug, Default)]
struct Bytes {
    stored: u64,
    moved: u64,
}

/// Takes the disks of a line through borg, alone, so that its processor time can be compared.
pub fn borg(scene: &Scene, disks: &[PathBuf]) -> Result<Taken> {
    take(scene, disks, "borg", borg_create)
}

/// Takes the disks of a line through the other peers, beside each other: only their bytes are of use.
pub fn others(scene: &Scene, disks: &[PathBuf]) -> Result<Vec<Taken>> {
    let others: [(_, Step); 4] =
        [("casync", casync), ("restic", restic), ("qcow2 zstd", qcow2), ("rsync -z", rsync)];
    std::thread::scope(|scope| {
        let started: Vec<_> = others
            .into_iter()
            .map(|(name, step)| scope.spawn(move || take(scene, disks, name, step)))
            .collect();
        let ended = started.into_iter().map(|taking| {
            taking.join().unwrap_or_else(|_| Err(anyhow!("a peer's thread broke off")))
        });
        ended.collect()
    })
}

/// Bytes of an update by those that need the whole old disk at hand, and do nothing but make one difference.
pub fn apart(scene: &Scene, disks: &[PathBuf], at: usize) -> Result<Vec<(&'static str, u64)>> {
    let peers: [(_, Step); 2] = [("xdelta3", xdelta), ("zstd --patch-from", patch_from)];
    let directory = scene.fresh("peer-apart")?;
    let taken =
        peers.into_iter().map(|(name, step)| Ok((name, step(&directory, disks, at)?.moved)));
    let taken = taken.collect();
    std::fs::remove_dir_all(&directory)?;
    taken
}

fn take(scene: &Scene, disks: &[PathBuf], name: &'static str, step: Step) -> Result<Taken> {
    let directory = scene.fresh(&format!("peer-{name}"))?;
    let mut taken = Taken { name, stored: Vec::new(), moved: Vec::new(), processor: Vec::new() };
    for at in 0..disks.len() {
        let before = children_time();
        let bytes = step(&directory, disks, at).with_context(|| format!("{name}, disk {at}"))?;
        taken.processor.push(children_time() - before);
        if bytes.stored > 0 {
            taken.stored.push(bytes.stored);
        }
        if at > 0 {
            taken.moved.push(bytes.moved);
        }
    }
    say(&format!("{name}: {} MB in all", taken.stored.iter().sum::<u64>() / 1_000_000));
    std::fs::remove_dir_all(directory)?;
    Ok(taken)
}

/// Moved is what of the disk's chunks the disk before has not, and the index.
fn casync(directory: &Path, disks: &[PathBuf], at: usize) -> Result<Bytes> {
    let index = |at: usize| directory.join(format!("{at}.caibx"));
    let store = directory.join("store");
    std::fs::create_dir_all(&store)?;
    let before = size_of(&store)?;
    let mut command = Command::new("casync");
    command.args(["make", "--compression=zstd", "--store"]).arg(&store);
    run(command.arg(index(at)).arg(&disks[at]))?;
    let index_bytes = std::fs::metadata(index(at))?.len();
    let known = if at > 0 { chunks(&index(at - 1))? } else { HashSet::new() };
    let mut moved = index_bytes;
    for chunk in chunks(&index(at))?.difference(&known) {
        let path = store.join(&chunk[..4]).join(format!("{chunk}.cacnk"));
        moved += std::fs::metadata(path)?.len();
    }
    Ok(Bytes { stored: size_of(&store)? - before + index_bytes, moved })
}

/// The names of the chunks that an index of casync lists: 48 bytes of head, 16 of the table's, then rows of an offset and a
/// hash, the last of which is not one.
fn chunks(index: &Path) -> Result<HashSet<String>> {
    let bytes = std::fs::read(index)?;
    let rows = bytes.get(64..bytes.len() - 40).context("an index of casync is too short")?;
    let name = |row: &[u8]| row[8..].iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(rows.chunks_exact(40).map(name).collect())
}

/// Cut into 64 KiB, which suits disks better than its own way; compressed as ours is.
fn borg_create(directory: &Path, disks: &[PathBuf], at: usize) -> Result<Bytes> {
    let repository = directory.join("repository");
    let command = || {
        let mut command = Command::new("borg");
        command.env("BORG_BASE_DIR", directory.join("own"));
        command.env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        command
    };
    if at == 0 {
        run(command().args(["init", "--encryption", "none"]).arg(&repository))?;
    }
    let before = size_of(&repository)?;
    let mut create = command();
    create.args(["create", "--compression", "zstd,3", "--chunker-params", "fixed,65536"]);
    run(create.arg("--sparse").arg(format!("{}::{at}", repository.display())).arg(&disks[at]))?;
    let stored = size_of(&repository)? - before;
    Ok(Bytes { stored, moved: stored })
}

fn restic(directory: &Path, disks: &[PathBuf], at: usize) -> Result<Bytes> {
    let repository = directory.join("repository");
    let command = || {
        let mut command = Command::new("restic");
        command.args(["--no-cache", "--quiet", "--repo"]).arg(&repository);
        command.env("RESTIC_PASSWORD", "bench");
        command
    };
    if at == 0 {
        run(command().arg("init"))?;
    }
    let before = size_of(&repository)?;
    run(command().arg("backup").arg(&disks[at]))?;
    let stored = size_of(&repository)? - before;
    Ok(Bytes { stored, moved: stored })
}

/// An image of the clusters that differ from the disk before: what the next image of a chain takes.
fn qcow2(directory: &Path, disks: &[PathBuf], at: usize) -> Result<Bytes> {
    let (changed, image) = (directory.join("changed.raw"), directory.join("changed.qcow2"));
    if at > 0 {
        changed_clusters(&disks[at - 1], &disks[at], &changed)?;
    }
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd"]);
    run(command.arg(if at > 0 { &changed } else { &disks[0] }).arg(&image))?;
    let bytes = std::fs::metadata(image)?.len();
    Ok(Bytes { stored: bytes, moved: bytes })
}

/// Bytes of a cluster of qcow2, as it is made without a wish.
const CLUSTER: usize = 64 << 10;

/// Writes the clusters of a disk that differ from those of the one before. What became zero stays a hole: an image
/// marks it without taking room.
fn changed_clusters(old: &Path, new: &Path, changed: &Path) -> Result<()> {
    let (old, new, changed) = (File::open(old)?, File::open(new)?, File::create(changed)?);
    let size = new.metadata()?.len();
    changed.set_len(size)?;
    let (mut before, mut after) = (vec![0; CLUSTER], vec![0; CLUSTER]);
    let mut at = 0;
    while at < size {
        // Holes are gone over; there are none after the last data.
        let Ok(data) = seek(&new, SeekFrom::Data(at)) else { break };
        at = data - data % CLUSTER as u64;
        let length = CLUSTER.min((size - at) as usize);
        old.read_exact_at(&mut before[..length], at)?;
        new.read_exact_at(&mut after[..length], at)?;
        if before[..length] != after[..length] {
            changed.write_all_at(&after[..length], at)?;
        }
        at += CLUSTER as u64;
    }
    Ok(())
}

/// What goes over the connection, both ways.
fn rsync(directory: &Path, disks: &[PathBuf], at: usize) -> Result<Bytes> {
    if at == 0 {
        return Ok(Bytes::default());
    }
    let kept = directory.join("disk.raw");
    copy(&disks[at - 1], &kept)?;
    let mut command = Command::new("rsync");
    command.args(["--no-whole-file", "--inplace", "--compress", "--stats"]);
    let said = output(command.arg(&disks[at]).arg(&kept))?;
    let figure = |name: &str| -> Result<u64> {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        let digits = line.with_context(|| format!("rsync does not say `{name}`"))?.replace(',', "");
        Ok(digits.trim().parse()?)
    };
    let moved = figure("Total bytes sent:")? + figure("Total bytes received:")?;
    Ok(Bytes { stored: 0, moved })
}

fn xdelta(directory: &Path, disks: &[PathBuf], at: usize) -> Result<Bytes> {
    let patch = directory.join("patch");
    let mut command = Command::new("xdelta3");
    command.args(["-e", "-f", "-B", "2147483648", "-s"]).arg(&disks[at - 1]);
    run(command.arg(&disks[at]).arg(&patch))?;
    Ok(Bytes { stored: 0, moved: std::fs::metadata(patch)?.len() })
}

fn patch_from(directory: &Path, disks: &[PathBuf], at: usize) -> Result<Bytes> {
    let patch = directory.join("patch");
    let mut command = Command::new("zstd");
    command.args(["-q", "-f", "-3", "--long=31", "--patch-from"]).arg(&disks[at - 1]);
    run(command.arg(&disks[at]).arg("-o").arg(&patch))?;
    Ok(Bytes { stored: 0, moved: std::fs::metadata(patch)?.len() })
}

fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let ended = command.stdin(Stdio::null()).output();
    let ended = ended.with_context(|| format!("{name} does not start"))?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "{name} failed: {}", said.trim());
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// Bytes of the files below a directory.
pub fn size_of(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let (entry, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
        bytes += if metadata.is_dir() { size_of(&entry)? } else { metadata.len() };
    }
    Ok(bytes)
}
