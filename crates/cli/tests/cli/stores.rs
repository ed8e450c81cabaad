//! A server whose objects are in an S3 store, and an appliance that goes from there through a registry of containers to another server.

use std::os::unix::fs::FileExt;
use std::process::Command;

use serde_json::Value;

use crate::daemons::Daemon;
use crate::registry::{PASSWORD, Registry};
use crate::runner::{Ended, Home};
use crate::s3_server::S3Server;

/// The name and the password for a registry, as `skopeo login` writes them down.
const AUTH: &str = "YW5uOm9wZW4gc2VzYW1l";

/// Runs a verb of an administrator of the server in a directory; returns its last object.
fn ask(home: &Home, server: &str, words: &[&str]) -> Value {
    let ended = try_ask(home, server, words);
    assert_eq!(ended.code, 0, "{words:?}: {}", ended.stderr);
    ended.objects().pop().unwrap()
}

fn try_ask(home: &Home, server: &str, words: &[&str]) -> Ended {
    let socket = format!("unix:{server}/admin.sock");
    home.run(&[words, &["--server", &socket, "--json"]].concat())
}

fn serve<'a>(home: &Home, words: &[&'a str]) -> Command {
    let first: [&'a str; 3] = ["serve", "--listen", "127.0.0.1:0"];
    home.command(&[&first, words].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appliance_goes_from_s3_through_a_registry_to_another_server() {
    let store = S3Server::start().await;
    let registry = Registry::closed();
    let home = Home::new();
    let log = std::fs::File::create(home.path().join("log")).unwrap();
    let mut command = serve(&home, &["--dir", "one", "--objects", &store.place()]);
    command.envs(store.variables()).env("COLLECTIVE_LOG", "debug").stderr(log);
    let first = Daemon::start_as(command);
    let _second = Daemon::start_as(serve(&home, &["--dir", "two"]));
    let image = std::fs::File::create(home.path().join("disk.raw")).unwrap();
    image.set_len(8 << 20).unwrap();
    // A boot sector, by which a disk is told from any other file.
    image.write_all_at(&[0x55, 0xaa], 510).unwrap();
    for version in 1..=2_u8 {
        image.write_all_at(&[version; 300_000], 1 << 20).unwrap();
        let publish = ["appliance", "publish", "box", "disk.raw", "--no-record", "--keys", "keys"];
        let published = ask(&home, "one", &[&publish[..], &["--work-dir", "."]].concat());
        assert_eq!(published["version"], version);
    }
    assert!(store.files().join("repositories/owner").is_file());
    assert!(!home.path().join("one/repositories").exists());
    assert_eq!(
        ask(&home, "one", &["appliance", "verify", "box"])["damages"],
        serde_json::json!([])
    );

    let place = registry.place("shelf/box");
    let refused = try_ask(&home, "one", &["appliance", "push", "box", &place]);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("skopeo login"), "{}", refused.stderr);
    std::fs::create_dir(home.path().join(".docker")).unwrap();
    let auths = serde_json::json!({"auths": {registry.address.to_string(): {"auth": AUTH}}});
    std::fs::write(home.path().join(".docker/config.json"), auths.to_string()).unwrap();
    let pushed = ask(&home, "one", &["appliance", "push", "box", &place]);
    assert_eq!(
        (&pushed["type"], &pushed["versions"]),
        (&"pushed".into(), &serde_json::json!([1, 2]))
    );
    assert_eq!(ask(&home, "one", &["appliance", "push", "box", &place])["copied_bytes"], 0);

    let publisher = pushed["publisher"].as_str().unwrap();
    let stranger = "11".repeat(32);
    let pull = ["appliance", "pull", &place, "box", "--publisher"];
    let refused = try_ask(&home, "two", &[&pull[..], &[&stranger]].concat());
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    let pulled = ask(&home, "two", &[&pull[..], &[publisher]].concat());
    assert_eq!(pulled["versions"], serde_json::json!([1, 2]));
    assert_eq!(
        ask(&home, "two", &["appliance", "verify", "box"])["damages"],
        serde_json::json!([])
    );
    let again = ask(&home, "two", &[&pull[..], &[publisher]].concat());
    assert_eq!(again["versions"], serde_json::json!([]));

    assert_eq!(first.stop(), 0);
    let log = std::fs::read_to_string(home.path().join("log")).unwrap();
    assert!(log.contains("published"), "{log}");
    let secrets = store.variables();
    for secret in [&secrets[0].1, &secrets[1].1, PASSWORD, AUTH] {
        assert!(!log.contains(secret), "`{secret}` was logged");
    }
}

#[test]
fn a_place_for_objects_that_is_none_is_refused_and_not_repeated() {
    let home = Home::new();
    let ended = home.run(&["serve", "--dir", "s", "--objects", "s3://me:hunter2@bucket/x"]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(ended.stderr.contains("s3://bucket/prefix"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
}
