//! What the two daemons share: logs on stderr, a sign when they are ready, and a clean end.
//!
//! A script waits for the one line on stdout, for the ready file, or, under systemd, for `READY=1`. Nothing but that
//! line goes to stdout.

use std::io::{IsTerminal as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use clap::Args;
use collective_model::{ErrorKind, IoResultExt as _, Result, ResultExt as _};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::output::Output;

/// What both daemons take.
#[derive(Args, Clone, Debug)]
pub struct DaemonArguments {
    /// Write this file when ready, with the facts as a JSON object; removed at the end
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// What to log: `error`, `warn`, `info`, `debug`, `trace`, or by part: `warn,collective_host=debug`
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "info",
        env = "COLLECTIVE_LOG",
        hide_env_values = true
    )]
    log: String,
}

/// A daemon that has said that it is ready; takes the ready file away when dropped.
pub struct Ready {
    file: Option<PathBuf>,
}

impl DaemonArguments {
    /// Sends the logs of this process to stderr.
    pub fn start_log(&self) -> Result<()> {
        let filter = EnvFilter::try_new(&self.log)
            .or_error(ErrorKind::Invalid, || format!("`{}` is not a filter of logs", self.log))?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .try_init()
            .or_error(ErrorKind::Internal, || "cannot set up the log".to_owned())
    }

    /// Tells whoever waits that the daemon is ready: `facts` to programs, `line` to people.
    pub fn ready<T: Serialize>(&self, output: &Output, facts: &T, line: String) -> Result<Ready> {
        if let Some(path) = &self.ready_file {
            write_whole(path, facts)?;
        }
        output.say("ready", facts, || line);
        output.checked()?;
        if let Some(socket) = std::env::var_os("NOTIFY_SOCKET") {
            notify(socket.as_bytes())
                .or_io(|| "cannot tell the service manager that we are ready".to_owned())?;
        }
        Ok(Ready { file: self.ready_file.clone() })
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if let Some(path) = &self.file {
            // If it stays, whoever waits sees an old process id in it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Waits until somebody wants the daemon to end: SIGTERM, or Ctrl-C.
pub async fn told_to_stop() -> Result<()> {
    let cannot = || "cannot wait for signals".to_owned();
    let mut terminate = signal(SignalKind::terminate()).or_io(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).or_io(cannot)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// A reader of the ready file sees all of it or none.
fn write_whole<T: Serialize>(path: &Path, facts: &T) -> Result<()> {
    let cannot = || format!("cannot write the ready file `{}`", path.display());
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut file =
        tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new("."))).or_io(cannot)?;
    let text = serde_json::to_string(facts).or_error(ErrorKind::Internal, cannot)?;
    writeln!(file, "{text}").or_io(cannot)?;
    file.persist(path).map_err(|failed| failed.error).or_io(cannot)?;
    Ok(())
}

/// Speaks the one word of sd_notify(3) that we need; a name that begins with `@` is abstract.
fn notify(name: &[u8]) -> std::io::Result<()> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(Path::new(std::ffi::OsStr::from_bytes(name)))?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::net::UnixDatagram;

    use super::{Ready, notify, write_whole};

    #[test]
    fn the_ready_file_is_one_object_and_goes_with_the_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready.json");
        write_whole(&path, &serde_json::json!({ "pid": 7 })).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"pid\":7}\n");
        drop(Ready { file: Some(path.clone()) });
        assert!(!path.exists());
    }

    #[test]
    fn the_service_manager_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        notify(path.as_os_str().as_bytes()).unwrap();
        let mut word = [0; 16];
        let length = manager.recv(&mut word).unwrap();
        assert_eq!(&word[..length], b"READY=1");
    }
}
