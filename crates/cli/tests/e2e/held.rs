//! A guest that outlives its daemon, when the next one cannot serve its disks: shown, explained, and not lost.

use std::time::{Duration, Instant};

use super::world::{World, refusal, signal};

/// Longer than anybody should wait who asks or pulls the power cord; a silent monitor is waited for longer.
const AT_ONCE: Duration = Duration::from_secs(8);

#[test]
fn a_guest_that_nobody_can_serve_is_shown_can_be_ended_and_goes_on_after_a_log_in() {
    let mut world = World::without_appliance();
    world.publish_without_trace();
    world.computer("a");
    world.start("a");
    world.write("a", "page", "kept");
    let guest = world.guest_pid("a").unwrap();

    // As after a daemon that died while people were logged out of the runtime directory.
    let without_session = |world: &mut World| {
        world.stage.kill_daemon("a").unwrap();
        std::fs::remove_file(world.stage.runtime("a").join("sessions/ann.json")).unwrap();
        world.stage.start_again("a").unwrap();
        world.wait_for("a", "held", |status| {
            let reason = status["reason"].as_str().unwrap_or_default();
            status["state"] == "paused" && reason.contains("after the next log-in")
        });
    };
    without_session(&mut world);
    let lines = world.stage.try_on("a", &["status"]).unwrap().lines;
    assert!(lines.iter().any(|line| line["name"] == "tiny" && line["state"] == "paused"));
    let (code, said) = refusal(&world.stage.try_on("a", &["stop", "tiny"]).unwrap());
    assert_eq!(code, 6, "{said}");
    for part in ["collective login ann", "--force", "after the next log-in"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    world.log_in("a");
    world.wait_for("a", "running", |status| status["state"] == "running");
    assert_eq!(world.read("a", "page"), "kept");

    // With a session, but neither a server nor a copy of what it says.
    world.stage.kill_daemon("a").unwrap();
    world.stage.kill_daemon("server").unwrap();
    std::fs::remove_dir_all(world.path("a/replicas")).unwrap();
    world.stage.start_again("a").unwrap();
    let status = world.wait_for("a", "held", |status| {
        status["state"] == "paused" && status["reason"].as_str().unwrap().contains("cannot")
    });
    let (code, said) = refusal(&world.stage.try_on("a", &["stop", "tiny"]).unwrap());
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("--force"), "{said} {status}");
    world.server_again(&[]);
    world.wait_for("a", "running", |status| status["state"] == "running");
    assert_eq!(world.read("a", "page"), "kept");
    assert_eq!(world.guest_pid("a"), Some(guest), "it was started anew");

    without_session(&mut world);
    world.stage.on("a", &["stop", "tiny", "--force"]).unwrap();
    assert_eq!(world.guest_pid("a"), None);
    world.log_in("a");
    world.start("a");
    assert_eq!(world.read("a", "page"), "kept");
}

#[test]
fn a_guest_whose_monitor_is_silent_keeps_nobody_waiting() {
    let mut world = World::without_appliance();
    world.publish_without_trace();
    world.computer("a");
    world.start("a");
    world.write("a", "page", "kept");
    let guest = world.guest_pid("a").unwrap();
    let silent = |world: &mut World| {
        world.stage.kill_daemon("a").unwrap();
        signal(guest, "STOP");
        world.stage.start_again("a").unwrap();
        let begin = Instant::now();
        world.wait_for("a", "silent", |status| {
            let reason = status["reason"].as_str().unwrap_or_default();
            status["state"] == "paused" && reason.contains("monitor does not answer yet")
        });
        assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    };
    silent(&mut world);
    std::thread::scope(|scope| {
        // What needs the guest waits for it.
        let reading = scope.spawn(|| world.read("a", "page"));
        signal(guest, "CONT");
        assert_eq!(reading.join().unwrap(), "kept");
    });
    assert_eq!(world.status("a")["state"], "running");

    silent(&mut world);
    let begin = Instant::now();
    world.stage.on("a", &["stop", "tiny", "--force"]).unwrap();
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    assert_eq!(world.status("a")["state"], "off");
}
