//! What the tests stand on: a directory of their own and processes that end with it, also when a test fails.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use collective_model::{DiskRole, Hardware};
use collective_vm::accelerator::Accelerator;
use collective_vm::layer;
use collective_vm::process::{Identity, Process};
use collective_vm::spec::{Backing, DiskSpec, MachineSpec, Sockets};
use tempfile::TempDir;

/// How long a guest may take for anything, on a busy computer under translation.
const PATIENCE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(10);

/// `mov al, '.'; mov dx, 0x3f8; out dx, al; jmp $-1`: writes dots to the serial port for ever.
const DOTS: [u8; 8] = [0xb0, b'.', 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd];

/// A process that ends with the test.
pub struct Daemon(pub Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A private directory. Every machine whose pid file is in it, named `pid…`, is killed with it.
pub struct Scene {
    path: PathBuf,
    /// None in the directory of another scene, which ends the machines.
    own: Option<TempDir>,
}

impl Scene {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        Self { path: directory.path().to_owned(), own: Some(directory) }
    }

    /// Works in the directory of another process's scene.
    pub fn within(path: PathBuf) -> Self {
        Self { path, own: None }
    }

    pub fn directory(&self) -> &Path {
        &self.path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A machine whose disks are `images`, under layers of their own.
    pub async fn machine(&self, hardware: Hardware, images: &[(DiskRole, &Path)]) -> MachineSpec {
        let mut disks = Vec::new();
        for &(role, image) in images {
            let layer = self.path(&format!("{role}.qcow2"));
            layer::create(&layer, fs::metadata(image).unwrap().len()).await.unwrap();
            disks.push(DiskSpec {
                role,
                backing: Backing::File(image.to_owned()),
                layers: vec![layer],
            });
        }
        MachineSpec {
            name: "test".to_owned(),
            accelerator: Accelerator::Tcg,
            hardware,
            disks,
            sockets: Sockets::within(self.directory()),
            serial_log: self.path("serial.log"),
            qemu_log: self.path("qemu.log"),
            pid_file: self.path("pid"),
        }
    }

    /// A machine that writes dots for ever.
    pub async fn dots(&self) -> MachineSpec {
        let mut image = vec![0; 1 << 20];
        image[..DOTS.len()].copy_from_slice(&DOTS);
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        let raw = self.path("disk.raw");
        fs::write(&raw, image).unwrap();
        let hardware =
            Hardware { processors: 1, memory_mib: 32, network: true, ephemeral_bytes: 0 };
        self.machine(hardware, &[(DiskRole::System, &raw)]).await
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.own.is_none() {
            return;
        }
        let entries = fs::read_dir(self.directory()).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("pid"))
        {
            if let Some(process) = recorded(&entry.path()).and_then(Process::open) {
                let _ = process.start_kill();
            }
        }
    }
}

/// Reads a pid file.
pub fn recorded(pid_file: &Path) -> Option<Identity> {
    serde_json::from_slice(&fs::read(pid_file).ok()?).ok()
}

/// Waits until something holds.
#[track_caller]
pub fn until(holds: impl Fn() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let watched = async {
            while !holds() {
                tokio::time::sleep(POLL).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, watched).await;
        assert!(in_time.is_ok(), "what {place} waits for does not come");
    }
}

/// Waits until the guest has written something more than `seen` bytes.
pub async fn more_dots(log: &Path, seen: u64) {
    until(|| fs::metadata(log).map_or(0, |data| data.len()) > seen).await;
}

/// Waits until a process has ended.
pub async fn ended(process: &Process) {
    tokio::time::timeout(PATIENCE, process.exited()).await.expect("the machine does not end");
}
