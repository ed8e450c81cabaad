//! The arguments of several machines, word for word, and what is refused.

use std::path::{Path, PathBuf};

use collective_model::{DiskRole, ErrorKind, Hardware};

use super::{Backing, DiskSpec, MachineSpec, NbdExport, Sockets, arguments};
use crate::accelerator::Accelerator;

fn machine() -> MachineSpec {
    let directory = Path::new("/run/collective/debian");
    MachineSpec {
        name: "debian".to_owned(),
        accelerator: Accelerator::Tcg,
        hardware: Hardware::default(),
        disks: vec![disk(DiskRole::System, &["system.qcow2"])],
        sockets: Sockets::within(directory),
        serial_log: directory.join("serial.log"),
        qemu_log: directory.join("qemu.log"),
        pid_file: directory.join("pid"),
    }
}

fn disk(role: DiskRole, layers: &[&str]) -> DiskSpec {
    let socket = PathBuf::from("/run/collective/nbd.sock");
    DiskSpec {
        role,
        backing: Backing::Nbd(NbdExport { socket, export: format!("debian-{role}") }),
        layers: layers.iter().map(|name| Path::new("/var/lib/collective").join(name)).collect(),
    }
}

/// One option with its value to a line.
fn text(machine: &MachineSpec) -> String {
    machine.check().unwrap();
    arguments(machine).join(" ").replace(" -", "\n-")
}

#[test]
fn a_machine_with_one_disk() {
    insta::assert_snapshot!(text(&machine()));
}

#[test]
fn a_machine_with_kvm_kept_layers_and_an_ephemeral_disk_and_no_network() {
    let mut machine = machine();
    machine.accelerator = Accelerator::Kvm;
    machine.hardware =
        Hardware { processors: 4, memory_mib: 4096, network: false, ephemeral_bytes: 1 };
    machine.disks.push(disk(DiskRole::User, &["user-7", "user-8", "user-9"]));
    let ephemeral = disk(DiskRole::Ephemeral, &["ephemeral"]);
    machine.disks.push(DiskSpec { backing: Backing::None, ..ephemeral });
    insta::assert_snapshot!(text(&machine));
}

#[test]
fn a_recorded_start_from_a_raw_file_with_commas_in_its_paths() {
    let mut machine = machine();
    machine.name = "a, b".to_owned();
    machine.serial_log = PathBuf::from("/tmp/a,b/serial");
    machine.disks[0].backing = Backing::File(PathBuf::from("/tmp/a,b/disk.raw"));
    insta::assert_snapshot!(text(&machine));
}

#[test]
fn machines_that_cannot_be_are_refused_by_name() {
    let changes: [fn(&mut MachineSpec); 5] = [
        |machine| machine.hardware.processors = 0,
        |machine| machine.disks.push(machine.disks[0].clone()),
        |machine| machine.disks[0].layers.clear(),
        |machine| machine.sockets.vnc = PathBuf::from("/x".repeat(60)),
        |machine| machine.disks[0].layers = vec![PathBuf::from("relative")],
    ];
    for change in changes {
        let mut machine = machine();
        change(&mut machine);
        let error = machine.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().starts_with("machine `debian`: "), "{error}");
    }
}
