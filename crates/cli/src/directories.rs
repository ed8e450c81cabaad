//! Where things are unless a flag or the environment says otherwise. Pure but for [`Directories::of_process`].
//!
//! ```text
//!          as root                        as anybody else
//! server   /var/lib/collective-server     ~/.local/share/collective/server
//! host     /var/lib/collective            ~/.local/share/collective/host
//! keys     /var/lib/collective-keys       ~/.local/share/collective/keys
//! runtime  /run/collective                $XDG_RUNTIME_DIR/collective, or <host>/run without it
//! ```
//!
//! `COLLECTIVE_RUNTIME_DIR` moves the last one, for the daemon and for who looks for it alike.

use std::path::PathBuf;

/// The default directories of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// State of `collective serve`.
    pub server: PathBuf,
    /// State of `collective host`: cache, layers, keys.
    pub host: PathBuf,
    /// Signing keys of the appliances that are published from here.
    pub keys: PathBuf,
    /// Sockets and sessions of `collective host`; gone after a reboot.
    pub runtime: PathBuf,
}

/// What the defaults depend on.
#[derive(Clone, Debug, Default)]
struct Surroundings {
    root: bool,
    home: Option<PathBuf>,
    data_home: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    /// What was said of our own runtime directory; the other is the system's.
    own_runtime_dir: Option<PathBuf>,
}

impl Directories {
    /// Returns the directories of whoever runs this process.
    pub fn of_process() -> Self {
        let path = |name: &str| {
            std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        Self::of(Surroundings {
            root: rustix::process::geteuid().is_root(),
            home: path("HOME"),
            data_home: path("XDG_DATA_HOME"),
            runtime_dir: path("XDG_RUNTIME_DIR"),
            own_runtime_dir: std::env::var_os("COLLECTIVE_RUNTIME_DIR")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
        })
    }

    /// The socket on which the host daemon listens.
    pub fn host_socket(&self) -> PathBuf {
        self.runtime.join("host.sock")
    }

    fn of(surroundings: Surroundings) -> Self {
        let own_runtime_dir = surroundings.own_runtime_dir;
        if surroundings.root {
            return Self {
                server: "/var/lib/collective-server".into(),
                host: "/var/lib/collective".into(),
                keys: "/var/lib/collective-keys".into(),
                runtime: own_runtime_dir.unwrap_or_else(|| "/run/collective".into()),
            };
        }
        let home = surroundings.home.unwrap_or_else(|| "/".into());
        let data = surroundings.data_home.unwrap_or_else(|| home.join(".local/share"));
        let host = data.join("collective/host");
        let runtime = surroundings
            .runtime_dir
            .map_or_else(|| host.join("run"), |runtime| runtime.join("collective"));
        Self {
            server: data.join("collective/server"),
            host,
            keys: data.join("collective/keys"),
            runtime: own_runtime_dir.unwrap_or(runtime),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Directories, Surroundings};

    #[test]
    fn root_has_the_directories_of_the_system() {
        let root = Directories::of(Surroundings { root: true, ..Surroundings::default() });
        assert_eq!(root.host_socket().to_str(), Some("/run/collective/host.sock"));
    }

    #[test]
    fn the_runtime_directory_that_the_daemon_is_given_is_where_all_look() {
        for root in [true, false] {
            let told = Directories::of(Surroundings {
                root,
                runtime_dir: Some("/run/user/1000".into()),
                own_runtime_dir: Some("/run/c".into()),
                ..Surroundings::default()
            });
            assert_eq!(told.host_socket().to_str(), Some("/run/c/host.sock"));
        }
    }

    #[test]
    fn anybody_else_stays_in_their_home() {
        let surroundings =
            Surroundings { home: Some("/home/ann".into()), ..Surroundings::default() };
        let ann = Directories::of(surroundings.clone());
        assert_eq!(ann.server.to_str(), Some("/home/ann/.local/share/collective/server"));
        assert_eq!(ann.runtime, ann.host.join("run"));
        let ann = Directories::of(Surroundings {
            runtime_dir: Some("/run/user/1000".into()),
            ..surroundings
        });
        assert_eq!(ann.host_socket().to_str(), Some("/run/user/1000/collective/host.sock"));
    }
}
