//! Copies of objects that are too large to be waited for: made in the background, one at a time on a host, piece by piece.
//!
//! ```text
//! wanted ──turn──> pieces, each as a prefetch ──all there──> copied
//!    └── fails: pause, and on from there (the next daemon too) ──┘
//! ```
//!
//! What came stays in a file beside the copy's, which gets its name when it is whole and synced. Each piece is asked for when
//! nothing more urgent is under way, at the pace of what is fetched ahead, and is all that is in memory.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use collective_disk::Fetcher;
use collective_model::{Error, ErrorKind, IoResultExt, Result};
use collective_repository::backend::{Backend, ObjectName};
use tokio_util::sync::CancellationToken;

use crate::record;

/// Objects that are remembered as wanted or as too large; of more than that none is copied in the background.
const REMEMBERED: usize = 1024;
/// How often a copy that fails is tried, and the pauses between: an hour and a half. Then it waits until the object is
/// read again.
const ATTEMPTS: u32 = 24;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Makes copies for all repositories of a host. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Copies {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    fetcher: Fetcher,
    stop: CancellationToken,
    one_at_a_time: tokio::sync::Mutex<()>,
    wanted: Mutex<HashSet<PathBuf>>,
}

/// What is to be copied.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub real: Arc<dyn Backend>,
    pub name: ObjectName,
    /// Where the copy will be.
    pub path: PathBuf,
    /// A larger object is not copied.
    pub limit_bytes: u64,
}

impl Copies {
    /// Makes copies as fast as `fetcher` lets what nobody waits for, until `stop`.
    pub(crate) fn new(fetcher: Fetcher, stop: CancellationToken) -> Self {
        let (one_at_a_time, wanted) = Default::default();
        Self { inner: Arc::new(Inner { fetcher, stop, one_at_a_time, wanted }) }
    }

    /// Tells whether a copy is to be made, or was found to be too large for one.
    pub(super) fn knows(&self, path: &Path) -> bool {
        self.inner.wanted().contains(path)
    }

    /// Sees to it that a copy is made; returns at once.
    pub(super) fn begin(&self, wanted: Wanted) {
        {
            let mut known = self.inner.wanted();
            if known.len() >= REMEMBERED || !known.insert(wanted.path.clone()) {
                return;
            }
        }
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let copied = tokio::select! {
                () = inner.stop.cancelled() => return,
                copied = inner.insist(&wanted) => copied,
            };
            match copied {
                // It stays known, so that this is not found out again at every read.
                Ok(false) => return,
                Ok(true) => {}
                Err(error) => tracing::info!("{} is not copied: {}", wanted.name, error.chain()),
            }
            inner.wanted().remove(&wanted.path);
        });
    }

    /// Makes a copy now, and returns when it is there; false if the object is larger than it may be.
    pub(super) async fn make(&self, wanted: &Wanted) -> Result<bool> {
        self.inner.make(wanted).await
    }
}

impl Inner {
    /// Tries until the copy is made, or for long enough.
    async fn insist(&self, wanted: &Wanted) -> Result<bool> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..ATTEMPTS {
            match self.make(wanted).await {
                Ok(made) => return Ok(made),
                Err(error) => tracing::debug!("{}: {}", wanted.name, error.chain()),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.make(wanted).await
    }

    async fn make(&self, wanted: &Wanted) -> Result<bool> {
        let _turn = self.one_at_a_time.lock().await;
        let Wanted { real, name, path, limit_bytes } = wanted;
        if path.exists() {
            return Ok(true);
        }
        let size_bytes = real.size(name).await?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("{name} does not exist any more"))
        })?;
        if size_bytes > *limit_bytes {
            return Ok(false);
        }
        let part = part_of(path);
        let failed = || format!("cannot write {}", part.display());
        let options = File::options().write(true).create(true).truncate(false).to_owned();
        let file = options.open(&part).or_io(failed)?;
        let mut at = file.metadata().or_io(failed)?.len();
        if at > size_bytes {
            file.set_len(0).or_io(failed)?;
            at = 0;
        }
        while at < size_bytes {
            let piece = |most_bytes| real.read(name, Some(at..size_bytes.min(at + most_bytes)));
            let bytes = self.fetcher.beside(piece).await?;
            if bytes.is_empty() {
                return Err(Error::new(ErrorKind::Corrupt, format!("{name} is cut short")));
            }
            file.write_all_at(&bytes, at).or_io(failed)?;
            at += bytes.len() as u64;
        }
        file.sync_all().or_io(failed)?;
        record::rename(&part, path)?;
        Ok(true)
    }

    fn wanted(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        // One insertion or removal at a time, so a panic elsewhere leaves nothing half done.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a copy is while it is made.
pub(super) fn part_of(path: &Path) -> PathBuf {
    let mut part = path.to_owned().into_os_string();
    part.push(".part");
    part.into()
}
