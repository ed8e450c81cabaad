//! Images: what is converted and what is refused, and that the `tiny` appliance builds, boots and stops.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use collective_model::ErrorKind;
use collective_vm::image::{BuiltAppliance, build_cached, convert};

use crate::scene::Daemon;

/// A disk with a file system, 1 MiB and a sector long, and with data at its end.
fn disk(dir: &Path) -> PathBuf {
    let path = dir.join("disk.raw");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len((1 << 20) + 512).unwrap();
    file.write_all_at(b"\x55\xaa", 510).unwrap();
    file.write_all_at(&[7; 70_000], (1 << 20) - 80_000).unwrap();
    path
}

fn qemu_img(arguments: &[&str]) {
    assert!(Command::new("qemu-img").args(arguments).status().unwrap().success());
}

fn of_format(dir: &Path, format: &str) -> PathBuf {
    let path = dir.join(format!("disk,{format}"));
    let disk = disk(dir);
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        format,
        disk.to_str().unwrap(),
        path.to_str().unwrap(),
    ]);
    path
}

#[track_caller]
fn check_refused(error: &collective_model::Error, file: &Path, message: &str) {
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", error.chain());
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    assert!(error.chain().contains(message), "{}", error.chain());
}

#[tokio::test]
async fn every_format_becomes_the_same_sparse_raw_disk() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.raw");
    for format in ["raw", "qcow2", "vmdk", "vdi"] {
        let converted = convert(&of_format(dir.path(), format), &out).await.unwrap();
        assert_eq!(converted.format.name(), format);
        assert_eq!(converted.size_bytes, (1 << 20) + 4096);
        assert!(converted.allocated_bytes < 200_000, "{converted:?}");
        let mut expected = std::fs::read(disk(dir.path())).unwrap();
        expected.resize((1 << 20) + 4096, 0);
        assert!(std::fs::read(&out).unwrap() == expected, "{format}");
    }
}

#[tokio::test]
async fn a_file_cut_off_is_refused_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.raw");
    for format in ["qcow2", "vmdk", "vdi"] {
        let path = of_format(dir.path(), format);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let whole = file.metadata().unwrap().len();
        for length in [whole - 65_536, whole / 2, 600, 20] {
            file.set_len(length).unwrap();
            let error = convert(&path, &out).await.expect_err(&format!("{format} {length}"));
            check_refused(&error, &path, "");
        }
    }
    assert!(!out.exists());
    let left = std::fs::read_dir(dir.path()).unwrap().flatten();
    assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().starts_with('.')));
}

#[tokio::test]
async fn what_is_no_disk_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.raw");
    let file = dir.path().join("file");
    for (content, message) in [("", "empty"), ("some text\n", "not an image of a disk")] {
        std::fs::write(&file, content).unwrap();
        check_refused(&convert(&file, &out).await.unwrap_err(), &file, message);
    }
    let missing = convert(&dir.path().join("missing"), &out).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    check_refused(&convert(dir.path(), &out).await.unwrap_err(), dir.path(), "regular file");
}

#[tokio::test]
async fn a_layer_is_refused_before_its_base_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (base, layer) = (disk(dir.path()), dir.path().join("layer"));
    let (base, layer_name) = (base.to_str().unwrap(), layer.to_str().unwrap());
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, layer_name]);
    let error = convert(&layer, &dir.path().join("out.raw")).await.unwrap_err();
    check_refused(&error, &layer, "a qcow2 layer over another file");
}

/// A running guest; killed when it is dropped.
struct Guest {
    qemu: Daemon,
    console: BufReader<std::process::ChildStdout>,
    agent: UnixStream,
    _dir: tempfile::TempDir,
}

impl Guest {
    fn boot(built: &BuiltAppliance) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = |path: &Path| {
            format!("file={},format=raw,if=virtio,snapshot=on", path.to_str().unwrap())
        };
        let socket = dir.path().join("agent");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let mut qemu = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-machine", "pc", "-display", "none"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max,cx16=off", "-no-reboot"])
            .args(["-m", &built.hardware.memory_mib.to_string(), "-serial", "stdio"])
            .args(["-drive", &disk(&built.system), "-device", "virtio-serial-pci"])
            .args(["-drive", &disk(built.user.as_ref().unwrap())])
            .args(["-chardev", &format!("socket,id=agent,path={}", socket.to_str().unwrap())])
            .args(["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map(Daemon)
            .unwrap();
        let console = BufReader::new(qemu.0.stdout.take().unwrap());
        let agent = listener.accept().unwrap().0;
        agent.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { qemu, console, agent, _dir: dir }
    }

    /// Returns what the guest says up to and with the line that begins so.
    fn hear(&mut self, until: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let count = self.console.read_line(&mut line).unwrap();
            assert!(count > 0, "the guest ended before `{until}`: {lines:?}");
            let Some(at) = line.find("tiny: ") else { continue };
            lines.push(line[at..].trim_end().to_owned());
            if line[at..].starts_with(until) {
                return lines;
            }
        }
    }

    fn ask(&mut self, request: &str) -> String {
        writeln!(self.agent, "{request}").unwrap();
        let mut answer = String::new();
        BufReader::new(&self.agent).read_line(&mut answer).unwrap();
        answer
    }
}

#[tokio::test]
async fn tiny_boots_from_its_own_disk_and_stops_when_told() {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../appliances/tiny");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("appliances");
    let built = build_cached(&recipe, &cache).await.unwrap();
    let mut guest = Guest::boot(&built);
    assert_eq!(
        guest.hear("tiny: ready"),
        ["tiny: version 1", "tiny: changed nothing", "tiny: home", "tiny: ready"]
    );
    let answer = guest.ask(r#"{"execute":"guest-sync","arguments":{"id":7}}"#);
    assert!(answer.contains("7"), "{answer}");
    writeln!(guest.agent, r#"{{"execute":"guest-shutdown"}}"#).unwrap();
    assert_eq!(guest.hear("tiny: stopped"), ["tiny: stopping: agent", "tiny: stopped"]);
    assert!(guest.qemu.0.wait().unwrap().success());
}
