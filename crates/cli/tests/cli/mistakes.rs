//! Every wrong input ends with the exit code of its kind and names the thing, and changes nothing.

use crate::runner::{Ended, Home};

/// Runs the command and checks how it fails: its code, and what its first lines say.
fn check(home: &Home, line: &str, code: i32, says: &[&str]) -> Ended {
    let words: Vec<&str> = line.split(' ').collect();
    let ended = home.run(&words);
    assert_eq!(ended.code, code, "{line}: {}", ended.stderr);
    assert!(ended.stderr.starts_with("error: "), "{line}: {}", ended.stderr);
    for text in says {
        assert!(ended.stderr.contains(text), "{line}: no {text:?} in {}", ended.stderr);
    }
    ended
}

#[test]
fn without_a_daemon_every_verb_of_the_host_says_where_it_looked() {
    let home = Home::new();
    let socket = home.socket();
    for line in [
        "list",
        "status",
        "start debian",
        "stop debian",
        "restart debian",
        "reset debian",
        "undo debian --yes",
        "delete debian --yes",
        "versions debian",
        "publish debian",
        "exec debian -- true",
        "login ann",
        "logout",
        "join https://server:7443",
    ] {
        check(&home, line, 6, &[&socket, "hint: start one with `collective host`"]);
    }
}

#[test]
fn a_socket_that_nobody_listens_on_is_no_daemon() {
    let home = Home::new();
    drop(std::os::unix::net::UnixListener::bind(home.socket()).unwrap());
    check(&home, "list", 6, &[&home.socket(), "hint: "]);
}

#[test]
fn without_a_server_every_verb_of_an_administrator_says_where_it_looked() {
    let home = Home::new();
    let socket = home.path().join("admin.sock").display().to_string();
    for line in [
        "user list",
        "user add ann",
        "user remove ann --yes",
        "user password ann",
        "group add office",
        "group list",
        "group remove office --yes",
        "group member office ann",
        "grant add debian office",
        "grant list",
        "grant remove debian office",
        "token create",
        "token list",
        "token remove 1",
        "audit",
        "appliance list",
        "appliance show debian",
        "appliance verify debian",
        "appliance prune debian --keep-last 1 --yes",
        "appliance remove debian --yes",
    ] {
        let line = format!("{line} --server unix:{socket}");
        check(&home, &line, 6, &[&socket, "hint: start one with `collective serve`"]);
    }
    check(&home, "user list", 6, &[&home.socket(), "--server unix:"]);
    check(&home, "user list --server https://x", 2, &["`https://x` is not the socket of a server"]);
}

#[test]
fn what_is_to_be_read_is_named_when_it_is_missing() {
    let home = Home::new();
    let out = home.path().join("out").display().to_string();
    let line = format!("appliance build no-such-recipe --output {out}");
    check(&home, &line, 4, &["no-such-recipe"]);
    assert!(!home.path().join("out").exists(), "a build that failed left its directory");
}

#[test]
fn words_that_make_no_sense_are_named() {
    let home = Home::new();
    check(&home, "strat debian", 2, &["'strat'", "'start'"]);
    check(&home, "start", 2, &["<APPLIANCE>", "`collective help start`"]);
    check(&home, "start ../etc", 2, &["../etc", "a name has 1 to 63 characters"]);
    check(&home, "start debian --version 0", 2, &["`0` is not a version number"]);
    check(&home, "start debian --version x", 2, &["`x` is not a version number"]);
    check(&home, "exec debian --limit 5x -- true", 2, &["`5x` is not a span of time", "10min"]);
    check(&home, "login Ann", 2, &["\"Ann\" is not a name for a user"]);
    check(&home, "completion tcsh", 2, &["tcsh", "bash"]);
}

#[test]
fn a_failure_is_the_last_object_that_a_program_reads() {
    let home = Home::new();
    let ended = check(&home, "list --json", 6, &[]);
    let objects = ended.objects();
    let last = objects.last().unwrap();
    assert_eq!((&last["type"], &last["kind"]), (&"error".into(), &"unavailable".into()));
    assert_eq!(last["exit_code"], 6);
    assert!(last["message"].as_str().unwrap().contains(&home.socket()), "{last}");
    let ended = check(&home, "strat --json", 2, &[]);
    assert_eq!(ended.objects().last().unwrap()["kind"], "invalid");
}

#[test]
fn no_verb_at_all_shows_the_help_and_fails() {
    let ended = Home::new().run(&[]);
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
    assert!(ended.stderr.contains("Usage: collective"), "{}", ended.stderr);
}

#[test]
fn the_exit_codes_are_told_to_programs_too() {
    let ended = Home::new().run(&["exit-codes", "--json"]);
    let codes: Vec<_> = ended.objects().iter().map(|line| line["exit_code"].clone()).collect();
    assert_eq!((ended.code, codes.len()), (0, 10));
}

#[test]
fn the_doctor_goes_on_after_what_fails_and_names_it() {
    let home = Home::new();
    let ended = home.run(&["doctor", "--json"]);
    let checks = ended.objects();
    let daemon = checks.iter().find(|check| check["check"] == "daemon").unwrap();
    assert_eq!((ended.code, &daemon["level"]), (6, &"failed".into()));
    assert!(daemon["text"].as_str().unwrap().contains(&home.socket()), "{daemon}");
    assert!(checks.iter().any(|check| check["check"] == "disk space"), "{}", ended.stdout);
}

#[test]
fn a_shell_gets_its_completion() {
    let ended = Home::new().run(&["completion", "bash"]);
    assert_eq!(ended.code, 0);
    assert!(ended.stdout.contains("complete -F _collective"), "no completion function");
}
