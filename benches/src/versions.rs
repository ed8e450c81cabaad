//! A line of versions of the `debian` appliance, each made from the one before in place, as an administrator who keeps
//! a system current makes them: packages are installed, upgraded (from backports, a kernel among them) and removed.
//!
//! The disk's file system is mounted and changed by `apt-get` in it (`line.sh`), which needs root, loop devices and the
//! Debian archive. Each version is copied and *trimmed*: what its file system says is free becomes a hole. Ours and
//! the peers get these copies. They are kept for the next run, unless the appliance or the steps change.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use collective_repository::trim::free_ranges;
use rustix::fs::{FallocateFlags, fallocate};

use crate::report::say;
use crate::scene::{Scene, chain};

/// Where the builder puts the file system of a system disk.
const OFFSET: &str = "1048576";
const SCRIPT: &str = include_str!("line.sh");
/// What each version does to the one before; the first is the appliance as built.
const STEPS: [&str; 8] = [
    "apt-get update; apt-get install openssh-server python3-minimal curl rsync",
    "apt-get install gcc make libc6-dev git",
    "apt-get -t bookworm-backports upgrade",
    "apt-get -t bookworm-backports install linux-image-cloud-amd64",
    "apt-get purge 'linux-image-6.1*'; apt-get autoremove --purge",
    "apt-get install postgresql-15",
    "apt-get purge gcc make libc6-dev git; apt-get autoremove --purge",
    "apt-get install tree",
];

/// Makes the line unless an earlier run did; returns the disks, the oldest first.
pub fn make(scene: &Scene) -> Result<Vec<PathBuf>> {
    let directory = scene.directory.join("line");
    let disks: Vec<PathBuf> =
        (1..=STEPS.len() + 1).map(|number| directory.join(format!("{number}.raw"))).collect();
    let (stamp, made_of) = (directory.join("made-of"), made_of(scene));
    if std::fs::read_to_string(&stamp).is_ok_and(|text| text == made_of) {
        return Ok(disks);
    }
    scene.fresh("line")?;
    let work = directory.join("work.raw");
    copy(&scene.appliance.system, &work)?;
    trimmed_copy(&work, &disks[0])?;
    for (step, disk) in STEPS.iter().zip(&disks[1..]) {
        say(&format!("making the next version: {step}"));
        change(&work, &scene.directory.join("line-downloads"), step)?;
        trimmed_copy(&work, disk)?;
    }
    std::fs::remove_file(work)?;
    std::fs::write(stamp, made_of)?;
    Ok(disks)
}

fn made_of(scene: &Scene) -> String {
    format!("{}\n{SCRIPT}{}\n", scene.appliance.system.display(), STEPS.join("\n"))
}

fn change(disk: &Path, downloads: &Path, commands: &str) -> Result<()> {
    let made = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", SCRIPT, "line.sh"])
        .args([disk, Path::new(OFFSET), downloads, Path::new(commands)])
        .output()
        .context("unshare does not start")?;
    let said = String::from_utf8_lossy(&made.stderr);
    let last = said.lines().next_back().unwrap_or_default();
    ensure!(made.status.success(), "a version cannot be made (root, loop devices?): {last}");
    Ok(())
}

/// Copies a disk without what its file system says is free.
fn trimmed_copy(from: &Path, to: &Path) -> Result<()> {
    copy(from, to)?;
    let file = File::options().read(true).write(true).open(to)?;
    for range in free_ranges(&file, file.metadata()?.len()).map_err(chain)? {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, hole, range.offset_bytes(), range.length_bytes())?;
    }
    Ok(())
}

pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").args(["--sparse=always"]).args([from, to]).status()?;
    ensure!(copied.success(), "cannot copy {}", from.display());
    Ok(())
}
