//! The daemons as a script runs them: a line when they are ready, a clean end, and what is wrong said in between.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::runner::Home;

/// A daemon that has said that it is ready; killed when dropped.
struct Daemon {
    child: Child,
    facts: Value,
}

impl Daemon {
    fn start(home: &Home, arguments: &[&str]) -> Self {
        let mut child =
            home.command(arguments).arg("--json").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let facts = serde_json::from_str(&line).unwrap();
        Self { child, facts }
    }

    /// Ends it as a service manager does, and returns its exit code.
    fn stop(mut self) -> i32 {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It is gone already where the test stopped it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn host(home: &Home) -> Daemon {
    Daemon::start(home, &["host", "--dir", "h", "--runtime-dir", "r", "--ready-file", "ready"])
}

#[test]
fn a_host_says_when_it_is_ready_and_ends_cleanly() {
    let home = Home::new();
    let daemon = host(&home);
    assert_eq!(daemon.facts["type"], "ready");
    let ready = std::fs::read_to_string(home.path().join("ready")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&ready).unwrap()["pid"], daemon.facts["pid"]);
    let status = home.run(&["--host", "r/host.sock", "status", "--json"]);
    let host = status.objects().pop().unwrap();
    assert_eq!(
        (status.code, &host["type"], &host["pid"]),
        (0, &"host".into(), &daemon.facts["pid"])
    );
    assert_eq!(daemon.stop(), 0);
    assert!(!home.path().join("ready").exists() && !home.path().join("r/host.sock").exists());
}

#[test]
fn a_second_daemon_on_one_directory_is_refused_and_names_it() {
    let home = Home::new();
    let _first = host(&home);
    let second = home.run(&["host", "--dir", "h", "--runtime-dir", "r2"]);
    assert_eq!(second.code, 5, "{}", second.stderr);
    assert!(second.stderr.contains("error: ") && second.stderr.contains('h'), "{}", second.stderr);
}

#[test]
fn before_a_log_in_a_host_says_what_is_missing() {
    let home = Home::new();
    let _daemon = host(&home);
    let on = |line: &str| {
        let words: Vec<&str> =
            ["--host", "r/host.sock"].into_iter().chain(line.split(' ')).collect();
        home.run(&words)
    };
    for line in ["list", "start debian", "versions debian", "undo debian --yes", "user list"] {
        let ended = on(line);
        assert_eq!(ended.code, 3, "{line}: {}", ended.stderr);
        assert!(ended.stderr.contains("hint: "), "{line}: {}", ended.stderr);
    }
    let ended = on("login ann");
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(ended.stderr.contains("not tied to a server"), "{}", ended.stderr);
    let ended = on("join https://127.0.0.1:1");
    assert_eq!(ended.code, 6, "{}", ended.stderr);
    assert!(ended.stderr.contains("127.0.0.1:1"), "{}", ended.stderr);
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let home = Home::new();
    std::fs::write(home.path().join("file"), "").unwrap();
    let ended = home.run(&["host", "--dir", "file/h", "--runtime-dir", "r"]);
    assert_ne!(ended.code, 0);
    assert!(ended.stderr.contains("file/h"), "{}", ended.stderr);
    let ended = home.run(&["host", "--dir", "h", "--runtime-dir", "r", "--log", "no=such=filter"]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
}
