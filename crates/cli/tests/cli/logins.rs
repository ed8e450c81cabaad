//! Log-ins that fail: who answers wrong passwords, what they leave behind, how fast they may be tried; and a server that
//! became another.

use crate::daemons::{Daemon, host};
use crate::runner::{Ended, Home};

const DENIED: i32 = 3;
const UNAVAILABLE: i32 = 6;

/// A server that ann may log in at, and a host that knows nothing of it yet.
struct Stage {
    home: Home,
    server: Option<Daemon>,
    host: Daemon,
}

impl Stage {
    fn new() -> Self {
        let home = Home::new();
        for (file, text) in [("right", "correct horse"), ("wrong", "donkey")] {
            std::fs::write(home.path().join(file), format!("{text}\n")).unwrap();
        }
        let server = Daemon::start(&home, &["serve", "--dir", "s", "--listen", "127.0.0.1:0"]);
        let words = ["user", "add", "ann", "--server", "unix:s/admin.sock"];
        let added = home.run(&[&words[..], &["--password-file", "right"]].concat());
        assert_eq!(added.code, 0, "{}", added.stderr);
        let host = host(&home);
        Self { home, server: Some(server), host }
    }

    fn fact(&self, name: &str) -> String {
        self.server.as_ref().unwrap().facts[name].as_str().unwrap().to_owned()
    }

    fn on(&self, words: &[&str]) -> Ended {
        self.home.run(&[&["--host", "r/host.sock"], words].concat())
    }

    fn login(&self, file: &str) -> Ended {
        self.on(&["login", "ann", "--password-file", file])
    }

    /// Logs in where the host is not tied to the server yet.
    fn first_login(&self, file: &str) -> Ended {
        let (url, fingerprint) = (self.fact("url"), self.fact("fingerprint"));
        let words = ["login", "ann", "--url", &url, "--fingerprint", &fingerprint];
        self.on(&[&words[..], &["--name", "attic", "--password-file", file]].concat())
    }
}

#[test]
fn a_first_log_in_with_a_wrong_password_leaves_no_server_behind() {
    let stage = Stage::new();
    let refused = stage.first_login("wrong");
    assert_eq!(refused.code, DENIED, "{}", refused.stderr);
    let status = stage.on(&["status", "--json"]).objects().pop().unwrap();
    assert!(status["server"].is_null(), "{status}");
    assert!(!stage.home.path().join("h/host.json").exists());
    let first = stage.first_login("right");
    assert_eq!(first.code, 0, "{}", first.stderr);
    // After a server's answer, also of a wrong password, it is known to be there.
    assert_eq!(stage.on(&["logout", "ann"]).code, 0);
    assert_eq!(stage.login("wrong").code, DENIED);
    let status = stage.on(&["status"]).stdout;
    assert!(status.contains("answers"), "{status}");
    let again = stage.on(&["join", &stage.fact("url"), "--name", "attic"]);
    assert_eq!(again.code, 0, "asked about a server that is known: {}", again.stderr);
}

#[test]
fn a_server_with_another_authority_is_told_once_and_what_is_here_stays_visible() {
    let mut stage = Stage::new();
    assert_eq!(stage.first_login("right").code, 0);
    let url = stage.fact("url");
    let address = url.strip_prefix("https://").unwrap();
    assert_eq!(stage.server.take().map(Daemon::stop), Some(0));
    std::fs::remove_dir_all(stage.home.path().join("s")).unwrap();
    stage.server = Some(Daemon::start(&stage.home, &["serve", "--dir", "s", "--listen", address]));
    let authority = format!("the authority of the server {address} changed");
    let join = format!("collective join {url}");
    for verb in ["list", "status", "doctor"] {
        let ended = stage.on(&[verb]);
        assert!(verb == "doctor" || ended.code == 0, "{verb}: {}", ended.stderr);
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert_eq!(said.matches(&authority).count(), 1, "{verb}: {said}");
        assert!(said.contains(&join), "{verb}: {said}");
        assert!(!said.contains("answers") && !said.contains("BadSignature"), "{verb}: {said}");
    }
    let refused = stage.on(&["user", "list"]);
    assert_eq!(refused.code, DENIED, "{}", refused.stderr);
    assert_eq!(stage.on(&["logout", "ann"]).code, 0);
}

#[test]
fn a_server_that_asks_for_patience_is_heard_and_without_it_this_host_asks_for_it() {
    let mut stage = Stage::new();
    assert_eq!(stage.first_login("right").code, 0);
    let guess = |stage: &Stage| -> Ended {
        (0..10)
            .map(|_| stage.login("wrong"))
            .find(|ended| ended.code != DENIED)
            .expect("guessing is slowed within ten guesses")
    };
    let refused = guess(&stage);
    assert_eq!(refused.code, UNAVAILABLE, "{}", refused.stderr);
    assert!(refused.stderr.contains("too many wrong passwords"), "{}", refused.stderr);
    // The server decides: what worked here last is no way around it.
    let right = stage.login("right");
    assert_eq!(right.code, UNAVAILABLE, "{}", right.stdout);

    assert_eq!(stage.server.take().map(Daemon::stop), Some(0));
    assert_eq!(stage.login("right").code, 0, "without a server the last password is enough");
    let refused = guess(&stage);
    assert_eq!(refused.code, UNAVAILABLE, "{}", refused.stderr);
    assert!(refused.stderr.contains("too many wrong passwords"), "{}", refused.stderr);
    assert_eq!(stage.host.stop(), 0);
}
