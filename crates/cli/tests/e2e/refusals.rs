//! What cannot be done is refused: by name, with the exit code of its kind, and nothing is changed.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::world::{World, refusal};

const INVALID: i32 = 2;
const DENIED: i32 = 3;
const NOT_FOUND: i32 = 4;
const CONFLICT: i32 = 5;
const UNAVAILABLE: i32 = 6;
const CORRUPT: i32 = 7;

#[track_caller]
fn on_a(world: &World, words: &[&str], code: i32, parts: &[&str]) {
    told(refusal(&world.stage.try_on("a", words).unwrap()), code, parts);
}

#[track_caller]
fn as_admin(world: &World, words: &[&str], code: i32, parts: &[&str]) {
    told(refusal(&world.stage.try_admin(words).unwrap()), code, parts);
}

#[track_caller]
fn told((code, said): (i32, String), wanted: i32, parts: &[&str]) {
    assert_eq!(code, wanted, "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

#[test]
fn wrong_passwords_unknown_things_and_missing_rights_are_refused() {
    let mut world = World::new();
    world.publish_as("secret-thing", "1");
    world.computer("a");
    std::fs::write(world.path("wrong"), "not the password").unwrap();
    let wrong = world.text("wrong");
    on_a(&world, &["login", "ann", "--password-file", &wrong], DENIED, &["password"]);
    on_a(&world, &["login", "nobody", "--password-file", &wrong], DENIED, &["password"]);
    on_a(&world, &["start", "nonesuch"], NOT_FOUND, &["nonesuch"]);
    // What one is not entitled to looks like what does not exist.
    on_a(&world, &["start", "secret-thing"], NOT_FOUND, &["secret-thing"]);
    on_a(&world, &["start", "tiny", "--version", "99"], NOT_FOUND, &["99", "tiny"]);
    on_a(&world, &["undo", "tiny", "--to", "99", "--yes"], NOT_FOUND, &["99"]);
    on_a(&world, &["exec", "nonesuch", "--", "ls"], NOT_FOUND, &["nonesuch"]);
    // Nor does any of it leave a trace, also not for the next daemon.
    world.stage.stop_daemon("a").unwrap();
    world.stage.start_again("a").unwrap();
    let listed = world.stage.try_on("a", &["list"]).unwrap().lines;
    assert!(listed.len() == 1 && listed[0]["name"] == "tiny", "{listed:?}");
    as_admin(&world, &["appliance", "show", "nonesuch"], NOT_FOUND, &["nonesuch"]);
    as_admin(&world, &["grant", "add", "nonesuch", "staff"], NOT_FOUND, &["nonesuch"]);
    as_admin(&world, &["appliance", "remove", "secret-thing"], INVALID, &["--yes"]);
    world.stage.admin(&["appliance", "remove", "secret-thing", "--yes"]).unwrap();
    as_admin(&world, &["appliance", "show", "secret-thing"], NOT_FOUND, &["secret-thing"]);
    assert_eq!(world.status("a")["state"], "off");
}

#[test]
fn files_that_are_no_disks_are_not_published() {
    let world = World::without_appliance();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(world.path(name), bytes).unwrap();
        world.text(name)
    };
    let empty = write("empty.raw", b"");
    let prose = write("letter.raw", &b"Dear sirs, this is a letter and not a disk. ".repeat(4000));
    let whole = world.text("whole.qcow2");
    let made =
        Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", &whole, "64M"]).status();
    assert!(made.unwrap().success());
    let fill = ["-f", "qcow2", "-c", "write -q -P 7 0 8M", &whole];
    let filled = Command::new("qemu-io").args(fill).status();
    assert!(filled.unwrap().success());
    let bytes = std::fs::read(&whole).unwrap();
    let cut = write("cut.qcow2", &bytes[..bytes.len() / 2]);
    let missing = world.text("missing.raw");
    for (file, code) in
        [(&empty, INVALID), (&prose, INVALID), (&cut, INVALID), (&missing, NOT_FOUND)]
    {
        let keys = world.text("keys");
        let words = ["appliance", "publish", "thing", file, "--keys", &keys, "--no-record"];
        as_admin(&world, &words, code, &[file]);
    }
    let listed = world.stage.try_admin(&["appliance", "list"]).unwrap();
    let versions: Vec<_> = listed.lines.iter().filter(|line| line["head"].is_number()).collect();
    assert!(versions.is_empty(), "{versions:?}");
}

#[test]
fn a_damaged_repository_is_named_and_never_served() {
    let mut world = World::new();
    let repositories = world.path("server/repositories");
    let pack = find(&repositories, "packs").into_iter().next().unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::set_permissions(&pack, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&pack, &bytes).unwrap();
    let name = pack.file_name().unwrap().to_str().unwrap().to_owned();
    as_admin(&world, &["appliance", "verify", "tiny"], CORRUPT, &[&name, "--repair"]);
    let (built, keys) = (world.built(), world.text("keys"));
    let publish =
        ["appliance", "publish", "tiny", "--built", &built, "--keys", &keys, "--no-record"];
    world.stage.admin(&[&publish[..], &["--repair"]].concat()).unwrap();
    world.stage.admin(&["appliance", "prune", "tiny", "--keep-last", "1", "--yes"]).unwrap();
    world.stage.admin(&["appliance", "verify", "tiny"]).unwrap();

    bytes[middle] ^= 1;
    std::fs::write(&pack, &bytes).unwrap();
    world.stage.admin(&["appliance", "verify", "tiny"]).unwrap();
    let manifest = find(&repositories, "manifest.json").into_iter().next().unwrap();
    let mut text = std::fs::read(&manifest).unwrap();
    text[40] ^= 1;
    std::fs::write(&manifest, &text).unwrap();
    world.computer("a");
    on_a(&world, &["start", "tiny"], CORRUPT, &["manifest"]);
}

#[test]
fn a_start_from_a_damaged_repository_names_what_is_damaged() {
    let mut world = World::new();
    let repositories = world.path("server/repositories");
    let files = |part, end: &str| -> Vec<_> {
        let files = find(&repositories, part).into_iter();
        files.filter(|path| path.to_str().unwrap().ends_with(end)).collect()
    };
    let (manifests, indexes) = (files("versions", "manifest.json"), files("versions", ".index"));
    let (traces, packs) = (files("versions", ".trace"), files("packs", ""));
    world.computer("a");
    for (damaged, named) in [(&manifests, "manifest"), (&indexes, ".index")] {
        turn(damaged);
        on_a(&world, &["start", "tiny"], CORRUPT, &[named]);
        turn(damaged);
    }
    // A trace only says what comes next: without it a start takes longer.
    turn(&traces);
    world.start("a");
    world.stop("a");
    world.computer("b");
    turn(&packs);
    let outcome = world.stage.try_on("b", &["start", "tiny"]).unwrap();
    told(refusal(&outcome), CORRUPT, &["packs/", "appliance verify"]);
    turn(&packs);
    world.start("b");
}

/// Turns every bit of files; twice is as before.
fn turn(files: &[std::path::PathBuf]) {
    assert!(!files.is_empty());
    for file in files {
        let bytes = std::fs::read(file).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(file, bytes.iter().map(|byte| !byte).collect::<Vec<_>>()).unwrap();
    }
}

#[test]
fn a_server_that_became_another_is_not_believed() {
    let mut world = World::new();
    world.computer("a");
    let address = world.server.url.strip_prefix("https://").unwrap().to_owned();
    let known = world.server.fingerprint.clone();
    world.stage.stop_daemon("server").unwrap();
    std::fs::rename(world.path("server"), world.path("server-before")).unwrap();
    let other = world.stage.start_server_on(&address).unwrap();
    let password = world.text("password");
    let words = ["login", "ann", "--password-file", &password];
    on_a(&world, &words, DENIED, &["changed", &known, &other.fingerprint]);
}

#[test]
fn a_second_daemon_on_one_directory_is_refused() {
    let mut world = World::new();
    world.computer("a");
    for (verb, directory) in [("host", world.text("a")), ("serve", world.text("server"))] {
        let runtime = world.text("r/second");
        let mut words = vec![verb, "--dir", &directory];
        match verb {
            "host" => words.extend(["--runtime-dir", &runtime]),
            _ => words.extend(["--listen", "127.0.0.1:0"]),
        }
        told(refusal(&world.stage.run(&words).unwrap()), CONFLICT, &[&directory]);
    }
    world.start("a");
}

#[test]
fn without_qemu_a_start_says_which_package_is_missing() {
    let mut world = World::new();
    world.computer("a");
    world.stage.stop_daemon("a").unwrap();
    world.stage.set_environment("a", "PATH", "/nonexistent").unwrap();
    world.stage.start_again("a").unwrap();
    on_a(&world, &["start", "tiny"], NOT_FOUND, &["qemu-system-x86"]);
    assert_eq!(world.status("a")["state"], "off");
}

#[test]
fn a_publication_that_is_told_to_end_leaves_no_machine_behind() {
    let world = World::without_appliance();
    for signal_name in ["TERM", "HUP", "INT"] {
        let (built, keys) = (world.built(), world.text("keys"));
        let temporary = world.path(&format!("temporary-{signal_name}"));
        std::fs::create_dir(&temporary).unwrap();
        let mut publishing = Command::new(world.stage.command())
            .args(["appliance", "publish", "tiny", "--built", &built, "--keys", &keys])
            .args(["--server", &world.stage.admin_server()])
            .env("TMPDIR", &temporary)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mark = format!("{}/", temporary.display());
        let machines = || {
            let processes = std::fs::read_dir("/proc").unwrap().flatten();
            let arguments =
                processes.filter_map(|it| std::fs::read(it.path().join("cmdline")).ok());
            let arguments = arguments.map(|it| String::from_utf8_lossy(&it).into_owned());
            arguments.filter(|it| it.contains("recorded-start") && it.contains(&mark)).count()
        };
        let limit = std::time::Instant::now() + super::world::LIMIT;
        while machines() == 0 {
            assert!(std::time::Instant::now() < limit, "the recorded start never begins");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        super::world::signal(publishing.id(), signal_name);
        assert!(!publishing.wait().unwrap().success());
        while machines() > 0 {
            assert!(std::time::Instant::now() < limit, "{signal_name} leaves a machine");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

#[test]
fn without_a_daemon_a_command_says_how_to_start_one() {
    let world = World::without_appliance();
    let outcome = world.stage.try_on("nowhere", &["list"]).unwrap();
    told(refusal(&outcome), UNAVAILABLE, &["collective host"]);
}

/// Files below a directory whose path has a part of that name.
fn find(directory: &std::path::Path, part: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(find(&path, part));
        } else if path.components().any(|name| name.as_os_str() == part) {
            found.push(path);
        }
    }
    found
}
