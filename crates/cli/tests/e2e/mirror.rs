//! A mirror as a school has it: filled by the command, shown by nginx, used by hosts, and not trusted.

use std::net::TcpListener;
use std::path::Path;

use collective_testing::Nginx;
use serde_json::Value;

use super::world::{World, refusal};

#[test]
fn a_guest_starts_from_a_mirror_and_one_that_lies_is_named_and_left_out() {
    let mut world = World::new();
    let (shown, directory) = (world.path("www/appliances"), world.text("www/appliances"));
    let mirror = ["appliance", "mirror", "tiny", &directory];
    let first = world.stage.admin(&mirror).unwrap();
    assert_eq!(first["versions"], serde_json::json!([1]), "{first}");
    assert!(first["copied_bytes"].as_u64() > Some(1_000_000), "{first}");
    let again = world.stage.admin(&mirror).unwrap();
    assert_eq!((&again["versions"], &again["copied_bytes"]), (&serde_json::json!([]), &0.into()));

    let web = Nginx::serve(&world.path("www")).unwrap();
    let url = format!("http://{}/appliances/", web.address());
    // Takes whoever calls, and never answers.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let away = format!("http://{}", deaf.local_addr().unwrap());
    world.stage.start_host_with("a", &["--mirror", &away, "--mirror", &url]).unwrap();
    world.log_in("a");
    world.start("a");
    assert_eq!(world.guest("a", "cat /etc/appliance-version"), "1");
    let [server, silent, mirror] = sources(&world, "a").try_into().unwrap();
    assert_eq!(mirror["mirror"], url.trim_end_matches('/'));
    let bytes = |source: &Value| source["fetched_bytes"].as_u64().unwrap();
    assert!(bytes(&mirror) > bytes(&server), "{server} {mirror}");
    let reason = silent["dropped"]["reason"].as_str().unwrap();
    assert!(reason.contains("slower") && bytes(&silent) == 0, "{silent}");

    // The mirror is damaged all over; somebody else brings all of the appliance here.
    damage(&shown);
    world.stage.start_host_with("b", &["--mirror", &url]).unwrap();
    world.log_in("b");
    world.stage.on("b", &["hold", "tiny"]).unwrap();
    let [server, mirror] = sources(&world, "b").try_into().unwrap();
    assert!(bytes(&mirror) == 0 && bytes(&server) > 1_000_000, "{server} {mirror}");
    let reason = mirror["dropped"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("it gave wrong bytes"), "{reason}");
    assert!(mirror["dropped"]["since"].is_i64() && mirror["dropped"]["until"].is_i64());
    let report = world.stage.on("b", &["cache", "verify"]).unwrap();
    assert_eq!(report["result"]["damaged"], 0, "{report}");
}

#[test]
fn a_mirror_that_is_no_url_is_refused_and_its_secret_not_repeated() {
    let world = World::without_appliance();
    let dir = world.text("host");
    for (url, why) in [
        ("/srv/mirror", "http://mirror.example/appliances"),
        ("ftp://mirror", "begin with http"),
        ("http://ann:barley@mirror", "user or password"),
    ] {
        let words = ["host", "--dir", &dir, "--runtime-dir", &dir, "--mirror", url];
        let (code, said) = refusal(&world.stage.run(&words).unwrap());
        assert!(code == 2 && said.contains(why), "{url}: {code} {said}");
    }
}

/// What a computer says of its server and its mirrors.
fn sources(world: &World, host: &str) -> Vec<Value> {
    let status = world.wait_for_host(host, "here", |_| true);
    status["sources"].as_array().unwrap().clone()
}

/// Turns a bit of every 4 KiB of every pack.
fn damage(directory: &Path) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damage(&path);
        } else if path.parent().and_then(Path::parent).unwrap().ends_with("packs") {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.iter_mut().step_by(4096).for_each(|byte| *byte ^= 1);
            std::fs::write(&path, bytes).unwrap();
        }
    }
}
