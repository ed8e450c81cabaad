//! The `tiny` appliance on its own disks: its agent, its screen, its power button and what it says on the serial port.

use std::fs;
use std::path::Path;
use std::time::Duration;

use collective_model::{DiskRole, ErrorKind};
use collective_vm::agent::{Agent, Exec};
use collective_vm::image::build_cached;
use collective_vm::layer;
use collective_vm::process::{self, Machine};
use collective_vm::qemu::Qemu;
use collective_vm::spec::MachineSpec;
use tokio::io::AsyncReadExt;

use crate::scene::{Scene, ended, until};

struct Tiny {
    spec: MachineSpec,
    machine: Machine,
    // Last: it ends the machine.
    _scene: Scene,
}

impl Tiny {
    async fn launch() -> Self {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../appliances/tiny");
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("appliances");
        let built = build_cached(&recipe, &cache).await.unwrap();
        let scene = Scene::new();
        let home = built.user.unwrap();
        let images = [(DiskRole::System, built.system.as_path()), (DiskRole::User, &home)];
        let spec = scene.machine(built.hardware, &images).await;
        let machine = process::launch(&Qemu::discover().await.unwrap(), &spec).await.unwrap();
        Self { spec, machine, _scene: scene }
    }

    /// Returns what the guest has said so far.
    fn said(&self) -> Vec<String> {
        let log = fs::read(&self.spec.serial_log).unwrap();
        let log = String::from_utf8_lossy(&log);
        let said = log.lines().filter_map(|line| Some(line.split_once("tiny: ")?.1));
        said.map(|text| text.trim_end().to_owned()).collect()
    }

    async fn says(&self, text: &str) {
        until(|| self.said().iter().any(|line| line == text)).await;
    }

    /// Returns the agent, once it is there.
    async fn agent(&self) -> Agent {
        let agent = Agent::new(&self.spec.sockets.agent);
        let there = async { while agent.ping().await.is_err() {} };
        tokio::time::timeout(Duration::from_secs(120), there).await.unwrap();
        agent
    }
}

fn shell(script: &str, input: &[u8]) -> Exec {
    let arguments = ["-c", script].map(str::to_owned).to_vec();
    Exec { path: "/bin/sh".to_owned(), arguments, input: input.to_vec() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_obeys_its_agent_and_shows_its_screen() {
    let tiny = Tiny::launch().await;
    let mut greeting = [0; 12];
    let mut screen = tokio::net::UnixStream::connect(&tiny.spec.sockets.vnc).await.unwrap();
    screen.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"RFB 003.008\n");
    tiny.says("ready").await;
    assert_eq!(tiny.said(), ["version 1", "changed nothing", "home", "ready"]);
    let agent = tiny.agent().await;
    programs(&agent).await;
    files(&agent).await;
    agent.shutdown().await.unwrap();
    ended(&tiny.machine.process).await;
    assert_eq!(tiny.said()[4..], ["stopping: agent", "stopped"]);
    assert_eq!(agent.ping().await.unwrap_err().kind(), ErrorKind::Unavailable);
    for disk in &tiny.spec.disks {
        layer::check(&disk.layers[0]).await.unwrap();
        assert!(!layer::map(&disk.layers[0]).await.unwrap().is_empty());
    }
}

async fn programs(agent: &Agent) {
    let minute = Duration::from_secs(60);
    let script = "cat; echo oops >&2; exit 3";
    let result = agent.exec(&shell(script, b"hello"), minute).await.unwrap();
    assert_eq!((result.exit_code, result.truncated), (3, false));
    assert_eq!(
        (result.output.as_slice(), result.errors.as_slice()),
        (&b"hello"[..], &b"oops\n"[..])
    );
    let killed = agent.exec(&shell("kill -9 $$", b""), minute).await.unwrap();
    assert_eq!(killed.exit_code, 137);
    let missing = Exec { path: "/bin/missing".to_owned(), ..Exec::default() };
    assert_eq!(agent.exec(&missing, minute).await.unwrap_err().kind(), ErrorKind::NotFound);
    let endless = agent.exec(&shell("sleep 1000", b""), Duration::ZERO).await.unwrap_err();
    assert_eq!(endless.kind(), ErrorKind::Unavailable);
    agent.ping().await.unwrap();
}

async fn files(agent: &Agent) {
    // More than goes in one question.
    let content: Vec<u8> = (0..100_000u32).map(|at| (at % 251) as u8).collect();
    agent.write_file("/home/note", &content).await.unwrap();
    assert!(agent.read_file("/home/note", content.len()).await.unwrap() == content);
    let longer = agent.read_file("/home/note", content.len() - 1).await.unwrap_err();
    assert_eq!(longer.kind(), ErrorKind::Invalid);
    agent.write_file("/home/note", b"short").await.unwrap();
    assert_eq!(agent.read_file("/home/note", 100).await.unwrap(), b"short");
    for path in ["/home/missing", "/missing/note"] {
        assert_eq!(agent.read_file(path, 100).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert!(agent.write_file("/missing/note", b"").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_power_button_ends_a_guest() {
    let tiny = Tiny::launch().await;
    let mut events = tiny.machine.qmp.events();
    tiny.says("ready").await;
    // It says that it is ready before it listens to the button; one pressed too early does nothing.
    let press = async {
        while tiny.machine.qmp.press_power().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let shutdown = async {
        while let Some(event) = events.next().await {
            if event.name == "SHUTDOWN" {
                return event.data;
            }
        }
        panic!("the monitor went away without a word");
    };
    let told = async { tokio::join!(press, shutdown).1 };
    let data = tokio::time::timeout(Duration::from_secs(180), told).await.unwrap();
    assert_eq!((&data["guest"], &data["reason"]), (&true.into(), &"guest-shutdown".into()));
    ended(&tiny.machine.process).await;
    assert_eq!(tiny.said()[4..], ["stopping: button", "stopped"]);
}
