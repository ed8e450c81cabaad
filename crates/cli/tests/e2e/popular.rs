//! What is read on one computer comes first on the next, and nobody is told of it by who does not want that.

use std::time::Instant;

use serde_json::Value;

use super::world::{LIMIT, World};

/// Reads what no boot does: an application, as far as anybody's computer can tell.
const APPLICATION: &str = "cat /vmlinuz /bin/busybox /lib/x86_64-linux-gnu/* > /dev/null";

#[test]
fn what_is_read_on_one_computer_is_fetched_first_on_the_next_unless_nothing_is_reported() {
    let mut world = World::new();
    world.computer("a");
    world.start("a");
    world.guest("a", APPLICATION);
    let foretold = world.status("a")["foretold"].clone();
    let bytes = |name: &str| foretold[name].as_u64().unwrap();
    assert!(bytes("read_bytes") > 1 << 20, "{foretold}");
    // The same version was started once before it was published.
    assert!(10 * bytes("foretold_bytes") > 9 * bytes("read_bytes"), "{foretold}");
    world.stop("a");
    let reads = reported(&world);
    assert_eq!(
        (&reads["starts"], &reads["foretold_bytes"]),
        (&1.into(), &foretold["foretold_bytes"])
    );

    world.computer("b");
    world.stage.on("b", &["hold", "tiny"]).unwrap();
    let log = std::fs::read_to_string(world.path("b.log")).unwrap();
    let line = "what is read most of version 1 is here, ";
    let first = log.lines().find_map(|it| it.split_once(line)).map(|it| it.1).unwrap();
    assert!(!first.starts_with("0 B"), "{first}");

    // Another computer, which would count: it says nothing, and has nothing to say later.
    world.stage.start_host_with("c", &["--no-report"]).unwrap();
    world.log_in("c");
    world.wait_for_host("c", "without reports", |host| host["reports"] == false);
    world.start("c");
    world.guest("c", APPLICATION);
    world.stop("c");
    assert!(!world.path("c/users/ann/tiny/reports.json").exists());
    world.stage.stop_daemon("c").unwrap();
    assert_eq!(reported(&world), reads);
}

/// Waits until a start and the use after it were reported; returns what the administrator sees of version 1.
fn reported(world: &World) -> Value {
    let limit = Instant::now() + LIMIT;
    loop {
        let shown = world.stage.admin(&["appliance", "show", "tiny"]).unwrap();
        if shown["reads"]["uses"] == 1 {
            return shown["reads"].clone();
        }
        assert!(Instant::now() < limit, "nobody reported: {shown}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
