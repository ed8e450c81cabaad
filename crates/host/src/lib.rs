//! The daemon of a computer that caches and runs appliances.
//!
//! Read in this order: [`Host`] is what `collective host` starts; `http` takes the requests of its Unix socket; `instance`
//! has one owner task for each appliance of each user; `subscription` plans the life of a user disk and
//! `instance::backup` carries it out; `session` is who is logged in; `core` is what all of them share. [`publisher`] is the
//! administrator's side: it makes versions of appliances out of images. `mirrors` are further sources of appliances' frames.
//!
//! The daemon may be killed at any instant: machines go on, and the next daemon finds them again by what is on disk.

mod admission;
mod core;
mod hold;
mod http;
mod instance;
mod metered;
mod mirrors;
mod operation;
mod paths;
mod popularity;
pub mod publisher;
mod record;
pub mod remote;
mod renewal;
mod replica;
mod session;
mod settings;
mod subscription;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use collective_api::keybag::UserSecret;
use collective_model::{Error, ErrorKind, IoResultExt, Result, ResultExt, Timestamp, UserName};
use rustix::fs::FlockOperation;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use crate::core::Core;
use crate::instance::Command;
pub use crate::metered::Metered;
pub use crate::mirrors::{MAX_MIRRORS, MirrorUrl};
use crate::paths::Paths;
use crate::remote::Remote;
use crate::session::Session;

/// How long requests under way may take when the daemon goes down; whoever waits longer is cut off.
const ANSWERS_LIMIT: Duration = Duration::from_secs(3);

/// How a host is run.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// What is kept: cache, layers, records.
    pub dir: PathBuf,
    /// Sockets and sessions: best on a file system that the computer's restart empties.
    pub runtime_dir: PathBuf,
    /// Minutes between backups of a running appliance's user disk; 0: only when it stops.
    pub publish_minutes: u32,
    /// Bytes that the cache may hold.
    pub cache_bytes: u64,
    /// Memory that guests may have together.
    pub memory_mib: u64,
    /// Whether anything is fetched before it is asked for.
    pub prefetch: bool,
    /// Whether the connection is metered, where nothing is fetched before it is asked for either.
    pub metered: Metered,
    /// Whether the server is told which parts of system disks are read.
    pub reports: bool,
    /// Web places that show copies of appliances' repositories; the first [`MAX_MIRRORS`] are used.
    pub mirrors: Vec<MirrorUrl>,
}

impl HostOptions {
    /// The usual figures: a backup every ten minutes, a cache of 20 GiB, three quarters of the computer's memory.
    #[must_use]
    pub fn new(dir: PathBuf, runtime_dir: PathBuf) -> Self {
        let memory_bytes = rustix::system::sysinfo().totalram;
        Self {
            dir,
            runtime_dir,
            publish_minutes: 10,
            cache_bytes: 20 << 30,
            memory_mib: (memory_bytes >> 20) * 3 / 4,
            prefetch: true,
            metered: Metered::default(),
            reports: true,
            mirrors: Vec::new(),
        }
    }
}

/// A running daemon. Dropping it without [`Host::shutdown`] is as killing it: machines go on.
#[derive(Debug)]
pub struct Host {
    core: Arc<Core>,
    serving: JoinHandle<std::io::Result<()>>,
    _locks: [File; 2],
}

impl Host {
    /// Opens the directory, finds the machines that run, and listens on the Unix socket.
    ///
    /// # Errors
    /// `Conflict` if a daemon has the directory or the socket already; `Invalid` if the runtime directory's path is too long.
    pub async fn start(options: HostOptions) -> Result<Self> {
        record::make_directory(&options.dir)?;
        record::make_directory(&options.runtime_dir)?;
        let paths = Paths { dir: options.dir.clone(), runtime: options.runtime_dir.clone() };
        paths.check()?;
        let locks = [
            lock(&options.dir, "lock", "--dir")?,
            // Nobody else's sessions are looked at.
            lock(&options.runtime_dir, "host.lock", "--runtime-dir")?,
        ];
        refuse_if_served(&paths.socket())?;
        let core = Core::open(options).await?;
        record::make_directory(&core.paths.sessions())?;
        session::resume(&core);
        core.instances.recover(&core)?;
        tokio::spawn(renewal::keep_fresh(Arc::clone(&core)));
        let listener = listen(&core.paths.socket())?;
        tokio::spawn(hold::keep(Arc::clone(&core)));
        let stopped = core.stop.clone().cancelled_owned();
        let router = http::router(Arc::clone(&core));
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).with_graceful_shutdown(stopped).await
        });
        Ok(Self { core, serving, _locks: locks })
    }

    /// Returns where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.core.paths.socket()
    }

    /// Adds a session whose way to the server was made elsewhere: for programs that embed the host, and for tests.
    pub fn admit(&self, user: &UserName, secret: UserSecret, remote: Arc<dyn Remote>) {
        self.core.sessions.insert(Session::new(user.clone(), secret, remote, None));
        session::tell_instances(&self.core, user);
    }

    /// Goes down in order; machines go on and are found again by the next daemon.
    ///
    /// # Errors
    /// `Internal` if the socket was not served any more.
    pub async fn shutdown(self) -> Result<()> {
        self.core.stop.cancel();
        for instance in self.core.instances.all() {
            let (left, leaving) = tokio::sync::oneshot::channel();
            if instance.send(Command::Leave(left)).await.is_ok() {
                // An owner that is gone has nothing to leave.
                let _ = leaving.await;
            }
        }
        let socket = self.core.paths.socket();
        let served = tokio::time::timeout(ANSWERS_LIMIT, self.serving).await;
        // It may be gone with its directory.
        let _ = std::fs::remove_file(socket);
        let Ok(served) = served else { return Ok(()) };
        served
            .or_error(ErrorKind::Internal, || "the daemon failed".to_owned())?
            .or_io(|| "cannot serve the host's socket".to_owned())
    }
}

/// Makes sure that this is the only daemon of a directory, which `option` names.
fn lock(dir: &Path, file: &str, option: &str) -> Result<File> {
    let path = dir.join(file);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .or_io(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let message = format!("another host daemon has the directory {}", dir.display());
            Err(Error::new(ErrorKind::Conflict, message)
                .with_hint(format!("stop it first, or give this one another {option}")))
        }
        Err(error) => Err(std::io::Error::from(error))
            .or_io(|| format!("cannot lock the directory {}", dir.display())),
    }
}

fn refuse_if_served(socket: &Path) -> Result<()> {
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        let message = format!("another host daemon listens on {}", socket.display());
        return Err(Error::new(ErrorKind::Conflict, message)
            .with_hint("stop it first, or give this one another --runtime-dir"));
    }
    Ok(())
}

fn listen(socket: &Path) -> Result<UnixListener> {
    let failed = || format!("cannot listen on {}", socket.display());
    record::remove(socket)?;
    let listener = UnixListener::bind(socket).or_io(failed)?;
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(socket, owner_only).or_io(failed)?;
    Ok(listener)
}

/// Reads the clock; the only place that does.
fn now() -> Timestamp {
    SystemTime::now().into()
}

/// Draws random bytes from the operating system.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("Linux has random bytes once it has booted");
    bytes
}
