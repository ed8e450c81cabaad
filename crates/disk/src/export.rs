//! The read-only NBD export of disks on a Unix socket.
//!
//! One thread of its own accepts and serves all connections of a socket, so that a warm read is answered by the task
//! that took the request, with no other thread woken. What a read waits for happens elsewhere. Names are added
//! and removed while clients are connected; removing one hangs up on its clients.
//!
//! Clients are hostile until proven otherwise: connections, connections per export, the length of options and the
//! time of a negotiation are bounded here, requests in flight and their memory in `connection`.
//! What is said is in `wire`, how a negotiation goes in `handshake`. Only the owner may open the socket.

mod connection;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod handshake;
mod output;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use collective_model::{Error, ErrorKind, IoResultExt, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use self::handshake::{Agreed, Exports, Handshake, Next, OPTION_BYTES};
use crate::source::Source;

/// Connections of one socket, at most; more wait to be accepted.
const CONNECTIONS: usize = 128;
/// Connections of one export, at most, so that the client of one disk cannot shut out those of others.
const CONNECTIONS_PER_EXPORT: usize = 16;
/// Exports of one socket, at most.
const EXPORTS: usize = 256;
/// Bytes of an export's name, at most.
const NAME_BYTES: usize = 255;
/// Options of one negotiation, at most; well-behaved clients need about six.
const OPTIONS: usize = 64;
/// Bytes of one option that are read past when it is too long; a client that sends more is left.
const SKIPPED_BYTES: usize = 1024 * 1024;
/// How long to wait before accepting again when that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a negotiation may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Disks served read-only to NBD clients on one Unix socket. Dropping it stops serving.
#[derive(Debug)]
pub struct Export {
    path: PathBuf,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    stopped: watch::Receiver<bool>,
}

impl Export {
    /// Listens at `path`, with mode 0600; a socket left there by a process that is gone is replaced.
    ///
    /// # Errors
    /// `Conflict` if somebody listens there; what the file system says otherwise.
    pub fn bind(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let listener = listen(&path)?;
        let shared = Arc::new(Shared::default());
        let (stop, stop_seen) = watch::channel(false);
        let (stopped_sender, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .or_io(|| "cannot start the block export".to_owned())?;
        let accepting = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("block export".to_owned())
            .spawn(move || {
                if let Err(error) = runtime.block_on(accept(listener, accepting, stop_seen)) {
                    tracing::error!(%error, "the block export stopped");
                }
                // Reads that wait for the network must not keep the thread.
                runtime.shutdown_background();
                stopped_sender.send_replace(true);
            })
            .or_io(|| "cannot start the block export".to_owned())?;
        Ok(Self { path, shared, stop, stopped })
    }

    /// Returns where clients connect.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves `source` under `name`; a source that had the name is removed first.
    ///
    /// # Errors
    /// `Invalid` if the name is too long or there are too many exports.
    pub fn add(&self, name: &str, source: Arc<dyn Source>) -> Result<()> {
        let mut entries = self.shared.entries();
        if name.len() > NAME_BYTES || (entries.len() >= EXPORTS && !entries.contains_key(name)) {
            let text = format!("cannot export {:?}: name too long or too many exports", name);
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        entries.insert(name.to_owned(), Entry::new(source));
        Ok(())
    }

    /// Stops serving `name` and hangs up on its clients; does nothing if it is not served.
    pub fn remove(&self, name: &str) {
        self.shared.entries().remove(name);
    }

    /// Returns how many clients `name` has.
    #[must_use]
    pub fn clients(&self, name: &str) -> usize {
        let free = |entry: &Entry| entry.slots.available_permits();
        self.shared.entries().get(name).map_or(0, |entry| CONNECTIONS_PER_EXPORT - free(entry))
    }

    /// Hangs up on all clients, stops listening and removes the socket.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        // An error means that the thread is gone, which is what we wait for.
        let _ = self.stopped.wait_for(|stopped| *stopped).await;
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        // Somebody else may have replaced it, or the directory may be gone: nothing to do about either.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listen(path: &Path) -> Result<std::os::unix::net::UnixListener> {
    let message = || format!("cannot listen at {}", path.display());
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Error::new(ErrorKind::Conflict, message())
            .with_hint("another process serves disks there"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).or_io(message)?,
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path).or_io(message)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).or_io(message)?;
    listener.set_nonblocking(true).or_io(message)?;
    Ok(listener)
}

#[derive(Default)]
struct Shared {
    entries: Mutex<BTreeMap<String, Entry>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.entries().keys()).finish()
    }
}

/// An export, its free places, and the channel whose end tells its clients that it is gone.
struct Entry {
    source: Arc<dyn Source>,
    slots: Arc<Semaphore>,
    here: watch::Sender<()>,
}

impl Entry {
    fn new(source: Arc<dyn Source>) -> Self {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_PER_EXPORT));
        Self { source, slots, here: watch::channel(()).0 }
    }
}

/// A client's place at an export.
struct Place {
    _slot: OwnedSemaphorePermit,
    here: watch::Receiver<()>,
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exports(&self) -> Exports {
        let sources = |(name, entry): (&String, &Entry)| (name.clone(), Arc::clone(&entry.source));
        self.entries().iter().map(sources).collect()
    }

    /// Takes a place at what was agreed on; none if it is full or was removed meanwhile.
    fn place(&self, agreed: &Agreed) -> Option<Place> {
        let entries = self.entries();
        let entry = entries.get(&agreed.export)?;
        let slot = Arc::clone(&entry.slots).try_acquire_owned().ok()?;
        let same = Arc::ptr_eq(&entry.source, &agreed.source);
        same.then(|| Place { _slot: slot, here: entry.here.subscribe() })
    }
}

async fn accept(
    listener: std::os::unix::net::UnixListener,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            // An error means that the owner is gone, which is a wish to stop too.
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            Some(_) = clients.join_next() => continue,
            accepted = listener.accept(), if clients.len() < CONNECTIONS => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                clients.spawn(client(stream, Arc::clone(&shared)));
            }
            // Out of file descriptors, most likely: those who are served go on.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client of the block export");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn client(mut stream: UnixStream, shared: Arc<Shared>) {
    let negotiated = tokio::time::timeout(HANDSHAKE_TIME, negotiate(&mut stream, &shared)).await;
    let Ok(Ok(Some((agreed, mut place)))) = negotiated else { return };
    let export = agreed.export.clone();
    tokio::select! {
        biased;
        served = connection::serve(stream, agreed) => if let Err(error) = served {
            tracing::debug!(export, %error, "a client of the block export left badly");
        },
        _ = place.here.changed() => {}
    }
}

/// Brings a client from its first byte to transmission; none if it leaves before.
async fn negotiate(
    stream: &mut UnixStream,
    shared: &Shared,
) -> io::Result<Option<(Agreed, Place)>> {
    let mut out = Vec::new();
    wire::encode_greeting(&mut out);
    stream.write_all(&out).await?;
    let Some(mut handshake) = Handshake::new(stream.read_u32().await?) else { return Ok(None) };
    for _ in 0..OPTIONS {
        if stream.read_u64().await? != wire::OPTION_MAGIC {
            return Ok(None);
        }
        let option = stream.read_u32().await?;
        let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
        out.clear();
        if length > OPTION_BYTES {
            if length > SKIPPED_BYTES || option == wire::OPTION_EXPORT_NAME {
                return Ok(None);
            }
            tokio::io::copy(&mut stream.take(length as u64), &mut tokio::io::sink()).await?;
            wire::encode_option_reply(&mut out, option, wire::REPLY_TOO_BIG, &[]);
            stream.write_all(&out).await?;
            continue;
        }
        let mut data = vec![0; length];
        stream.read_exact(&mut data).await?;
        match handshake.option(option, &data, &shared.exports(), &mut out) {
            Next::Options => stream.write_all(&out).await?,
            Next::Transmission(agreed) => {
                let Some(place) = shared.place(&agreed) else {
                    return refuse_place(stream, option).await;
                };
                stream.write_all(&out).await?;
                return Ok(Some((agreed, place)));
            }
            Next::Close => {
                stream.write_all(&out).await?;
                return Ok(None);
            }
        }
    }
    Ok(None)
}

async fn refuse_place(stream: &mut UnixStream, option: u32) -> io::Result<Option<(Agreed, Place)>> {
    let mut out = Vec::new();
    if option == wire::OPTION_GO {
        let text = b"too many connections to this export";
        wire::encode_option_reply(&mut out, option, wire::REPLY_POLICY, text);
    }
    stream.write_all(&out).await?;
    Ok(None)
}
