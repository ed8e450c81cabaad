//! Who launches a machine may be killed, or stop waiting; and what a machine writes for ever does not fill the disk.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use collective_vm::process::{self, Machine, Process};
use collective_vm::qemu::Qemu;
use collective_vm::qmp::Qmp;

use crate::scene::{Daemon, Scene, ended, more_dots, recorded, until};

/// Tells a second run of this binary to be the launcher, in that directory.
const LAUNCHER: &str = "COLLECTIVE_TEST_LAUNCHER";
/// The launcher makes this file when it holds the machine.
const LAUNCHED: &str = "launched";

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_outlives_who_launched_it() {
    if let Some(directory) = std::env::var_os(LAUNCHER) {
        return launch_and_wait_for_the_end(directory.into()).await;
    }
    let scene = Scene::new();
    let name = "launch::a_machine_outlives_who_launched_it";
    let launcher = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(LAUNCHER, scene.directory())
        .stdout(Stdio::null())
        .spawn()
        .map(Daemon)
        .unwrap();
    until(|| scene.path(LAUNCHED).exists()).await;
    let log = scene.path("serial.log");
    more_dots(&log, 0).await;
    // SIGKILL: it can do nothing any more.
    drop(launcher);
    let seen = fs::metadata(&log).unwrap().len();
    let qmp_socket = scene.path("qmp.sock");
    let process = process::adopt(&scene.path("pid"), &qmp_socket).await.unwrap().unwrap();
    let qmp = Qmp::connect(&qmp_socket).await.unwrap();
    assert!(qmp.status().await.unwrap().running);
    more_dots(&log, seen).await;
    qmp.quit().await.unwrap();
    ended(&process).await;
}

async fn launch_and_wait_for_the_end(directory: PathBuf) {
    let scene = Scene::within(directory);
    let spec = scene.dots().await;
    let qemu = Qemu::discover().await.unwrap();
    let _machine = process::launch(&qemu, &spec).await.unwrap();
    fs::write(scene.path(LAUNCHED), "").unwrap();
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_given_up_leaves_no_machine() {
    let scene = Scene::new();
    let spec = scene.dots().await;
    let qemu = Qemu::discover().await.unwrap();
    tokio::select! {
        biased;
        _ = process::launch(&qemu, &spec) => panic!("QEMU comes up in no time"),
        () = std::future::ready(()) => {}
    }
    let identity = recorded(&spec.pid_file).expect("the process was not started");
    if let Some(process) = Process::open(identity) {
        ended(&process).await;
    }
    assert!(process::adopt(&spec.pid_file, &spec.sockets.qmp).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_writes_for_ever_is_cut_short() {
    const LIMIT_BYTES: u64 = 32 << 10;
    let scene = Scene::new();
    let spec = scene.dots().await;
    let qemu = Qemu::discover().await.unwrap();
    let Machine { process, .. } = process::launch(&qemu, &spec).await.unwrap();
    let log = &spec.serial_log;
    for _ in 0..3 {
        more_dots(log, LIMIT_BYTES).await;
        assert!(process::bound_log(log, LIMIT_BYTES).unwrap());
        // What was kept, and what came since, without a hole between them.
        let kept = fs::read(log).unwrap();
        assert!(kept.len() as u64 >= LIMIT_BYTES / 2);
        assert!(kept.iter().all(|&byte| byte == b'.'));
    }
    process.kill().await.unwrap();
    process::bound_log(log, 0).unwrap();
    assert_eq!(fs::metadata(log).unwrap().len(), 0);
}
