//! Where the host keeps what: durable things in its directory, sockets and sessions in its runtime directory.
//!
//! ```text
//! <dir>/lock  host.json  host.key  cache/  replicas/<repository>/
//!       users/<user>/account.json  profile.json
//!       users/<user>/<appliance>/instance.json  subscription.json  hold.json  reports.json  layers/  kept/  serial.log
//! <runtime>/host.lock  host.sock  sessions/<user>.json  m/<8 hex>/{qmp,agent,vnc,nbd}.sock  pid
//! ```

use std::path::{Path, PathBuf};

use collective_model::{ApplianceName, Error, ErrorKind, RepositoryId, Result, UserName};

/// Bytes of the longest socket path that Linux takes, less its final zero and some air.
const SOCKET_PATH_BYTES: usize = 100;

/// The two directories of a host.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) dir: PathBuf,
    pub(crate) runtime: PathBuf,
}

impl Paths {
    /// Checks that sockets below the runtime directory have paths that Linux takes.
    pub(crate) fn check(&self) -> Result<()> {
        let longest = self.machine("").join("agent.sock").as_os_str().len() + 8;
        if longest < SOCKET_PATH_BYTES {
            return Ok(());
        }
        let message =
            format!("the runtime directory's path {} is too long", self.runtime.display());
        Err(Error::new(ErrorKind::Invalid, message)
            .with_hint("sockets need paths under 100 bytes: choose a shorter --runtime-dir"))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.runtime.join("host.sock")
    }

    pub(crate) fn sessions(&self) -> PathBuf {
        self.runtime.join("sessions")
    }

    pub(crate) fn session(&self, user: &UserName) -> PathBuf {
        self.sessions().join(format!("{user}.json"))
    }

    pub(crate) fn settings(&self) -> PathBuf {
        self.dir.join("host.json")
    }

    pub(crate) fn host_key(&self) -> PathBuf {
        self.dir.join("host.key")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    pub(crate) fn replica(&self, repository: RepositoryId) -> PathBuf {
        self.dir.join("replicas").join(repository.to_string())
    }

    /// What was last heard of what is read most of an appliance.
    pub(crate) fn popularity(&self, repository: RepositoryId) -> PathBuf {
        self.replica(repository).join("popularity.json")
    }

    pub(crate) fn users(&self) -> PathBuf {
        self.dir.join("users")
    }

    pub(crate) fn account(&self, user: &UserName) -> PathBuf {
        self.users().join(user.as_str()).join("account.json")
    }

    pub(crate) fn profile(&self, user: &UserName) -> PathBuf {
        self.users().join(user.as_str()).join("profile.json")
    }

    pub(crate) fn instance(&self, user: &UserName, appliance: &ApplianceName) -> InstancePaths {
        let name = format!("{user}/{appliance}");
        let short = blake3::hash(name.as_bytes()).to_hex();
        InstancePaths {
            dir: self.users().join(user.as_str()).join(appliance.as_str()),
            runtime: self.machine(&short[..8]),
        }
    }

    fn machine(&self, short: &str) -> PathBuf {
        self.runtime.join("m").join(short)
    }
}

/// What one instance has on the host.
#[derive(Clone, Debug)]
pub(crate) struct InstancePaths {
    pub(crate) dir: PathBuf,
    pub(crate) runtime: PathBuf,
}

impl InstancePaths {
    pub(crate) fn record(&self) -> PathBuf {
        self.dir.join("instance.json")
    }

    pub(crate) fn subscription(&self) -> PathBuf {
        self.dir.join("subscription.json")
    }

    pub(crate) fn reports(&self) -> PathBuf {
        self.dir.join("reports.json")
    }

    pub(crate) fn hold(&self) -> PathBuf {
        self.dir.join("hold.json")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.dir.join("layers")
    }

    pub(crate) fn user_layer(&self, number: u64) -> PathBuf {
        self.layers().join(user_layer_name(number))
    }

    pub(crate) fn system_layer(&self) -> PathBuf {
        self.layers().join("system.qcow2")
    }

    pub(crate) fn ephemeral_layer(&self) -> PathBuf {
        self.layers().join("ephemeral.qcow2")
    }

    pub(crate) fn kept(&self) -> PathBuf {
        self.dir.join("kept")
    }

    pub(crate) fn serial_log(&self) -> PathBuf {
        self.dir.join("serial.log")
    }

    pub(crate) fn export_socket(&self) -> PathBuf {
        self.runtime.join("nbd.sock")
    }

    pub(crate) fn runtime_file(&self, name: &str) -> PathBuf {
        self.runtime.join(name)
    }
}

/// The file name of a layer of the user disk.
pub(crate) fn user_layer_name(number: u64) -> String {
    format!("user-{number}.qcow2")
}

/// Reads the number out of a layer's file name.
pub(crate) fn user_layer_number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("user-")?.strip_suffix(".qcow2")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Paths, user_layer_name, user_layer_number};

    #[test]
    fn a_runtime_directory_too_deep_for_sockets_is_refused() {
        let paths = |runtime: String| Paths { dir: "/d".into(), runtime: runtime.into() };
        assert!(paths("/run/collective".to_owned()).check().is_ok());
        assert!(paths(format!("/{}", "x".repeat(80))).check().is_err());
    }

    #[test]
    fn a_layer_is_known_by_its_file() {
        assert_eq!(user_layer_number(user_layer_name(12).as_ref()), Some(12));
        assert_eq!(user_layer_number("user-x.qcow2".as_ref()), None);
    }
}
