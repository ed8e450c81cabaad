//! Real machines with a guest of a few bytes: launch, hold, find again, kill; the self-test; what does not come up.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use collective_model::{DiskRole, ErrorKind};
use collective_vm::accelerator::{self, Accelerator};
use collective_vm::process::{self, Machine};
use collective_vm::qemu::Qemu;
use collective_vm::spec::{Backing, MachineSpec, NbdExport, Sockets};
use collective_vm::{graph, layer};

use crate::scene::{Daemon, Scene, more_dots, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_held_found_again_and_killed() {
    let scene = Scene::new();
    let spec = scene.dots().await;
    let qemu = Qemu::discover().await.unwrap();
    let Machine { process, qmp } = process::launch(&qemu, &spec).await.unwrap();
    more_dots(&spec.serial_log, 0).await;
    let pid = process.identity().pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    qmp.hold().await.unwrap();
    assert!(!qmp.status().await.unwrap().running);
    process::bound_log(&spec.serial_log, 0).unwrap();
    qmp.resume().await.unwrap();
    more_dots(&spec.serial_log, 0).await;
    let top = scene.path("top.qcow2");
    layer::create(&top, 1 << 20).await.unwrap();
    assert_eq!(graph::freeze(&qmp, DiskRole::System, &top).await.unwrap().top().file, top);

    // A second machine on the same layers is refused by QEMU's own locks.
    let other = scene.path("other");
    let twin = MachineSpec {
        sockets: Sockets::within(&other),
        pid_file: scene.path("pid-2"),
        qemu_log: scene.path("qemu-2.log"),
        ..spec.clone()
    };
    let error = process::launch(&qemu, &twin).await.unwrap_err();
    assert!(error.chain().contains("lock"), "{error:?}");

    let session = rustix::process::getsid(rustix::process::Pid::from_raw(process.identity().pid));
    assert_eq!(session.unwrap().as_raw_nonzero().get(), process.identity().pid);
    let again = process::adopt(&spec.pid_file, &spec.sockets.qmp).await.unwrap().unwrap();
    assert_eq!(again.identity(), process.identity());
    fs::remove_file(&spec.pid_file).unwrap();
    let found = process::adopt(&spec.pid_file, &spec.sockets.qmp).await.unwrap().unwrap();
    assert_eq!(found.identity(), process.identity());
    found.kill().await.unwrap();
    assert!(!process.is_alive());
    qmp.closed().await;
    assert_eq!(qmp.status().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(process::adopt(&spec.pid_file, &spec.sockets.qmp).await.unwrap().is_none());
    layer::check(&top).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_come_up_tells_qemus_own_words() {
    let scene = Scene::new();
    let mut spec = scene.dots().await;
    spec.disks[0].backing = Backing::File(scene.path("missing.raw"));
    let qemu = Qemu::discover().await.unwrap();
    let error = process::launch(&qemu, &spec).await.unwrap_err();
    assert!(error.chain().contains("missing.raw"), "{error:?}");
    fs::set_permissions(scene.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    let open = process::launch(&qemu, &spec).await.unwrap_err();
    assert_eq!(open.kind(), ErrorKind::Denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_self_test_passes_under_translation_and_always_ends() {
    let qemu = Qemu::discover().await.unwrap();
    let minute = Duration::from_secs(60);
    accelerator::self_test(&qemu, Accelerator::Tcg, minute).await.unwrap();
    let late = accelerator::self_test(&qemu, Accelerator::Tcg, Duration::ZERO).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(!accelerator::probe(&qemu).await.why.is_empty());
}

/// Writes a dot, reads the next 4 KiB of the disk through the BIOS, and so on for ever. The last 16 bytes say what to read.
const READER: [u8; 43] = [
    0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x1b, 0x7c, // ds = 0, si = the request
    0xb0, b'.', 0xba, 0xf8, 0x03, 0xee, // a dot
    0xb4, 0x42, 0xb2, 0x80, 0xcd, 0x13, // read
    0x83, 0x06, 0x23, 0x7c, 0x08, // the next eight sectors
    0xeb, 0xed, 0x90, // again
    0x10, 0x00, 0x08, 0x00, 0x00, 0x80, 0x00, 0x00, 0, 0, 0, 0, 0, 0, 0, 0,
];

fn signal(daemon: &Daemon, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_block_is_late_is_held_and_goes_on_when_it_comes() {
    let scene = Scene::new();
    let mut spec = scene.dots().await;
    let raw = scene.path("disk.raw");
    let mut sector = vec![0; 512];
    sector[..READER.len()].copy_from_slice(&READER);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    fs::write(&raw, sector).unwrap();
    fs::File::options().write(true).open(&raw).unwrap().set_len(40 << 20).unwrap();
    let system = scene.path("reader.qcow2");
    layer::create(&system, 40 << 20).await.unwrap();
    let socket = scene.path("nbd.sock");
    let export = std::process::Command::new("qemu-nbd")
        .args(["--persistent", "--read-only", "--format=raw", "--export-name=v1", "--socket"])
        .arg(&socket)
        .arg(&raw)
        .spawn()
        .map(Daemon)
        .unwrap();
    until(|| socket.exists()).await;
    let base = NbdExport { socket, export: "v1".to_owned() };
    spec.disks[0].backing = Backing::Nbd(base);
    spec.disks[0].layers = vec![system];
    let qemu = Qemu::discover().await.unwrap();
    let Machine { process, qmp } = process::launch(&qemu, &spec).await.unwrap();
    more_dots(&spec.serial_log, 100).await;
    signal(&export, rustix::process::Signal::STOP);
    // The guest is inside its read when no more dots come.
    let length = || fs::metadata(&spec.serial_log).unwrap().len();
    let quiet = Duration::from_millis(500);
    while tokio::time::timeout(quiet, more_dots(&spec.serial_log, length())).await.is_ok() {}
    qmp.hold().await.unwrap();
    // QEMU waits for the late block now; who gives up on an answer harms nobody.
    let limit = Duration::from_millis(300);
    let unanswered = qmp.execute_within("query-status", serde_json::json!({}), limit).await;
    assert_eq!(unanswered.unwrap_err().kind(), ErrorKind::Unavailable);
    let seen = length();
    signal(&export, rustix::process::Signal::CONT);
    assert_eq!(qmp.status().await.unwrap().status, "paused");
    qmp.resume().await.unwrap();
    more_dots(&spec.serial_log, seen + 100).await;
    process.kill().await.unwrap();
}
