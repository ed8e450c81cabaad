//! A private PostgreSQL: of the tests of this crate, and of those of the built command.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

const POSTGRES: &str = "/usr/lib/postgresql/15/bin";

/// A PostgreSQL of our own: a cluster in a directory of its own, reached by its Unix socket only.
pub struct Cluster {
    dir: PathBuf,
    databases: AtomicU32,
}

impl Cluster {
    /// Returns the cluster that running tests share, or makes it.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Self::create());
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    fn create() -> Self {
        let dir = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap().keep();
        let cluster = Self { dir, databases: AtomicU32::new(0) };
        run(Command::new("chown").arg("postgres").arg(&cluster.dir));
        let data = cluster.dir.join("data");
        let flags = ["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"];
        run(as_postgres("initdb").args(flags).arg("-D").arg(&data));
        let options = format!(
            "-c listen_addresses='' -c fsync=off -c unix_socket_directories={}",
            cluster.dir.display()
        );
        let log = cluster.dir.join("log");
        run(as_postgres("pg_ctl")
            .args(["start", "-w", "-D"])
            .arg(&data)
            .arg("-l")
            .arg(log)
            .args(["-o", &options]));
        cluster
    }

    /// Makes an empty database; returns its URL.
    pub fn new_database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        run(as_postgres("createdb").arg("-h").arg(&self.dir).arg(&name));
        let host = self.dir.to_str().unwrap().replace('/', "%2F");
        format!("postgres://postgres@{host}/{name}")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let data = self.dir.join("data");
        let _ = as_postgres("pg_ctl").args(["stop", "-m", "immediate", "-D"]).arg(data).output();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn as_postgres(program: &str) -> Command {
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(format!("{POSTGRES}/{program}")).current_dir("/tmp");
    command
}

fn run(command: &mut Command) {
    let Output { status, stderr, .. } = command
        .stdout(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
}
