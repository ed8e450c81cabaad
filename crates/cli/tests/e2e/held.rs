//! A guest that outlives its daemon, when the next one cannot serve its disks: shown, explained, and not lost.

use super::world::{World, refusal};

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
