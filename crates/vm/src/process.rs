//! The process of a machine: started so that it survives us, found again, and ended without ever hitting another.
//!
//! QEMU gets a session of its own, so neither our end nor a closed terminal ends it. A *pid file* holds its number together with
//! its start time and the boot it belongs to; all three must match before it is taken for ours, and signals go through
//! a pidfd, so a number that was given to another process since is never killed. A daemon that died between the start and
//! the file finds the process by its arguments, which hold the path of its monitor's socket.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use collective_model::{Error, ErrorKind, IoResultExt, Result, ResultExt};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::qemu::Qemu;
use crate::qmp::Qmp;
use crate::spec::{MachineSpec, arguments};

/// How long QEMU may take until its monitor answers. It opens its disks first, which on a busy computer takes seconds.
const LAUNCH_LIMIT: Duration = Duration::from_secs(60);
/// How often the monitor's socket is tried while QEMU comes up.
const LAUNCH_POLL: Duration = Duration::from_millis(20);
/// How long a killed process may take to go; one that hangs in the kernel may take longer, and is reported.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// Bytes of QEMU's own complaints that become the cause of an error.
const COMPLAINT_BYTES: u64 = 2 << 10;

/// A machine that was launched: its process and its monitor.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The process.
    pub process: Process,
    /// The monitor.
    pub qmp: Qmp,
}

/// A process that is ours beyond doubt; clones share it. Dropping it leaves the process alone.
#[derive(Clone, Debug)]
pub struct Process {
    identity: Identity,
    pidfd: Arc<AsyncFd<OwnedFd>>,
}

/// What tells one process from every other that had or will have its number; what the pid file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since the computer did.
    pub start_ticks: u64,
    /// Which start of the computer that counts from.
    pub boot_id: String,
}

/// Starts a machine, detached from us, and connects to its monitor. Its pid file is written before this waits for anything; one that
/// does not come up is killed, also when whoever launches it stops waiting.
///
/// # Errors
/// `Invalid` for a machine that cannot be; `Denied` when others may enter the sockets' directory; `Unavailable` with QEMU's own words
/// when it does not come up.
pub async fn launch(qemu: &Qemu, spec: &MachineSpec) -> Result<Machine> {
    spec.check()?;
    prepare_sockets(spec)?;
    let unfinished = Unfinished(Some(spawn(qemu, spec).await?));
    let answered = timeout(LAUNCH_LIMIT, first_answer(unfinished.process(), spec)).await;
    let error = match answered {
        Ok(Ok(qmp)) => return Ok(Machine { process: unfinished.finish(), qmp }),
        Ok(Err(error)) => error,
        Err(_) => failed(spec, &format!("did not come up within {} s", LAUNCH_LIMIT.as_secs())),
    };
    unfinished.process().kill().await?;
    Err(error)
}

/// A launch under way: dropped half-way, it leaves no process that nobody knows of.
struct Unfinished(Option<Process>);

impl Unfinished {
    fn process(&self) -> &Process {
        self.0.as_ref().expect("only `finish` takes it, and takes this with it")
    }

    fn finish(mut self) -> Process {
        self.0.take().expect("only this takes it, once")
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.as_ref().map(Process::start_kill) {
            tracing::warn!(%error, "a machine whose launch was given up runs on");
        }
    }
}

/// Finds the process that an earlier daemon started for a machine: by its pid file or, if that was never written, by the path of its
/// monitor's socket among its arguments. None if it does not run any more.
///
/// # Errors
/// `Internal` when `/proc` cannot be read.
pub async fn adopt(pid_file: &Path, qmp_socket: &Path) -> Result<Option<Process>> {
    let recorded = fs::read(pid_file).ok();
    let recorded: Option<Identity> = recorded.and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(process) = recorded.and_then(Process::open) {
        return Ok(Some(process));
    }
    let Some(process) = find(qmp_socket)?.and_then(Process::open) else {
        return Ok(None);
    };
    write_pid_file(pid_file, &process.identity)?;
    Ok(Some(process))
}

impl Process {
    /// Takes hold of a process; none if it has ended, or if its number is another's now.
    ///
    /// # Panics
    /// Outside a runtime of tokio.
    #[must_use]
    pub fn open(identity: Identity) -> Option<Self> {
        let pidfd = pidfd_open(Pid::from_raw(identity.pid)?, PidfdFlags::NONBLOCK).ok()?;
        // Looked at after the handle was taken: what has the recorded start now is what the handle holds.
        if identity_of(identity.pid)? != identity {
            return None;
        }
        Some(Self { identity, pidfd: Arc::new(watched(pidfd)?) })
    }

    /// Returns what tells it from every other.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Tells whether it has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        identity_of(self.identity.pid).as_ref() == Some(&self.identity)
    }

    /// Waits until it has ended.
    pub async fn exited(&self) {
        // Only a closed reactor fails here, and then nobody waits any more.
        let _ = self.pidfd.readable().await;
    }

    /// Kills it and waits until it has ended; fine if it had.
    ///
    /// # Errors
    /// `Unavailable` when it does not end; `Denied` when it is not ours to kill.
    pub async fn kill(&self) -> Result<()> {
        let pid = self.identity.pid;
        self.start_kill()?;
        timeout(KILL_LIMIT, self.exited()).await.or_error(ErrorKind::Unavailable, || {
            format!("process {pid} was killed and does not end")
        })
    }

    /// Kills it without waiting for its end; fine if it had ended.
    ///
    /// # Errors
    /// `Denied` when it is not ours to kill.
    pub fn start_kill(&self) -> Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => {
                let pid = self.identity.pid;
                Err(std::io::Error::from(error)).or_io(|| format!("cannot kill process {pid}"))
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "the new form is unsafe; this file descriptor is owned and never handed out to be closed"
)]
fn watched(pidfd: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE).ok()
}

/// Cuts a log that has grown beyond `limit_bytes` to its last half of that: a guest may write to its serial port for ever. Returns
/// whether it did. What is written just then may be lost.
///
/// # Errors
/// As the file system says.
pub fn bound_log(path: &Path, limit_bytes: u64) -> Result<bool> {
    let message = || format!("cannot cut {}", path.display());
    let mut log = match fs::File::options().read(true).append(true).open(path) {
        Ok(log) => log,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).or_io(message),
    };
    let size_bytes = log.metadata().or_io(message)?.len();
    if size_bytes <= limit_bytes {
        return Ok(false);
    }
    let kept = last_bytes(&mut log, limit_bytes / 2).or_io(message)?;
    // Whoever has it open appends, so both go on at the new end and neither leaves a hole.
    log.set_len(0).and_then(|()| log.write_all(&kept)).or_io(message)?;
    Ok(true)
}

/// Reads the end of a file.
fn last_bytes(file: &mut fs::File, count_bytes: u64) -> std::io::Result<Vec<u8>> {
    let size_bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(size_bytes.saturating_sub(count_bytes)))?;
    let mut bytes = Vec::new();
    file.take(count_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Makes sure that nobody else can enter the directory of the sockets, and that no stale socket is there.
fn prepare_sockets(spec: &MachineSpec) -> Result<()> {
    for socket in spec.sockets.all() {
        let Some(directory) = socket.parent() else { continue };
        let shown = directory.display();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .or_io(|| format!("cannot make {shown}"))?;
        let data = fs::metadata(directory).or_io(|| format!("cannot look at {shown}"))?;
        if data.permissions().mode() & 0o077 != 0 {
            return Err(Error::new(ErrorKind::Denied, format!("others may enter {shown}"))
                .with_hint(format!("chmod 700 {shown}")));
        }
        match fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).or_io(|| format!("cannot remove {}", socket.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Starts QEMU in a session of its own. `setsid` takes the session and then becomes QEMU, with the same process number.
async fn spawn(qemu: &Qemu, spec: &MachineSpec) -> Result<Process> {
    let log = private_file(&spec.qemu_log)?;
    let second = log.try_clone().or_io(|| format!("cannot share {}", spec.qemu_log.display()))?;
    private_file(&spec.serial_log)?;
    let mut child = Command::new("setsid")
        .args(without_capabilities())
        .arg(&qemu.program)
        .args(arguments(spec))
        // What is in our environment is nobody's business in a process that a guest may take over.
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(second)
        .spawn()
        .or_io(|| format!("cannot run {}", qemu.program.display()))?;
    let identity = child.id().and_then(|pid| identity_of(i32::try_from(pid).ok()?));
    let Some(process) = identity.and_then(Process::open) else {
        // It may live: a lack of file handles also ends here. Killing what has ended does nothing.
        let _ = child.start_kill();
        let _ = child.wait().await;
        return Err(failed(spec, "ended at once"));
    };
    // Our child as long as we live: somebody has to take note of its end.
    tokio::spawn(async move { child.wait().await });
    if let Err(error) = write_pid_file(&spec.pid_file, &process.identity) {
        process.kill().await?;
        return Err(error);
    }
    Ok(process)
}

/// What runs a program as root without what root may do beyond the files that are its own: a guest may take QEMU over.
fn without_capabilities() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() {
        &["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    } else {
        &[]
    }
}

/// Opens a log anew, for its owner only. Who writes appends, so that it can be cut (see [`bound_log`]).
fn private_file(path: &Path) -> Result<fs::File> {
    let log = fs::File::options().create(true).append(true).mode(0o600).open(path);
    log.and_then(|log| log.set_len(0).map(|()| log))
        .or_io(|| format!("cannot open {}", path.display()))
}

async fn first_answer(process: &Process, spec: &MachineSpec) -> Result<Qmp> {
    let connected = async {
        loop {
            match Qmp::connect(&spec.sockets.qmp).await {
                Ok(qmp) => return qmp,
                Err(_) => sleep(LAUNCH_POLL).await,
            }
        }
    };
    tokio::select! {
        biased;
        () = process.exited() => Err(failed(spec, "ended while it came up")),
        qmp = connected => Ok(qmp),
    }
}

fn failed(spec: &MachineSpec, how: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("QEMU of `{}` {how}", spec.name))
        .with_source(complaint(&spec.qemu_log))
}

/// Returns the last words of a log.
fn complaint(path: &Path) -> String {
    let text = fs::File::open(path).and_then(|mut log| last_bytes(&mut log, COMPLAINT_BYTES));
    let text = text.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().replace('\n', "; ");
    if text.is_empty() { format!("it left no word in {}", path.display()) } else { text }
}

/// Writes the pid file beside its name, then gives it its name, so that it is whole or not there.
fn write_pid_file(path: &Path, identity: &Identity) -> Result<()> {
    let message = || format!("cannot write {}", path.display());
    let text = serde_json::to_vec(identity)
        .or_error(ErrorKind::Internal, || "cannot write an identity as JSON".to_owned())?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(directory).or_io(message)?;
    file.write_all(&text).or_io(message)?;
    file.persist(path).map_err(|error| error.error).or_io(message)?;
    Ok(())
}

/// Reads what tells a process from others; none if it has ended, also if nobody has taken note of that yet.
fn identity_of(pid: i32) -> Option<Identity> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let start_ticks = start_of_living(&stat)?;
    Some(Identity { pid, start_ticks, boot_id: boot_id.trim().to_owned() })
}

/// Reads the start time from a line of `/proc/<pid>/stat`; none for a process that has ended.
fn start_of_living(stat: &str) -> Option<u64> {
    // The name before may hold anything, also blanks and brackets.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Finds a process of ours with the monitor's socket among its arguments.
fn find(qmp_socket: &Path) -> Result<Option<Identity>> {
    let wanted = format!("path={},", qmp_socket.display().to_string().replace(',', ",,"));
    let own = fs::metadata("/proc/self").or_io(|| "cannot read /proc".to_owned())?.uid();
    let entries = fs::read_dir("/proc").or_io(|| "cannot read /proc".to_owned())?;
    let found = entries
        .filter_map(|entry| {
            let path: PathBuf = entry.ok()?.path();
            let pid = path.file_name()?.to_str()?.parse().ok()?;
            (fs::metadata(&path).ok()?.uid() == own).then_some(())?;
            let arguments = fs::read(path.join("cmdline")).ok()?;
            let mut arguments = arguments.split(|&byte| byte == 0);
            arguments
                .any(|text| {
                    let text = String::from_utf8_lossy(text);
                    text.starts_with("socket,id=qmp,") && text.contains(&wanted)
                })
                .then_some(pid)
        })
        .find_map(identity_of);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::{Identity, Process, bound_log, identity_of, private_file, start_of_living};

    #[test]
    fn a_name_with_brackets_does_not_shift_the_start_time() {
        let after = "S 1 2 2 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
        assert_eq!(start_of_living(&format!("12 (a) b (c)) {after}")), Some(4711));
        assert_eq!(start_of_living("12 (a) Z 1 2 2 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 4711"), None);
        assert_eq!(start_of_living("nonsense"), None);
    }

    #[tokio::test]
    async fn a_number_that_is_anothers_now_is_not_ours() {
        let own = identity_of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(Process::open(own.clone()).unwrap().is_alive());
        for other in [
            Identity { start_ticks: own.start_ticks + 1, ..own.clone() },
            Identity { boot_id: "another boot".to_owned(), ..own },
        ] {
            assert!(Process::open(other).is_none());
        }
    }

    #[test]
    fn a_log_keeps_its_last_words_and_grows_on_without_a_hole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        assert!(!bound_log(&path, 8).unwrap());
        let mut writer = private_file(&path).unwrap();
        writer.write_all(b"12345678").unwrap();
        assert!(!bound_log(&path, 8).unwrap());
        writer.write_all(b"9").unwrap();
        assert!(bound_log(&path, 8).unwrap());
        writer.write_all(b"abc").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"6789abc");
        drop(private_file(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"");
    }
}
