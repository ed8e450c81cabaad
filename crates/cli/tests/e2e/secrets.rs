//! Secrets stay where they belong: not in logs, not among arguments, not in files that others can read; and a guest
//! finds no way to the daemons.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use super::world::{PASSWORD, World};

#[test]
fn no_secret_is_in_a_log_among_arguments_or_in_a_readable_file() {
    let mut world = World::new();
    world.stage.start_host_with("a", &["--log", "trace"]).unwrap();
    world.log_in("a");
    world.start("a");
    world.write("a", "page", "backed up");
    world.stage.on("a", &["publish", "tiny"]).unwrap();
    let token = world.stage.admin(&["token", "create"]).unwrap();
    let token = token["secret"].as_str().unwrap().to_owned();
    let arguments: String = world
        .stage
        .processes()
        .unwrap()
        .into_iter()
        .map(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect();
    assert!(arguments.contains("qemu-system"), "there is no guest to look at");
    let mut logs = arguments;
    for name in ["server.log", "a.log"] {
        logs.push_str(&std::fs::read_to_string(world.path(name)).unwrap());
    }
    assert!(logs.contains("TRACE"), "the host does not log all that it can");
    let mut secrets = Vec::new();
    secrets_below(&world.stage.runtime("a"), &mut secrets);
    assert!(!secrets.is_empty(), "the session keeps no secret");
    for secret in
        [PASSWORD, &token, "PRIVATE KEY"].into_iter().chain(secrets.iter().map(|it| &**it))
    {
        assert!(!logs.contains(secret), "{secret} is in a log or among arguments");
    }
    for root in ["server", "a", "keys", "r"] {
        check_files(&world.path(root));
    }
}

/// What the files below a directory say under `secret`.
fn secrets_below(path: &Path, secrets: &mut Vec<String>) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            secrets_below(&entry.path(), secrets);
        } else if entry.file_type().unwrap().is_file() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let record: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            secrets.extend(record["secret"].as_str().map(str::to_owned));
        }
    }
}

/// Every file that holds a key is its owner's alone, and so is the directory of every socket.
fn check_files(path: &Path) {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    let mode = metadata.permissions().mode() & 0o777;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            check_files(&entry.unwrap().path());
        }
        return;
    }
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let secret = ["PRIVATE KEY", "secret", "\"seed\""].iter().any(|mark| text.contains(mark));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if metadata.file_type().is_socket() {
        let directory = std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!((mode & directory) & 0o077, 0, "{} has mode {mode:o}", path.display());
    } else if name.contains("key") || secret {
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
}

#[test]
fn a_guest_finds_no_way_to_the_daemons() {
    let mut world = World::new();
    world.computer("a");
    world.start("a");
    // All that a guest has is disks, a serial port and its agent's port: no share, no socket, no further port.
    let ports = world.guest("a", "ls /sys/class/virtio-ports | wc -l");
    assert_eq!(ports, "1");
    let disks = world.guest("a", "ls -d /sys/block/vd* | wc -l");
    assert_eq!(disks, "2");
    let pid = world.guest_pid("a").unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Seccomp:\t2"), "QEMU runs without its sandbox: {status}");
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let arguments = String::from_utf8_lossy(&arguments);
    let daemon = world.stage.host_socket("a");
    assert!(!arguments.contains(&*daemon.to_string_lossy()), "QEMU knows the daemon's socket");
    assert!(!arguments.contains("guestfwd") && !arguments.contains("virtfs"), "{arguments}");
}
