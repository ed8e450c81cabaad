//! Starting and stopping.

use std::fmt;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use collective_api::trust::{Anchor, Fingerprint, SERVER_NAME};
use collective_model::{Error, ErrorKind, IoResultExt, Result, ResultExt};
use collective_repository::backend::Bucket;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::authority::{Authority, Lives, SERVER_LIFE};
use crate::database::{Database, Value};
use crate::files::make_private_directory;
use crate::listener::{Connections, CurrentCertificate};
use crate::objects::Objects;
use crate::routes;
use crate::state::{AUDIT_LINES_MAX, State};
use crate::upkeep::{self, UpkeepSettings};

/// The administrators' socket.
const SOCKET_FILE: &str = "admin.sock";
/// What a second server on the directory finds locked.
const LOCK_FILE: &str = "server.lock";
/// A socket's path must fit the kernel's address (108 bytes, with room for a zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// How long running requests may go on after the server was told to stop.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);
/// How often the audit log is cut and the server's certificate is made anew.
const HOUSEKEEPING: Duration = Duration::from_secs(24 * 3600);

/// What a server is started with.
#[derive(Clone)]
pub struct ServerOptions {
    /// The server's directory; made if it is not there.
    pub dir: PathBuf,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// A PostgreSQL URL; SQLite in the directory without one.
    pub database: Option<String>,
    /// A bucket for the objects of repositories; a directory in the server's own without one.
    pub objects: Option<Bucket>,
    /// How long the certificates of hosts and devices are good, which they renew in time; the usual lives without one.
    pub certificate_life: Option<Duration>,
    /// How often it looks after its repositories.
    pub upkeep: UpkeepSettings,
}

impl fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may have a password in it.
        let database = if self.database.is_some() { "postgres" } else { "sqlite" };
        let Self { dir, listen, objects, .. } = self;
        write!(f, "ServerOptions {{ dir: {dir:?}, listen: {listen}, ")?;
        write!(f, "database: {database}, objects: {objects:?} }}")
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// Of its certificate authority: what people compare at first contact.
    pub fingerprint: Fingerprint,
    /// The administrators' socket.
    pub socket: PathBuf,
    state: Arc<State>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _lock: File,
}

impl Server {
    /// Starts a server; it runs until it is shut down.
    ///
    /// # Errors
    /// `Conflict` if another server has the directory; `Unavailable` if the database cannot be reached.
    pub async fn start(options: ServerOptions) -> Result<Self> {
        let dir = &options.dir;
        let lives = Lives::new(options.certificate_life)?;
        make_private_directory(dir)?;
        let lock = lock_directory(dir)?;
        let now = std::time::SystemTime::now().into();
        let authority = Authority::open_or_create(dir, now)?;
        let fingerprint = Anchor(authority.certificate_pem().to_owned()).fingerprint()?;
        let database = Database::open(options.database.as_deref(), dir).await?;
        let objects = Objects::open(options.objects, dir, &fingerprint).await?;
        let state = State::new(database, authority, lives, objects);
        routes::repository::repair(&state).await?;
        let shown = options.listen;
        let listener = TcpListener::bind(shown).await.or_io(|| format!("cannot listen on {shown}"));
        let listener = listener.map_err(|error| match error.kind() {
            ErrorKind::Conflict => error.with_hint(
                "another server, or another program, listens there: choose with --listen ADDRESS:PORT",
            ),
            _ => error,
        })?;
        let address = listener.local_addr().or_io(|| format!("cannot listen on {shown}"))?;
        let (socket, administrators) = bind_socket(dir)?;

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificate = Arc::new(CurrentCertificate::new(own_certificate(&state, &provider)?));
        let tls = tls_config(&state, Arc::clone(&certificate), Arc::clone(&provider))?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let router = routes::router(Arc::clone(&state));
        let connections = Connections::new(router, tasks.clone(), stop.clone());
        tasks.spawn(connections.clone().serve_network(listener, tls));
        tasks.spawn(connections.serve_socket(administrators));
        tasks.spawn(keep_house(Arc::clone(&state), certificate, provider, stop.clone()));
        let upkeep = options.upkeep;
        tasks.spawn(upkeep::keep_pruned(Arc::clone(&state), upkeep, stop.clone()));
        tasks.spawn(upkeep::keep_checked(Arc::clone(&state), upkeep, stop.clone()));
        tracing::info!(%address, %fingerprint, "the server is up");
        Ok(Self { address, fingerprint, socket, state, tasks, stop, _lock: lock })
    }

    /// Stops: running requests are finished within a limit, new ones are refused.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN_LIMIT, self.tasks.wait()).await.is_err() {
            tracing::warn!("some requests did not end, and are cut off");
        }
        self.state.database.close().await;
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!("the administrators' socket was gone: {error}");
        }
    }
}

fn lock_directory(dir: &Path) -> Result<File> {
    let failed = || format!("cannot lock the directory {}", dir.display());
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join(LOCK_FILE))
        .or_io(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let message = format!("another server is running on {}", dir.display());
            Err(Error::new(ErrorKind::Conflict, message))
        }
        Err(cause) => Err(std::io::Error::from(cause)).or_io(failed),
    }
}

/// Makes the administrators' socket. The directory's mode keeps others away from the first moment on.
fn bind_socket(dir: &Path) -> Result<(PathBuf, UnixListener)> {
    let path = dir.join(SOCKET_FILE);
    let failed = || format!("cannot listen on {}", path.display());
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let message = format!("the path {} is too long for a socket", path.display());
        return Err(Error::new(ErrorKind::Invalid, message)
            .with_hint(format!("at most {SOCKET_PATH_BYTES_MAX} bytes")));
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).or_io(failed)?,
        _ => {}
    }
    let listener = UnixListener::bind(&path).or_io(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).or_io(failed)?;
    Ok((path, listener))
}

fn own_certificate(state: &State, provider: &CryptoProvider) -> Result<rustls::sign::CertifiedKey> {
    state.authority.server_certificate(&[SERVER_NAME.to_owned()], provider, state.now())
}

fn tls_config(
    state: &State,
    certificate: Arc<CurrentCertificate>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<ServerConfig>> {
    let verifier = state.authority.client_verifier(Arc::clone(&provider))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .or_error(ErrorKind::Internal, || "cannot set up TLS".to_owned())?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Once a day: a new certificate for the server, and the end of the audit log cut off.
async fn keep_house(
    state: Arc<State>,
    certificate: Arc<CurrentCertificate>,
    provider: Arc<CryptoProvider>,
    stop: CancellationToken,
) {
    const { assert!(HOUSEKEEPING.as_secs() * 2 < SERVER_LIFE.as_secs()) };
    let mut days = tokio::time::interval(HOUSEKEEPING);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = days.tick() => {}
        }
        match own_certificate(&state, &provider) {
            Ok(made) => certificate.replace(made),
            Err(error) => tracing::error!("{}", error.chain()),
        }
        if let Err(error) = forget_guests(&state).await {
            tracing::error!("{}", error.chain());
        }
        let sql = "delete from audit where time < \
            (select coalesce(min(time), 0) from \
            (select time from audit order by time desc limit $1) as kept)";
        if let Err(error) = state.database.write(sql, &[Value::from(AUDIT_LINES_MAX)]).await {
            tracing::error!("{}", error.chain());
        }
    }
}

/// Forgets guests whose certificates ended: nobody is logged in there, they hold no lock, and cannot come back.
async fn forget_guests(state: &State) -> Result<()> {
    let sql = "delete from hosts where member = 0 and coalesce(seen, joined) < $1 \
        and id not in (select host from devices) \
        and id not in (select holder from subscriptions where holder is not null)";
    let before = state.now().0.saturating_sub(2 * state.lives.host.as_millis() as i64);
    state.database.write(sql, &[Value::from(before)]).await.map(drop)
}
