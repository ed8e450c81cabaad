//! A stage: a server and computers, each with a directory, and the built command that is typed on them.
//!
//! The demo and the whole-system tests play here. Daemons are processes of the real command; they can be stopped,
//! killed and started again under their name. Whatever happens, a stage that is dropped ends what it started, guests
//! included: those are found by the stage's own directories among their arguments.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// How long a daemon may take to come up.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long a daemon may take to go.
const STOP_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Everything that a story runs on.
pub struct Stage {
    command: PathBuf,
    directory: PathBuf,
    /// Sockets have short paths: the system allows 107 bytes.
    runtime: PathBuf,
    daemons: BTreeMap<String, Daemon>,
}

/// A daemon of the stage.
struct Daemon {
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    child: Option<Child>,
}

/// Where a server is and how it is known.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its URL.
    pub url: String,
    /// Of its certificate authority.
    pub fingerprint: String,
}

/// What a typed command came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    /// The objects that it wrote, one a line.
    pub lines: Vec<Value>,
    /// What it complained.
    pub stderr: String,
}

impl Outcome {
    /// The last object; null if there was none.
    #[must_use]
    pub fn last(&self) -> Value {
        self.lines.last().cloned().unwrap_or(Value::Null)
    }
}

impl Stage {
    /// Makes an empty stage in two directories that it may use as it likes; that of the sockets is for its user alone.
    ///
    /// # Errors
    /// If they cannot be made, or if the sockets' belongs to somebody else.
    pub fn set(command: PathBuf, directory: PathBuf, runtime: PathBuf) -> Result<Self> {
        let cannot = |path: &Path| format!("cannot make {}", path.display());
        std::fs::create_dir_all(&directory).with_context(|| cannot(&directory))?;
        let mut private = std::fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&runtime).with_context(|| cannot(&runtime))?;
        // In a directory that all may write to, the name may have been taken by another.
        std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("{} belongs to somebody else", runtime.display()))?;
        Ok(Self { command, directory, runtime, daemons: BTreeMap::new() })
    }

    /// A path in the stage's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The built command.
    #[must_use]
    pub fn command(&self) -> &Path {
        &self.command
    }

    /// How the server's administrator says where to talk.
    #[must_use]
    pub fn admin_server(&self) -> String {
        format!("unix:{}", self.path("server/admin.sock").display())
    }

    /// The runtime directory of a computer.
    #[must_use]
    pub fn runtime(&self, host: &str) -> PathBuf {
        self.runtime.join(host)
    }

    /// The socket of a computer's daemon.
    #[must_use]
    pub fn host_socket(&self, host: &str) -> PathBuf {
        self.runtime(host).join("host.sock")
    }

    /// Starts the server on a free port of this computer.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_server(&mut self) -> Result<Server> {
        self.start_server_on("127.0.0.1:0")
    }

    /// Starts the server on an address.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_server_on(&mut self, listen: &str) -> Result<Server> {
        self.start_server_with(listen, &[])
    }

    /// Starts the server on an address with further options.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_server_with(&mut self, listen: &str, more: &[&str]) -> Result<Server> {
        let directory = self.path("server");
        let words: [&OsStr; 6] = [
            "--json".as_ref(),
            "serve".as_ref(),
            "--dir".as_ref(),
            directory.as_ref(),
            "--listen".as_ref(),
            listen.as_ref(),
        ];
        let words: Vec<&OsStr> = words.into_iter().chain(more.iter().map(OsStr::new)).collect();
        let ready = self.start_daemon("server", &words)?;
        let text = |name: &str| {
            ready[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {ready}"))
        };
        Ok(Server { url: text("url")?, fingerprint: text("fingerprint")? })
    }

    /// Starts the daemon of a computer.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_host(&mut self, host: &str) -> Result<()> {
        self.start_host_with(host, &[])
    }

    /// Starts the daemon of a computer with further options.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_host_with(&mut self, host: &str, more: &[&str]) -> Result<()> {
        let (directory, runtime) = (self.path(host), self.runtime(host));
        let words: [&OsStr; 6] = [
            "--json".as_ref(),
            "host".as_ref(),
            "--dir".as_ref(),
            directory.as_ref(),
            "--runtime-dir".as_ref(),
            runtime.as_ref(),
        ];
        let words: Vec<&OsStr> = words.into_iter().chain(more.iter().map(OsStr::new)).collect();
        self.start_daemon(host, &words).map(drop)
    }

    /// Starts a daemon and waits until it says that it is ready; returns what it said.
    ///
    /// # Errors
    /// If it ends, or is not ready in time.
    pub fn start_daemon(&mut self, name: &str, words: &[&OsStr]) -> Result<Value> {
        let arguments = words.iter().map(|word| (*word).to_owned()).collect();
        let daemon = Daemon { arguments, environment: Vec::new(), child: None };
        self.daemons.insert(name.to_owned(), daemon);
        self.start_again(name)
    }

    /// Gives a daemon a variable for its next starts.
    ///
    /// # Errors
    /// If there is no such daemon.
    pub fn set_environment(&mut self, name: &str, variable: &str, value: &str) -> Result<()> {
        let daemon = self.daemons.get_mut(name).with_context(|| format!("no daemon {name}"))?;
        daemon.environment.push((variable.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Starts a daemon that was stopped or killed, as it was started before.
    ///
    /// # Errors
    /// As [`start_daemon`](Self::start_daemon).
    pub fn start_again(&mut self, name: &str) -> Result<Value> {
        let ready = self.path(&format!("{name}.ready"));
        if ready.exists() {
            std::fs::remove_file(&ready)?;
        }
        let log_path = self.path(&format!("{name}.log"));
        let log = std::fs::File::options().create(true).append(true).open(&log_path)?;
        let daemon = self.daemons.get_mut(name).with_context(|| format!("no daemon {name}"))?;
        let child = Command::new(&self.command)
            .args(&daemon.arguments)
            .envs(daemon.environment.iter().map(|(name, value)| (name, value)))
            .arg("--ready-file")
            .arg(&ready)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let child = daemon.child.insert(child);
        let limit = Instant::now() + READY_LIMIT;
        loop {
            if let Ok(text) = std::fs::read_to_string(&ready)
                && text.ends_with('\n')
            {
                return serde_json::from_str(&text).context("what the daemon said when ready");
            }
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(&log_path).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                bail!("the daemon {name} ended with {status}: {tail:?}");
            }
            if Instant::now() > limit {
                bail!("the daemon {name} is not ready after {READY_LIMIT:?}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Stops a daemon as an administrator would, and waits for its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop_daemon(&mut self, name: &str) -> Result<()> {
        self.end_daemon(name, "TERM")
    }

    /// Kills a daemon at once.
    ///
    /// # Errors
    /// If it does not end.
    pub fn kill_daemon(&mut self, name: &str) -> Result<()> {
        self.end_daemon(name, "KILL")
    }

    fn end_daemon(&mut self, name: &str, signal_name: &str) -> Result<()> {
        let daemon = self.daemons.get_mut(name).with_context(|| format!("no daemon {name}"))?;
        let Some(mut child) = daemon.child.take() else { return Ok(()) };
        signal(child.id(), signal_name);
        let limit = Instant::now() + STOP_LIMIT;
        while child.try_wait()?.is_none() {
            if Instant::now() > limit {
                child.kill()?;
                child.wait()?;
                bail!("the daemon {name} does not end on SIG{signal_name}");
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Types a command for the server's administrator; returns the last object that it answered with.
    ///
    /// # Errors
    /// If the command fails.
    pub fn admin(&self, words: &[&str]) -> Result<Value> {
        succeed(words, &self.try_admin(words)?)
    }

    /// Types a command for the server's administrator that may fail.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn try_admin(&self, words: &[&str]) -> Result<Outcome> {
        self.run(&[words, &["--server", &self.admin_server()]].concat())
    }

    /// Types a command on a computer; returns the last object that it answered with.
    ///
    /// # Errors
    /// If the command fails.
    pub fn on(&self, host: &str, words: &[&str]) -> Result<Value> {
        succeed(words, &self.try_on(host, words)?)
    }

    /// Types a command on a computer that may fail.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn try_on(&self, host: &str, words: &[&str]) -> Result<Outcome> {
        let socket = self.host_socket(host);
        let socket = socket.to_str().context("the runtime directory is not UTF-8")?;
        self.run(&[&["--host", socket], words].concat())
    }

    /// Runs a shell line in a guest and returns what it wrote.
    ///
    /// # Errors
    /// If it cannot be run, or fails.
    pub fn guest(&self, host: &str, appliance: &str, line: &str) -> Result<String> {
        let reply = self.on(host, &["exec", appliance, "--", "/bin/sh", "-c", line])?;
        Ok(reply["stdout"].as_str().unwrap_or_default().trim().to_owned())
    }

    /// Waits until an appliance is off and its user disk is all backed up; returns the disk's version.
    ///
    /// # Errors
    /// If that takes longer than `limit`.
    pub fn wait_until_safe(&self, host: &str, appliance: &str, limit: Duration) -> Result<u64> {
        let end = Instant::now() + limit;
        loop {
            let status = self.on(host, &["status", appliance])?;
            let disk = &status["user_disk"];
            if disk["backlog_bytes"] == 0 && status["state"] == "off" {
                return disk["version"].as_u64().with_context(|| format!("no version: {status}"));
            }
            if Instant::now() > end {
                bail!("`{appliance}` is not off and backed up after {limit:?}: {status}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Types any command.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn run(&self, words: &[&str]) -> Result<Outcome> {
        // In front, because what follows `--` is a guest's own command.
        let output = Command::new(&self.command)
            .arg("--json")
            .args(words)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.command.display()))?;
        let lines = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        Ok(Outcome {
            code: output.status.code().unwrap_or(-1),
            lines,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The processes of the command and of QEMU whose arguments name one of the stage's directories.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let own = std::process::id();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(pid) = pid.filter(|pid| *pid != own) else { continue };
            let Ok(arguments) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let arguments = String::from_utf8_lossy(&arguments);
            let named = [&self.directory, &self.runtime]
                .iter()
                .any(|path| arguments.contains(&format!("{}/", path.display())));
            let program = arguments.split('\0').next().unwrap_or_default();
            if named && (Path::new(program) == self.command || program.contains("qemu-")) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// Ends everything that was started here.
    ///
    /// # Errors
    /// If something does not end.
    pub fn close(&mut self) -> Result<()> {
        let names: Vec<String> = self.daemons.keys().cloned().collect();
        let stopped: Vec<Result<()>> = names.iter().map(|name| self.stop_daemon(name)).collect();
        self.end_all()?;
        stopped.into_iter().collect()
    }

    /// Lets everything run on after the stage is gone.
    pub fn leave_running(&mut self) {
        self.daemons.clear();
    }

    /// Kills what still runs in the stage's directories, guests included.
    ///
    /// # Errors
    /// If something does not end.
    pub fn end_all(&self) -> Result<()> {
        let limit = Instant::now() + STOP_LIMIT;
        loop {
            let left = self.processes()?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > limit {
                bail!("cannot end the processes {left:?}");
            }
            left.iter().for_each(|pid| signal(*pid, "KILL"));
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.daemons.is_empty() {
            // Nobody is left to tell; what matters is that nothing runs on.
            let _ = self.close();
        }
    }
}

fn succeed(words: &[&str], outcome: &Outcome) -> Result<Value> {
    if outcome.code == 0 {
        return Ok(outcome.last());
    }
    let (code, last) = (outcome.code, outcome.last());
    bail!("`collective {}` ended with {code}: {last} {}", words.join(" "), outcome.stderr)
}

fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::Stage;

    #[test]
    fn the_directory_of_the_sockets_is_for_its_user_alone() {
        let directory = std::env::temp_dir().join(format!("xtask-stage-{}", std::process::id()));
        let runtime = directory.join("r");
        std::fs::create_dir_all(&runtime).unwrap();
        std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o755)).unwrap();
        Stage::set("collective".into(), directory.clone(), runtime.clone()).unwrap();
        let mode = runtime.metadata().unwrap().permissions().mode();
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(mode & 0o777, 0o700);
    }
}
