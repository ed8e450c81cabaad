//! What machine is wanted, and the QEMU arguments that make it: a pure function, held by golden tests.
//!
//! The guest is hostile. QEMU runs under its seccomp sandbox, has no monitor on its standard streams, only Unix sockets in a
//! private directory, and gives the guest no more than disks, a screen, an agent port, a serial log and, if
//! wanted, a network card behind address translation. No secret is ever among the arguments: every
//! user of the computer can read them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use collective_model::{DiskRole, Error, ErrorKind, Hardware, Result};
use serde_json::{Value, json};

use crate::accelerator::Accelerator;
use crate::blockdev::{self, NodeKind, node_name};

/// Bytes of a socket's path, at most: `sun_path` has 108 with its closing zero.
const SOCKET_PATH_BYTES: usize = 107;
/// Layers of one disk at launch, at most. Each costs file handles and look-ups; a longer list means that nothing was published
/// for days, and starting is refused with that reason.
pub const LAYERS_PER_DISK: usize = 64;
/// What the guest may make QEMU do to the computer: nothing that starts a program or changes who it is.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// One machine, ready to be launched: every path in it exists or will be made by QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// Shown in process lists and window titles.
    pub name: String,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
    /// Processors, memory, network card.
    pub hardware: Hardware,
    /// Its disks, at most one of each role; the system disk is booted.
    pub disks: Vec<DiskSpec>,
    /// Where to talk to it.
    pub sockets: Sockets,
    /// Gets what the guest writes to its serial port.
    pub serial_log: PathBuf,
    /// Gets what QEMU itself complains about.
    pub qemu_log: PathBuf,
    /// Gets the process's number and start time.
    pub pid_file: PathBuf,
}

/// One disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// What it is for; the serial number that the guest sees.
    pub role: DiskRole,
    /// What is below the layers.
    pub backing: Backing,
    /// The qcow2 layers, oldest first; the last takes the guest's writes, the others are never changed.
    pub layers: Vec<PathBuf>,
}

/// What a disk reads where no layer has anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Zeroes.
    None,
    /// A version, through a read-only NBD export.
    Nbd(NbdExport),
    /// A raw image of this computer.
    File(PathBuf),
}

/// A read-only NBD export on a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdExport {
    /// The socket.
    pub socket: PathBuf,
    /// The export's name.
    pub export: String,
}

/// The Unix sockets of a machine, in a directory that only its owner may enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// The monitor.
    pub qmp: PathBuf,
    /// The guest agent's port.
    pub agent: PathBuf,
    /// The screen.
    pub vnc: PathBuf,
}

impl Sockets {
    /// Names the sockets of a machine in `directory`.
    #[must_use]
    pub fn within(directory: &Path) -> Self {
        Self {
            qmp: directory.join("qmp.sock"),
            agent: directory.join("agent.sock"),
            vnc: directory.join("vnc.sock"),
        }
    }

    /// Lists all of them.
    #[must_use]
    pub fn all(&self) -> [&Path; 3] {
        [&self.qmp, &self.agent, &self.vnc]
    }
}

impl MachineSpec {
    /// Checks what QEMU would refuse with words that nobody understands.
    ///
    /// # Errors
    /// `Invalid`, naming the machine and what is wrong with it.
    pub fn check(&self) -> Result<()> {
        self.hardware.check().map_err(|error| error.context(self.what("it cannot be made")))?;
        let paths = [&self.serial_log, &self.qemu_log, &self.pid_file].map(PathBuf::as_path);
        let exports = self.disks.iter().filter_map(|disk| match &disk.backing {
            Backing::Nbd(export) => Some(export.socket.as_path()),
            Backing::None | Backing::File(_) => None,
        });
        let sockets: Vec<&Path> = self.sockets.all().into_iter().chain(exports).collect();
        let layers = self.disks.iter().flat_map(|disk| &disk.layers).map(PathBuf::as_path);
        for path in paths.into_iter().chain(layers).chain(sockets.iter().copied()) {
            // QEMU runs in another directory, and takes its arguments as text.
            self.ensure(path.is_absolute() && path.to_str().is_some(), || {
                format!("{} is no absolute path in UTF-8", path.display())
            })?;
        }
        for socket in sockets {
            self.ensure(socket.as_os_str().len() <= SOCKET_PATH_BYTES, || {
                format!("the path of the socket {} is too long", socket.display())
            })?;
        }
        self.check_disks()
    }

    fn check_disks(&self) -> Result<()> {
        let roles: BTreeSet<_> = self.disks.iter().map(|disk| disk.role).collect();
        self.ensure(roles.len() == self.disks.len(), || "two disks have one role".to_owned())?;
        for disk in &self.disks {
            self.ensure(!disk.layers.is_empty(), || {
                format!("the {} disk has no layer", disk.role)
            })?;
            self.ensure(disk.layers.len() <= LAYERS_PER_DISK, || {
                let count = disk.layers.len();
                format!(
                    "the {} disk has {count} layers, and {LAYERS_PER_DISK} are the limit",
                    disk.role
                )
            })?;
        }
        Ok(())
    }

    fn ensure(&self, holds: bool, why_not: impl FnOnce() -> String) -> Result<()> {
        if holds {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Invalid, self.what(&why_not())))
    }

    fn what(&self, text: &str) -> String {
        format!("machine `{}`: {text}", self.name)
    }
}

/// Returns the arguments with which QEMU makes this machine; the same for the same machine.
#[must_use]
pub fn arguments(spec: &MachineSpec) -> Vec<String> {
    let mut arguments = Arguments::default();
    base_arguments(spec, &mut arguments);
    arguments.add("-device", &json!({ "driver": "virtio-rng-pci", "rng": "rng0" }).to_string());
    spec.disks.iter().for_each(|disk| disk_arguments(disk, &mut arguments));
    channel_arguments(spec, &mut arguments);
    if spec.hardware.network {
        // It also reaches the host's loopback: docs/decisions/0005-guests-reach-loopback.md.
        arguments.add("-netdev", "user,id=net0");
        let card = json!({ "driver": "virtio-net-pci", "netdev": "net0", "romfile": "" });
        arguments.add("-device", &card.to_string());
    }
    arguments.add("-vnc", &format!("unix:{}", escaped(&spec.sockets.vnc)));
    // The tablet gives the pointer's place on the screen as it is, which is what a remote screen knows.
    for device in ["VGA", "virtio-tablet-pci"] {
        arguments.add("-device", &json!({ "driver": device }).to_string());
    }
    arguments.0
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn add(&mut self, option: &str, value: &str) {
        self.0.extend([option.to_owned(), value.to_owned()]);
    }

    fn blockdev(&mut self, node: &Value) {
        self.add("-blockdev", &node.to_string());
    }
}

fn base_arguments(spec: &MachineSpec, arguments: &mut Arguments) {
    arguments.0.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
    arguments.add("-sandbox", SANDBOX);
    arguments.add("-name", &spec.name.replace(',', ",,"));
    arguments.add("-machine", "q35,vmport=off");
    arguments.0.extend(spec.accelerator.arguments().map(str::to_owned));
    arguments.add("-smp", &spec.hardware.processors.to_string());
    arguments.add("-m", &format!("{}M", spec.hardware.memory_mib));
    arguments.add("-boot", "strict=on");
    // A clock that runs on while the guest is held would jump; held guests find their own time again.
    arguments.add("-rtc", "base=utc,clock=vm");
    arguments.add("-object", "rng-builtin,id=rng0");
}

fn disk_arguments(disk: &DiskSpec, arguments: &mut Arguments) {
    let base = node_name(disk.role, NodeKind::Base, 0);
    let mut below = match &disk.backing {
        Backing::None => None,
        Backing::Nbd(export) => Some(blockdev::nbd(&base, export)),
        Backing::File(path) => Some(blockdev::raw_base(&base, path)),
    }
    .map(|node| {
        arguments.blockdev(&node);
        base
    });
    let frozen = disk.layers.len().saturating_sub(1);
    for (number, path) in (0u32..).zip(&disk.layers) {
        let read_only = (number as usize) < frozen;
        let file = node_name(disk.role, NodeKind::File, number);
        let layer = node_name(disk.role, NodeKind::Layer, number);
        arguments.blockdev(&blockdev::file(&file, path, read_only));
        arguments.blockdev(&blockdev::layer(&layer, &file, below.as_deref(), read_only));
        below = Some(layer);
    }
    let mut device = json!({
        "driver": "virtio-blk-pci",
        "id": disk.role.name(),
        "drive": below,
        "serial": disk.role.name(),
        // A full disk of this computer holds the guest until there is room; it never loses a write.
        "werror": "stop",
        "rerror": "stop",
    });
    if disk.role == DiskRole::System {
        device["bootindex"] = json!(0);
    }
    arguments.add("-device", &device.to_string());
}

fn channel_arguments(spec: &MachineSpec, arguments: &mut Arguments) {
    for (id, path) in [("qmp", &spec.sockets.qmp), ("agent", &spec.sockets.agent)] {
        let path = escaped(path);
        arguments.add("-chardev", &format!("socket,id={id},path={path},server=on,wait=off"));
    }
    arguments.add("-mon", "chardev=qmp,mode=control");
    arguments.add("-device", &json!({ "driver": "virtio-serial-pci" }).to_string());
    let port = json!({
        "driver": "virtserialport",
        "chardev": "agent",
        "name": "org.qemu.guest_agent.0",
    });
    arguments.add("-device", &port.to_string());
    // Appending lets the log be cut while QEMU writes to it.
    let serial = escaped(&spec.serial_log);
    arguments.add("-chardev", &format!("file,id=serial,path={serial},append=on"));
    let device = json!({ "driver": "isa-serial", "chardev": "serial" });
    arguments.add("-device", &device.to_string());
}

/// Returns a path as QEMU's `key=value` lists want it.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests;
