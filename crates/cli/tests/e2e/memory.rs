//! Memory for one guest, and two who want it.

use super::world::World;

#[test]
fn who_finds_no_memory_waits_says_who_has_it_and_starts_when_it_is_free() {
    let mut world = World::without_appliance();
    world.publish_without_trace();
    world.publish_without_trace_as("other");
    world.stage.start_host_with("a", &["--memory", "200MiB"]).unwrap();
    world.log_in("a");
    // It has its memory before its guest is up.
    world.stage.on("a", &["start", "tiny", "--no-wait"]).unwrap();
    world.wait_for("a", "launched", |status| status["running"] == 1);

    world.stage.on("a", &["start", "other", "--no-wait"]).unwrap();
    let status =
        world.wait_for_appliance("a", "other", "queued", |status| status["reason"].is_string());
    assert_eq!(status["state"], "queued");
    let reason = "waits for 128 MiB of memory: of 200 MiB `tiny` of ann has 128 MiB";
    assert_eq!(status["reason"], reason);
    let lines = world.stage.try_on("a", &["status"]).unwrap().lines;
    assert!(lines.iter().any(|line| line["stage"] == reason), "{lines:?}");

    world.stage.on("a", &["stop", "tiny", "--force"]).unwrap();
    let is_up = |status: &serde_json::Value| status["state"] == "running";
    let status = world.wait_for_appliance("a", "other", "up", is_up);
    assert!(status["reason"].is_null(), "{status}");
    assert_eq!(world.status("a")["state"], "off");
    world.stage.on("a", &["stop", "other", "--force"]).unwrap();
}
