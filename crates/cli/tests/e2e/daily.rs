//! The main job, with the small appliance: what the demo shows with Debian.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use super::world::{World, signal};

#[test]
fn a_person_finds_their_disk_on_the_next_computer_and_the_published_system_at_every_boot() {
    let mut world = World::new();
    world.computer("a");
    let listed = world.stage.on("a", &["list"]).unwrap();
    assert_eq!((&listed["name"], &listed["state"]), (&"tiny".into(), &"off".into()));

    let started = world.start("a");
    assert_eq!(started["version"], 1);
    assert!(started["fetched_share"].as_f64().unwrap() < 0.9, "{started}");
    world.write("a", "diary", "dear");
    world.guest("a", "echo broken > /etc/motd; sync");
    world.stop("a");

    world.publish_tiny("2");
    world.computer("b");
    assert_eq!(world.start("b")["version"], 2);
    assert_eq!(world.guest("b", "cat /etc/appliance-version"), "2");
    assert_eq!(world.read("b", "diary"), "dear");
    assert_eq!(world.guest("b", "cat /etc/motd 2>/dev/null || echo -"), "-");
    world.stop("b");
}

#[test]
fn an_undo_goes_back_and_an_undo_of_it_forward_again() {
    let mut world = World::new();
    world.computer("a");
    world.start("a");
    world.write("a", "page", "one");
    let one = world.stop("a");
    world.start("a");
    world.write("a", "page", "two");
    let two = world.stop("a");
    assert!(two > one);

    world.stage.on("a", &["undo", "tiny", "--to", &one.to_string(), "--yes"]).unwrap();
    world.start("a");
    assert_eq!(world.read("a", "page"), "one");
    world.stop("a");
    world.stage.on("a", &["undo", "tiny", "--to", &two.to_string(), "--yes"]).unwrap();
    world.start("a");
    assert_eq!(world.read("a", "page"), "two");
    let head = world.stop("a");
    assert!(head >= two + 2, "undo rewrote history: {head}");
}

#[test]
fn a_running_guest_is_backed_up_without_noticing() {
    let mut world = World::new();
    world.stage.start_host_with("a", &["--publish-minutes", "1"]).unwrap();
    world.log_in("a");
    world.start("a");
    for round in 0..3 {
        world.write("a", "page", &round.to_string());
        world.stage.on("a", &["publish", "tiny"]).unwrap();
        assert_eq!(world.read("a", "page"), round.to_string());
    }
    let versions = world.status("a")["user_disk"]["version"].as_u64().unwrap();
    assert!(versions >= 4, "{versions}");
    world.write("a", "page", "by the clock");
    let backed_up = |status: &serde_json::Value| {
        let disk = &status["user_disk"];
        disk["version"].as_u64().is_some_and(|version| version > versions)
            && disk["backlog_bytes"] == 0
    };
    let status = world.wait_for("a", "backed up by itself", backed_up);
    assert_eq!(status["state"], "running");
    let versions = status["user_disk"]["version"].as_u64().unwrap();
    world.write("a", "page", "2");
    // What runs is asked for its backup: this does not wait for the next one's time.
    world.stage.on("a", &["status", "tiny", "--wait"]).unwrap();
    let status = world.status("a");
    assert!(status["user_disk"]["version"].as_u64().unwrap() > versions, "{status}");
    let screen = status["screen"].as_str().unwrap();
    assert!(std::path::Path::new(screen).exists(), "{screen}");
    let nothing = world.stage.try_on("a", &["exec", "tiny", "--", "nosuchcmd"]).unwrap();
    assert_eq!(nothing.code, 127);
    let said = nothing.last()["stderr"].to_string();
    assert!(said.contains("there is no program `nosuchcmd` in tiny"), "{said}");
    // What was published while it ran is what another computer gets. A stop waits for the last of it.
    world.stage.on("a", &["stop", "tiny"]).unwrap();
    let status = world.status("a");
    assert_eq!(status["user_disk"]["backlog_bytes"], 0, "{status}");
    world.computer("b");
    world.start("b");
    assert_eq!(world.read("b", "page"), "2");
}

#[test]
fn an_end_that_nobody_wanted_is_explained_and_one_from_inside_is_not_a_fault() {
    let mut world = World::new();
    world.computer("a");
    world.start("a");
    signal(world.guest_pid("a").unwrap(), "KILL");
    let is_off = |status: &serde_json::Value| status["state"] == "off";
    let status = world.wait_for("a", "off", is_off);
    assert!(status["reason"].as_str().is_some_and(|why| why.contains("QEMU ended")), "{status}");
    world.start("a");
    world.stage.try_on("a", &["exec", "tiny", "--", "/sbin/shutdown"]).unwrap();
    let status = world.wait_for("a", "off", is_off);
    assert!(status["reason"].is_null(), "{status}");
}

#[test]
fn a_reset_keeps_the_user_disk_and_a_delete_destroys_it() {
    let mut world = World::new();
    world.computer("a");
    world.start("a");
    world.write("a", "page", "kept");
    world.stop("a");
    world.stage.on("a", &["reset", "tiny"]).unwrap();
    world.start("a");
    assert_eq!(world.read("a", "page"), "kept");
    world.stop("a");
    world.stage.on("a", &["delete", "tiny", "--yes"]).unwrap();
    world.start("a");
    assert_eq!(world.read("a", "page"), "-");
}

#[test]
fn a_start_that_is_cancelled_ends_as_one_that_was_interrupted() {
    let mut world = World::new();
    world.computer("a");
    let mut child = Command::new(world.stage.command())
        .arg("--host")
        .arg(world.stage.host_socket("a"))
        .args(["start", "tiny"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut hear = |said: &str| {
        assert!(lines.any(|line| line.unwrap().contains(said)), "never said: {said}");
    };
    for said in ["start tiny", "Press Ctrl-C again"] {
        hear(said);
        signal(child.id(), "INT");
    }
    hear("is cancelled");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    world.wait_for("a", "off", |status| status["state"] == "off");
}
