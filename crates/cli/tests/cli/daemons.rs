//! The daemons as a script runs them: a line when they are ready, a clean end, and what is wrong said in between.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::runner::Home;

/// A daemon that has said that it is ready; killed when dropped.
pub struct Daemon {
    child: Child,
    pub facts: Value,
}

impl Daemon {
    pub fn start(home: &Home, arguments: &[&str]) -> Self {
        Self::start_as(home.command(arguments))
    }

    pub fn start_as(mut command: Command) -> Self {
        let mut child = command.arg("--json").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let facts = serde_json::from_str(&line).unwrap();
        Self { child, facts }
    }

    /// Ends it as a service manager does, and returns its exit code.
    pub fn stop(mut self) -> i32 {
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

pub fn host(home: &Home) -> Daemon {
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
fn the_runtime_directory_of_the_environment_is_where_every_verb_looks() {
    let home = Home::new();
    let _daemon = host(&home);
    for verb in ["status", "doctor"] {
        let ended = home
            .command(&[verb, "--json"])
            .env_remove("COLLECTIVE_HOST")
            .env("COLLECTIVE_RUNTIME_DIR", "r")
            .output()
            .unwrap();
        let said = String::from_utf8(ended.stdout).unwrap();
        assert!(!said.contains("no host daemon"), "{verb}: {said}");
    }
}

#[test]
fn a_server_on_a_port_in_use_says_what_to_choose() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = home.run(&["serve", "--dir", "s", "--listen", &address]);
    assert_eq!(ended.code, 5, "{}", ended.stderr);
    for said in [address.as_str(), "hint: ", "--listen"] {
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
    }
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

#[test]
fn a_server_is_administrated_on_its_own_socket() {
    let home = Home::new();
    std::fs::write(home.path().join("password"), "correct horse\n").unwrap();
    let server = Daemon::start(&home, &["serve", "--dir", "s", "--listen", "127.0.0.1:0"]);
    assert!(server.facts["url"].as_str().unwrap().starts_with("https://127.0.0.1:"));
    let on = |line: &str| {
        let words: Vec<&str> = ["--server", "unix:s/admin.sock", "--json"]
            .into_iter()
            .chain(line.split(' '))
            .collect();
        home.run(&words)
    };
    assert_eq!(on("group add staff").code, 0);
    let added = on("user add ann --group staff --password-file password");
    let user = added.objects().pop().unwrap();
    assert_eq!((added.code, &user["name"]), (0, &"ann".into()), "{}", added.stderr);
    assert!(user["recovery_key"].is_string(), "{user}");
    assert_eq!(on("user add ann --password-file password").code, 5);
    assert_eq!(on("user add bob --group nonesuch --password-file password").code, 4);
    let missing = |line: &str, said: &str| {
        let ended = on(line);
        assert_eq!(ended.code, 4, "{line}: {}", ended.stderr);
        assert!(ended.stderr.contains(said), "{line}: {}", ended.stderr);
    };
    missing("group member ofice ann", "there is no group `ofice`");
    missing("group member staff anne", "there is no user `anne`");
    missing("grant add tinny staff", "there is no appliance `tinny`");
    missing("appliance show tinny", "hint: `collective appliance list`");
    missing("appliance remove tinny --yes", "hint: `collective appliance list`");
    missing("appliance publish x --built h-none --keys k --work-dir .", "appliance.json");
    let audited = on("audit").objects();
    assert!(audited.iter().any(|it| it["what"].to_string().contains("staff")), "{audited:?}");
    let behind = home.run(&["user", "list", "--server", "unix:s/admin.sock"]);
    assert_eq!(behind.code, 0, "{}", behind.stderr);
    let wrong = home.path().join("wrong");
    std::fs::write(&wrong, "incorrect horse\n").unwrap();
    let words = "user password ann --current-password-file wrong --password-file password";
    assert_eq!(on(words).code, 3);
    assert_eq!(on("token create").objects().pop().unwrap()["type"], "token_created");
    assert_eq!(on("user remove ann").code, 2, "removed without being asked");
    assert_eq!(on("user list").objects().len(), 1);
    let host = host(&home);
    let fingerprint = server.facts["fingerprint"].as_str().unwrap();
    let url = server.facts["url"].as_str().unwrap();
    let join = ["--host", "r/host.sock", "join", url, "--name", "attic", "--fingerprint"];
    let refused = home.run(&join[..6]);
    assert_eq!(refused.code, 2, "trusted without being asked: {}", refused.stderr);
    assert!(refused.stderr.contains(fingerprint), "{}", refused.stderr);
    let joined = home.run(&[&join[..], &[fingerprint]].concat());
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    let login = ["--host", "r/host.sock", "login", "ann", "--password-file"];
    std::fs::write(home.path().join("wrong"), "incorrect horse\n").unwrap();
    assert_eq!(home.run(&[&login[..], &["wrong"]].concat()).code, 3);
    let session = home.run(&[&login[..], &["password"]].concat());
    assert_eq!(session.code, 0, "{}", session.stderr);
    assert_eq!(home.run(&["--host", "r/host.sock", "list"]).code, 0);
    check_own_password(&home, &login);
    assert_eq!((host.stop(), server.stop()), (0, 0));
}

#[test]
fn what_is_kept_of_user_disks_is_shown_and_set_and_how_repositories_are_is_told() {
    let home = Home::new();
    let server = Daemon::start(&home, &["serve", "--dir", "s", "--listen", "127.0.0.1:0"]);
    let on = |line: &str| {
        let words = ["--server", "unix:s/admin.sock"].into_iter().chain(line.split(' '));
        home.run(&words.collect::<Vec<_>>())
    };
    let said = |line: &str| {
        let ended = on(line);
        assert_eq!(ended.code, 0, "{line}: {}", ended.stderr);
        ended.stdout.trim().to_owned()
    };
    let usual = "user disks keep all of 7 d, 31 daily, 53 weekly, 36 monthly";
    assert_eq!(said("user retention"), usual);
    let other = "user retention --keep-last 2 --keep-within 12h --keep-yearly 5";
    assert_eq!(on(other).code, 2, "nobody was asked");
    let other = format!("{other} --yes");
    assert_eq!(said(&other), "user disks keep the last 2, all of 12 h, 5 yearly");
    assert_eq!(said("user retention --off"), "user disks keep everything");
    assert_eq!(said("user retention --default --yes"), usual);
    let missing = on("appliance retention tinny --keep-last 3 --yes");
    assert_eq!(missing.code, 4, "{}", missing.stderr);
    assert!(said("audit").contains("set what is kept of user disks: everything"));
    let doctor = on("doctor").stdout;
    assert!(doctor.contains("repositories 0 of 0 checked"), "{doctor}");
    assert_eq!(server.stop(), 0);
}

/// A person who is no administrator changes their own password, and logs in with it alone.
fn check_own_password(home: &Home, login: &[&str]) {
    std::fs::write(home.path().join("new"), "battery staple\n").unwrap();
    let change = |more: &[&str]| {
        let words = ["--host", "r/host.sock", "user", "password", "--password-file", "new"];
        home.run(&[&words[..], more].concat())
    };
    assert_eq!(change(&["ann", "--current-password-file", "password"]).code, 3, "another's way");
    assert_eq!(change(&["--forget-disks", "--yes"]).code, 2);
    assert_eq!(change(&["--current-password-file", "wrong"]).code, 3);
    let changed = change(&["--current-password-file", "password"]);
    assert_eq!(changed.code, 0, "{}", changed.stderr);
    assert_eq!(home.run(&["--host", "r/host.sock", "logout"]).code, 0);
    assert_eq!(home.run(&[login, &["password"]].concat()).code, 3);
    let again = home.run(&[login, &["new"]].concat());
    assert_eq!(again.code, 0, "{}", again.stderr);
}

#[test]
fn without_the_server_only_the_password_that_was_set_last_logs_in() {
    let home = Home::new();
    for (file, text) in [("old", "correct horse"), ("new", "battery staple"), ("wrong", "donkey")] {
        std::fs::write(home.path().join(file), format!("{text}\n")).unwrap();
    }
    let server = Daemon::start(&home, &["serve", "--dir", "s", "--listen", "127.0.0.1:0"]);
    let _host = host(&home);
    let run = |words: &[&str]| home.run(words).code;
    let on = |words: &[&str]| run(&[&["--host", "r/host.sock"], words].concat());
    let login = |user: &str, file: &str| on(&["login", user, "--password-file", file]);
    for more in [&["ann", "--administrator"][..], &["bob"]] {
        let add = ["user", "add", "--server", "unix:s/admin.sock", "--password-file", "old"];
        assert_eq!(run(&[&add, more].concat()), 0);
    }
    let fact = |name: &str| server.facts[name].as_str().unwrap().to_owned();
    let (url, fingerprint) = (fact("url"), fact("fingerprint"));
    assert_eq!(on(&["join", &url, "--name", "attic", "--fingerprint", &fingerprint]), 0);
    assert_eq!((login("ann", "old"), login("bob", "old")), (0, 0));

    let set = ["--as", "ann", "user", "password", "--password-file", "new"];
    let with = |current| ["--current-password-file", current];
    // A change that is refused changes nothing here either.
    assert_eq!(on(&[&set[..], &with("wrong")].concat()), 3);
    assert!(home.path().join("h/users/ann/account.json").exists());
    assert_eq!(on(&[&set[..], &["bob"], &with("old")].concat()), 0);
    assert_eq!(on(&[&set[..], &with("old")].concat()), 0);

    assert_eq!(server.stop(), 0);
    assert_eq!(login("ann", "old"), 3);
    assert_eq!(login("ann", "new"), 0);
    // Nobody has logged in with bob's new password yet, so there is nothing that any password opens.
    assert_eq!((login("bob", "old"), login("bob", "new")), (6, 6));
}
