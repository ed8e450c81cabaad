//! Certificates that end soon: renewed while the server is there; and when they are over, nothing is lost and the way
//! back is said.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::world::{World, refusal};

const LIFE_MS: i64 = 9_000;
const SHORT_LIFE: [&str; 2] = ["--certificate-life", "9s"];

fn ends(certificate: &Value) -> i64 {
    certificate["ends"].as_i64().unwrap_or_default()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

fn is_short(certificate: &Value) -> bool {
    ends(certificate) > 0 && ends(certificate) <= now() + LIFE_MS
}

/// Whether it is over for everybody: a certificate is good until the end of its last second.
fn is_over(certificate: &Value) -> bool {
    ends(certificate) > 0 && ends(certificate) + 1000 <= now()
}

/// The `doctor`'s line about a certificate that has `part` in it.
fn diagnosis(world: &World, part: &str) -> Value {
    let found = world.stage.try_on("a", &["doctor"]).unwrap().lines;
    let line = found.iter().find(|line| {
        line["check"] == "certificate" && line["text"].as_str().unwrap().contains(part)
    });
    line.unwrap_or_else(|| panic!("nothing about {part} in {found:?}")).clone()
}

fn log_in_again(world: &World) {
    let password = world.text("password");
    world.stage.on("a", &["login", "ann", "--password-file", &password]).unwrap();
}

#[test]
fn a_log_in_is_renewed_and_one_that_is_over_loses_nothing_until_the_next() {
    let mut world = World::without_appliance();
    world.publish_without_trace();
    world.computer("a");
    world.start("a");
    // The machine runs on under the certificate of another log-in.
    world.server_again(&SHORT_LIFE);
    log_in_again(&world);
    let session = |host: &Value| host["sessions"][0]["certificate"].clone();
    let first = ends(&session(&world.wait_for_host("a", "short", |host| is_short(&session(host)))));
    world.wait_for_host("a", "renewed twice", |host| ends(&session(host)) > first + LIFE_MS);
    world.write("a", "page", "renewed");
    world.stage.on("a", &["publish", "tiny"]).unwrap();

    world.stage.kill_daemon("server").unwrap();
    world.wait_for_host("a", "over", |host| is_over(&session(host)));
    let found = diagnosis(&world, "log-in of ann");
    assert_eq!(found["level"], "failed", "{found}");
    assert!(found["hint"].as_str().unwrap().contains("collective login ann"), "{found}");
    world.server_again(&[]);
    world.write("a", "page", "over");
    let (code, said) = refusal(&world.stage.try_on("a", &["publish", "tiny"]).unwrap());
    assert_eq!(code, 6, "{said}");
    for part in ["the log-in of `ann` on this computer has ended", "nothing is lost"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    world.wait_for("a", "told", |status| {
        let problem = status["user_disk"]["problem"].as_str().unwrap_or_default();
        status["state"] == "running" && problem.contains("the log-in of `ann`")
    });

    log_in_again(&world);
    world.stage.on("a", &["publish", "tiny"]).unwrap();
    // What was never read before comes over the way of the new log-in.
    world.guest("a", "dd if=/dev/vda of=/dev/null bs=1M");
    assert_eq!(world.read("a", "page"), "over");
    world.stop("a");
}

#[test]
fn a_hosts_own_certificate_is_renewed_and_when_it_is_over_people_still_log_in() {
    let mut world = World::without_appliance();
    world.server_again(&SHORT_LIFE);
    world.computer("a");
    let own = |host: &Value| host["certificate"].clone();
    let first = ends(&own(&world.wait_for_host("a", "short", |host| is_short(&own(host)))));
    world.wait_for_host("a", "renewed twice", |host| ends(&own(host)) > first + LIFE_MS);
    // Whatever is renewed is there after a restart of the daemon.
    world.stage.kill_daemon("a").unwrap();
    world.stage.start_again("a").unwrap();
    assert_eq!(diagnosis(&world, "this computer")["level"], "ok");

    world.stage.kill_daemon("server").unwrap();
    world.wait_for_host("a", "over", |host| is_over(&own(host)));
    let found = diagnosis(&world, "this computer");
    assert_eq!(found["level"], "failed", "{found}");
    assert!(found["hint"].as_str().unwrap().contains("collective login"), "{found}");
    world.server_again(&[]);
    log_in_again(&world);
    let host = world.wait_for_host("a", "known again", |host| !is_over(&own(host)));
    assert_eq!(host["sessions"][0]["online"], true, "{host}");
}
