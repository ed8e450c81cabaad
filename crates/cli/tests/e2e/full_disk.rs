//! Full disks, on the host and on the server: told by name, nothing half there, and all goes on once there is room.
//!
//! The small disks are tmpfs mounts in the test's own directory, so these tests need root, as the appliances' build does.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::world::{World, refusal};

/// A small file system, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path, megabytes: u32) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let size = format!("size={megabytes}m,mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).status();
        assert!(mounted.unwrap().success(), "this test needs root");
        Self(path.to_owned())
    }

    /// Takes all the room there is, but for `left` bytes.
    fn fill(&self, left: u64) -> PathBuf {
        let ballast = self.0.join("ballast");
        let free = rustix::fs::statvfs(&self.0).unwrap();
        let free = free.f_bavail * free.f_frsize;
        std::fs::write(&ballast, vec![1_u8; free.saturating_sub(left) as usize]).unwrap();
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_server_refuses_a_publication_and_takes_it_when_there_is_room() {
    let directory = tempfile::Builder::new().prefix("ce2e").tempdir().unwrap();
    let disk = SmallDisk::mount(&directory.path().join("server"), 200);
    let mut world = World::within(directory);
    world.publish_tiny("1");
    world.stage.admin(&["grant", "add", "tiny", "staff"]).unwrap();
    world.computer("a");
    world.start("a");
    world.guest("a", "dd if=/dev/urandom of=/home/big bs=1M count=8; sync");
    let ballast = disk.fill(1 << 20);
    let (code, said) = refusal(&world.stage.try_on("a", &["publish", "tiny"]).unwrap());
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("space") || said.contains("full"), "{said}");
    std::fs::remove_file(ballast).unwrap();
    let sum = world.guest("a", "md5sum < /home/big");
    world.stop("a");
    world.computer("b");
    world.start("b");
    assert_eq!(world.guest("b", "md5sum < /home/big"), sum);
}

#[test]
fn a_full_host_says_how_much_room_a_start_needs_and_starts_when_it_is_there() {
    let mut world = World::new();
    let disk = SmallDisk::mount(&world.path("a"), 400);
    world.computer("a");
    let ballast = disk.fill(256 << 10);
    let (code, said) = refusal(&world.stage.try_on("a", &["start", "tiny"]).unwrap());
    assert_eq!(code, 6, "{said}");
    for part in [world.path("a").to_str().unwrap(), "are needed", "make room"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert_eq!(world.status("a")["state"], "off");
    std::fs::remove_file(ballast).unwrap();
    world.start("a");
    world.write("a", "page", "room-again");
    world.stop("a");
    drop(world);
    drop(disk);
}

#[test]
fn a_guest_whose_hosts_disk_fills_up_waits_for_room_and_loses_nothing() {
    const LINES: &str = "yes nothing-is-lost | head -c 16777216";
    let mut world = World::without_appliance();
    world.publish_without_trace();
    let disk = SmallDisk::mount(&world.path("a"), 400);
    world.computer("a");
    world.start("a");
    world.write("a", "page", "before");
    let ballast = disk.fill(4 << 20);
    let line = format!("{LINES} > /home/big; sync; echo written");
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| world.guest("a", &line));
        let status = world.wait_for("a", "paused", |status| status["state"] == "paused");
        let reason = status["reason"].as_str().unwrap();
        assert!(reason.contains("is full: make room"), "{reason}");
        assert!(reason.contains(world.path("a").to_str().unwrap()), "{reason}");
        std::fs::remove_file(&ballast).unwrap();
        let status = world.wait_for("a", "running", |status| status["state"] == "running");
        assert!(status["reason"].is_null(), "{status}");
        assert_eq!(writing.join().unwrap(), "written");
    });
    world.stop("a");
    world.computer("b");
    world.start("b");
    assert_eq!(world.read("b", "page"), "before");
    assert_eq!(world.guest("b", &format!("{LINES} | cmp - /home/big && echo same")), "same");
    drop(world);
    drop(disk);
}
