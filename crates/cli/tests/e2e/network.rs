//! The network away: a guest that boots waits, says why, and goes on.

use super::world::World;

#[test]
fn a_guest_that_boots_without_its_server_pauses_says_why_and_goes_on() {
    let mut world = World::without_appliance();
    world.publish_without_trace();
    world.computer("a");
    let operation = world.stage.on("a", &["start", "tiny", "--no-wait"]).unwrap();
    assert!(operation["id"].is_string(), "{operation}");
    // The guest is past its first sectors, and far from up.
    world.wait_for("a", "reading", |status| status["fetched"]["bytes"].as_u64() > Some(500_000));
    let address = world.server.url.strip_prefix("https://").unwrap().to_owned();
    world.stage.kill_daemon("server").unwrap();

    let status = world.wait_for("a", "paused", |status| status["state"] == "paused");
    let reason = status["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("server") || reason.contains("reach"), "{status}");

    world.stage.start_server_on(&address).unwrap();
    world.wait_for("a", "running", |status| status["state"] == "running");
    assert_eq!(world.guest("a", "cat /etc/appliance-version"), "1");
}

#[test]
fn what_is_written_without_a_server_is_published_when_it_is_back() {
    let mut world = World::new();
    world.computer("a");
    world.start("a");
    let address = world.server.url.strip_prefix("https://").unwrap().to_owned();
    // What the next lines need of the system disk is in the guest's memory before the server goes.
    world.write("a", "page", "online");
    world.stage.kill_daemon("server").unwrap();
    world.write("a", "page", "offline");
    world.stage.on("a", &["stop", "tiny", "--force"]).unwrap();
    world.wait_for("a", "off with a backlog", |status| {
        status["state"] == "off" && status["user_disk"]["backlog_bytes"].as_u64() > Some(0)
    });
    world.stage.start_server_on(&address).unwrap();
    world.stage.wait_until_safe("a", "tiny", super::world::LIMIT).unwrap();
    world.computer("b");
    world.start("b");
    assert_eq!(world.read("b", "page"), "offline");
}

#[test]
fn what_is_held_follows_what_is_published_and_starts_without_the_server() {
    let mut world = World::new();
    world.computer("a");
    world.start("a");
    world.write("a", "page", "from-elsewhere");
    world.stop("a");
    // This computer never ran anything.
    world.computer("b");
    let held = world.stage.on("b", &["hold", "tiny"]).unwrap();
    assert_eq!(held["result"]["complete"], 1, "{held}");
    world.publish_tiny("2");
    // Somebody comes: what is new is looked for.
    let password = world.text("password");
    world.stage.on("b", &["login", "ann", "--password-file", &password]).unwrap();
    world.wait_for("b", "held", |status| status["held"]["complete"] == 2);
    world.stage.kill_daemon("server").unwrap();
    let started = world.stage.on("b", &["start", "tiny", "--break-lock"]).unwrap();
    assert_eq!(started["result"]["version"], 2, "{started}");
    assert_eq!(world.read("b", "page"), "from-elsewhere");
    assert_eq!(world.guest("b", "cat /etc/appliance-version"), "2");
    world.stage.on("b", &["hold", "tiny", "--release"]).unwrap();
    assert!(world.status("b")["held"].is_null());
}
