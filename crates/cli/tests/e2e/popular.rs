//! What is read on one computer comes first on the next, and nobody is told of it by who does not want that.

use std::process::Command;
use std::time::Instant;

use collective_testing::Random;
use serde_json::Value;

use super::world::{LIMIT, World};

/// Bytes of the application, which do not compress.
const APPLICATION_BYTES: u64 = 3 << 20;
/// Reads what no boot does.
const APPLICATION: &str = "cat /application > /dev/null";

#[test]
fn what_is_read_on_one_computer_is_fetched_first_on_the_next_unless_nothing_is_reported() {
    let mut world = World::without_appliance();
    let published = publish_with_application(&mut world);
    world.computer("a");
    world.start("a");
    world.guest("a", APPLICATION);
    let foretold = world.status("a")["foretold"].clone();
    let bytes = |name: &str| foretold[name].as_u64().unwrap();
    let boot_bytes = bytes("read_bytes");
    assert!(boot_bytes > 1 << 20, "{foretold}");
    // The same version was started once before it was published.
    assert!(10 * bytes("foretold_bytes") > 9 * boot_bytes, "{foretold}");
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
    let first: f64 = first.split_once(" MB came").unwrap().0.parse().unwrap();
    assert!(first * 1e6 > APPLICATION_BYTES as f64, "{first}");

    // Another computer, which would count: it says nothing, and has nothing to say later.
    world.stage.start_host_with("c", &["--no-report"]).unwrap();
    world.log_in("c");
    world.wait_for_host("c", "without reports", |host| host["reports"] == false);
    world.start("c");
    // What everybody read besides the boot comes by itself, before this guest reads it.
    world.wait_for("c", "here ahead", |status| {
        status["fetched"]["bytes"].as_u64() >= Some(boot_bytes + APPLICATION_BYTES / 2)
    });
    world.guest("c", APPLICATION);
    world.stop("c");
    assert!(!world.path("c/users/ann/tiny/reports.json").exists());
    world.stage.stop_daemon("c").unwrap();
    assert_eq!(reported(&world), reads);

    // An application that is named is foretold without anybody having read it.
    let named = world.publish_again(&["--also-run", APPLICATION]);
    let recorded = |published: &Value| published["recorded_bytes"].as_u64().unwrap();
    assert!(recorded(&named) >= recorded(&published) + APPLICATION_BYTES * 9 / 10, "{named}");
}

/// Publishes `tiny` with a file that its boot does not read.
fn publish_with_application(world: &mut World) -> Value {
    let recipe = world.path("recipe");
    let copied = Command::new("cp").arg("-a").arg(super::world::recipe()).arg(&recipe).status();
    assert!(copied.unwrap().success());
    let mut bytes = vec![0; APPLICATION_BYTES as usize];
    Random::new(7).fill(&mut bytes);
    std::fs::write(recipe.join("files/application"), bytes).unwrap();
    let script = recipe.join("customize.sh");
    let customize = std::fs::read_to_string(&script).unwrap();
    std::fs::write(script, customize + "$b cp /application /system/application\n").unwrap();
    world.publish_recipe(&recipe)
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
