//! The recorded start: boots images once on throwaway layers and notes what is touched.
//!
//! Everything it makes lies in a temporary directory that goes with it, and QEMU is killed if this is dropped half way.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use collective_disk::{Export, Heard, RawFile, Recorder, Source};
use collective_model::{ByteCount, DiskRole, Error, ErrorKind, IoResultExt, Result};
use collective_repository::Trace;
use collective_vm::agent::{Agent, Exec};
use collective_vm::process::{self, Process};
use collective_vm::qemu::Qemu;
use collective_vm::spec::{Backing, DiskSpec, MachineSpec, NbdExport, Sockets};
use collective_vm::{accelerator, layer};
use tokio::time::Instant;

use super::{Images, PublishOptions};

/// Pause between questions to an agent that does not answer yet.
const AGENT_PAUSE: Duration = Duration::from_millis(250);
/// How long the guest may take to shut down after it came up; nothing of it is needed any more.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);
/// How long an application may run; one that goes on longer has read by then what it needs to open.
const APPLICATION_LIMIT: Duration = Duration::from_secs(60);
/// Bytes of the serial log, or of what an application said, that become the cause of a failure.
const QUOTED_BYTES: usize = 600;

/// A recorded start that came up.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    /// What was touched, in the order of first touch.
    pub trace: Trace,
    /// Seconds until the guest's agent answered.
    pub boot_seconds: f64,
}

/// Ends a machine that nobody waits for any more; at once, because the program may be about to end.
struct Ending(Process);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Err(error) = self.0.start_kill() {
            tracing::warn!("the machine of a recorded start runs on: {}", error.chain());
        }
    }
}

/// Starts the images once and returns what that touched.
pub(super) async fn rehearse(images: &Images, options: &PublishOptions) -> Result<Rehearsal> {
    let qemu = Qemu::discover().await?;
    let probed = accelerator::probe(&qemu).await;
    // Sockets need short paths, layers need room: two directories.
    let sockets = tempfile::Builder::new()
        .prefix("collective-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .tempdir()
        .or_io(|| "cannot make a directory for the recorded start".to_owned())?;
    let work = tempfile::Builder::new()
        .prefix("rehearsal-")
        .tempdir_in(&options.work_dir)
        .or_io(|| format!("cannot make a directory in {}", options.work_dir.display()))?;
    let export = Export::bind(sockets.path().join("nbd.sock"))?;
    let (system, recorder) = record(&export, DiskRole::System, &images.system, work.path()).await?;
    let mut disks = vec![system];
    if let Some(user) = &images.user {
        disks.push(record(&export, DiskRole::User, user, work.path()).await?.0);
    }
    if images.hardware.ephemeral_bytes > 0 {
        let path = work.path().join("ephemeral.qcow2");
        layer::create(&path, images.hardware.ephemeral_bytes).await?;
        disks.push(DiskSpec {
            role: DiskRole::Ephemeral,
            backing: Backing::None,
            layers: vec![path],
        });
    }
    let spec = MachineSpec {
        name: "recorded-start".to_owned(),
        accelerator: probed.accelerator,
        hardware: images.hardware.clone(),
        disks,
        sockets: Sockets::within(sockets.path()),
        serial_log: work.path().join("serial.log"),
        qemu_log: work.path().join("qemu.log"),
        pid_file: work.path().join("pid"),
    };
    let began = Instant::now();
    let machine = process::launch(&qemu, &spec).await?;
    let ending = Ending(machine.process.clone());
    let agent = Agent::new(&spec.sockets.agent);
    wait_for_agent(&agent, &machine.process, options.start_limit, &spec.serial_log).await?;
    let boot_seconds = began.elapsed().as_secs_f64();
    for application in &options.applications {
        run(&agent, application).await?;
    }
    let trace = recorder.trace();
    // A polite end, so that the guest's last words are in its log; then the cord.
    if agent.shutdown().await.is_ok() {
        // It is killed either way.
        let _ = tokio::time::timeout(SHUTDOWN_LIMIT, machine.process.exited()).await;
    }
    machine.process.kill().await?;
    drop(ending);
    export.shutdown().await;
    Ok(Rehearsal { trace, boot_seconds })
}

/// Runs an application until it ends, or has run for long enough.
async fn run(agent: &Agent, command: &str) -> Result<()> {
    let arguments = vec!["-c".to_owned(), command.to_owned()];
    let exec = Exec { path: "/bin/sh".to_owned(), arguments, input: Vec::new() };
    match agent.exec(&exec, APPLICATION_LIMIT).await {
        Ok(ended) if ended.exit_code == 0 => Ok(()),
        Ok(ended) => {
            let message = format!("`{command}` ended with {} in the guest", ended.exit_code);
            Err(Error::new(ErrorKind::Invalid, message)
                .with_source(Error::new(ErrorKind::Invalid, last_words(&ended.errors))))
        }
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            tracing::info!("`{command}` runs on: {}", error.chain());
            Ok(())
        }
        Err(error) => Err(error.context(format!("cannot run `{command}` in the guest"))),
    }
}

/// Exports an image through a recorder, under a throwaway layer.
async fn record(
    export: &Export,
    role: DiskRole,
    image: &Path,
    work: &Path,
) -> Result<(DiskSpec, Arc<Recorder>)> {
    let raw = RawFile::open(image)?;
    let size_bytes = raw.size_bytes();
    let recorder = Arc::<Recorder>::default();
    let heard = Heard::new(Arc::new(raw), Arc::clone(&recorder));
    export.add(role.name(), Arc::new(heard))?;
    let path = work.join(format!("{role}.qcow2"));
    layer::create(&path, size_bytes).await.map_err(|error| {
        error.context(format!("cannot make a layer of {}", ByteCount(size_bytes)))
    })?;
    let backing = Backing::Nbd(NbdExport {
        socket: export.path().to_owned(),
        export: role.name().to_owned(),
    });
    Ok((DiskSpec { role, backing, layers: vec![path] }, recorder))
}

async fn wait_for_agent(
    agent: &Agent,
    process: &Process,
    limit: Duration,
    serial_log: &Path,
) -> Result<()> {
    let answered = async {
        while agent.ping().await.is_err() {
            tokio::time::sleep(AGENT_PAUSE).await;
        }
    };
    let what = tokio::select! {
        answered = tokio::time::timeout(limit, answered) => match answered {
            Ok(()) => return Ok(()),
            Err(_) => format!("its guest agent did not answer within {} s", limit.as_secs()),
        },
        () = process.exited() => "the machine ended before its guest agent answered".to_owned(),
    };
    let said = std::fs::read(serial_log).unwrap_or_default();
    let error = Error::new(ErrorKind::Invalid, format!("the image does not start: {what}"));
    Err(error.with_source(Error::new(ErrorKind::Invalid, last_words(&said))))
}

fn last_words(said: &[u8]) -> String {
    let last = String::from_utf8_lossy(&said[said.len().saturating_sub(QUOTED_BYTES)..]);
    match last.trim() {
        "" => "it said nothing".to_owned(),
        last => format!("its last words: {last}"),
    }
}
