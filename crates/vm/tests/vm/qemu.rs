//! Real machines with a guest of a few bytes: launch, hold, find again, kill; the self-test; what does not come up.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use collective_model::{DiskRole, ErrorKind, Hardware};
use collective_vm::accelerator::{self, Accelerator};
use collective_vm::process::{self, Machine};
use collective_vm::qemu::Qemu;
use collective_vm::spec::{Backing, DiskSpec, MachineSpec, NbdExport, Sockets};
use collective_vm::{graph, layer};

/// `mov al, '.'; mov dx, 0x3f8; out dx, al; jmp $-1`: writes dots to the serial port for ever.
const DOTS: [u8; 8] = [0xb0, b'.', 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd];

async fn machine(directory: &Path) -> MachineSpec {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
    let mut image = vec![0; 1 << 20];
    image[..DOTS.len()].copy_from_slice(&DOTS);
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    let raw = directory.join("disk.raw");
    fs::write(&raw, image).unwrap();
    let system = directory.join("system.qcow2");
    layer::create(&system, 1 << 20).await.unwrap();
    MachineSpec {
        name: "dots".to_owned(),
        accelerator: Accelerator::Tcg,
        hardware: Hardware { processors: 1, memory_mib: 32, network: true, ephemeral_bytes: 0 },
        disks: vec![DiskSpec {
            role: DiskRole::System,
            backing: Backing::File(raw),
            layers: vec![system],
        }],
        sockets: Sockets::within(directory),
        serial_log: directory.join("serial.log"),
        qemu_log: directory.join("qemu.log"),
        pid_file: directory.join("pid"),
    }
}

/// Waits until the guest has written something more than `seen` bytes.
async fn more_dots(log: &Path, seen: u64) {
    let more = async {
        while fs::metadata(log).map_or(0, |data| data.len()) <= seen {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), more).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_held_found_again_and_killed() {
    let directory = tempfile::tempdir().unwrap();
    let spec = machine(directory.path()).await;
    let qemu = Qemu::discover().await.unwrap();
    let Machine { process, qmp } = process::launch(&qemu, &spec).await.unwrap();
    more_dots(&spec.serial_log, 0).await;
    qmp.hold().await.unwrap();
    assert!(!qmp.status().await.unwrap().running);
    process::bound_log(&spec.serial_log, 0).unwrap();
    qmp.resume().await.unwrap();
    more_dots(&spec.serial_log, 0).await;
    let top = directory.path().join("top.qcow2");
    layer::create(&top, 1 << 20).await.unwrap();
    assert_eq!(graph::freeze(&qmp, DiskRole::System, &top).await.unwrap().top().file, top);

    // A second machine on the same layers is refused by QEMU's own locks.
    let other = directory.path().join("other");
    let twin = MachineSpec {
        sockets: Sockets::within(&other),
        pid_file: directory.path().join("pid-2"),
        qemu_log: directory.path().join("qemu-2.log"),
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
    let directory = tempfile::tempdir().unwrap();
    let mut spec = machine(directory.path()).await;
    spec.disks[0].backing = Backing::File(directory.path().join("missing.raw"));
    let qemu = Qemu::discover().await.unwrap();
    let error = process::launch(&qemu, &spec).await.unwrap_err();
    assert!(error.chain().contains("missing.raw"), "{error:?}");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
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

struct Export(std::process::Child);

impl Export {
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_block_is_late_is_held_and_goes_on_when_it_comes() {
    let directory = tempfile::tempdir().unwrap();
    let mut spec = machine(directory.path()).await;
    let raw = directory.path().join("disk.raw");
    let mut sector = vec![0; 512];
    sector[..READER.len()].copy_from_slice(&READER);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    fs::write(&raw, sector).unwrap();
    fs::File::options().write(true).open(&raw).unwrap().set_len(40 << 20).unwrap();
    let system = directory.path().join("reader.qcow2");
    layer::create(&system, 40 << 20).await.unwrap();
    let socket = directory.path().join("nbd.sock");
    let export = std::process::Command::new("qemu-nbd")
        .args(["--persistent", "--read-only", "--format=raw", "--export-name=v1", "--socket"])
        .arg(&socket)
        .arg(&raw)
        .spawn()
        .map(Export)
        .unwrap();
    let listens = async {
        while !socket.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), listens).await.unwrap();
    let base = NbdExport { socket, export: "v1".to_owned() };
    spec.disks[0].backing = Backing::Nbd(base);
    spec.disks[0].layers = vec![system];
    let qemu = Qemu::discover().await.unwrap();
    let Machine { process, qmp } = process::launch(&qemu, &spec).await.unwrap();
    more_dots(&spec.serial_log, 100).await;
    export.signal(rustix::process::Signal::STOP);
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
    export.signal(rustix::process::Signal::CONT);
    assert_eq!(qmp.status().await.unwrap().status, "paused");
    qmp.resume().await.unwrap();
    more_dots(&spec.serial_log, seen + 100).await;
    process.kill().await.unwrap();
}
