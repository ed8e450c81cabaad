//! A repository that is open: what it is, which versions it has, and the way to each.
//!
//! Everything that is believed hangs on the [`Trust`] with which it was opened. The head is the one thing that a signature cannot
//! keep fresh: an open repository therefore never lets it go back, and a caller who remembers a version from before
//! says so with [`Repository::remember`].

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use collective_model::{Error, ErrorKind, Result, Version};
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::backend::{Backend, ObjectName, read_checked};
use crate::descriptor::{Descriptor, Trust, check_secret};
use crate::frame::FrameEncoder;
use crate::keys::RepositorySecret;
use crate::manifest::Manifest;
use crate::publish::{TableCache, Unfinished};
use crate::reader::VersionReader;
use crate::sealer::Sealer;

/// Versions below the head that are looked for one by one where objects cannot be listed.
const MAX_PROBED_VERSIONS: u64 = 1000;

/// Probes under way at once.
const PROBES_AT_ONCE: usize = 16;

/// A repository that is open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repository {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    backend: Arc<dyn Backend>,
    descriptor: Descriptor,
    sealer: Arc<Sealer>,
    encoder: Arc<FrameEncoder>,
    tables: TableCache,
    unfinished: OnceLock<Unfinished>,
    /// The highest version that was ever seen, 0 for none.
    seen: AtomicU64,
}

impl Repository {
    /// Makes a new repository: writes its descriptor. Made again with the same descriptor, it is opened.
    ///
    /// # Errors
    /// `Conflict` if there is another one already; `Invalid` if the descriptor is out of bounds, or public and there is a secret.
    pub async fn create(
        backend: Arc<dyn Backend>,
        descriptor: Descriptor,
        secret: Option<RepositorySecret>,
    ) -> Result<Self> {
        descriptor.check()?;
        if let Some(secret) = &secret {
            if !descriptor.encrypted {
                let message = "a repository that is not encrypted has no secret";
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            check_secret(&descriptor, secret)?;
        }
        match backend.read(&ObjectName::Descriptor, None).await {
            Ok(bytes) if bytes == descriptor.encode() => {}
            Ok(_) => {
                let message = "there is a repository already, and it is another one";
                return Err(Error::new(ErrorKind::Conflict, message));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                backend.write(&ObjectName::Descriptor, descriptor.encode().into()).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(Self::of(backend, descriptor, secret.as_ref()))
    }

    /// Opens a repository that exists, if it is the one that is trusted.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if it is damaged or another one; `Denied` if the secret is not its own.
    pub async fn open(backend: Arc<dyn Backend>, trust: Trust) -> Result<Self> {
        let name = ObjectName::Descriptor;
        let descriptor = read_checked(&*backend, &name, || async {
            let descriptor = Descriptor::decode(&backend.read(&name, None).await?)?;
            trust.check(&descriptor)?;
            Ok(descriptor)
        });
        let descriptor = descriptor.await?;
        Ok(Self::of(backend, descriptor, trust.secret.as_ref()))
    }

    fn of(
        backend: Arc<dyn Backend>,
        descriptor: Descriptor,
        secret: Option<&RepositorySecret>,
    ) -> Self {
        let sealer = Arc::new(Sealer::new(&descriptor, secret));
        let shared = Shared {
            backend,
            descriptor,
            sealer,
            encoder: Arc::new(FrameEncoder::default()),
            tables: TableCache::default(),
            unfinished: OnceLock::new(),
            seen: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Returns what the repository is.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor {
        &self.shared.descriptor
    }

    /// Returns where its objects are.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.shared.backend
    }

    pub(crate) fn sealer(&self) -> &Arc<Sealer> {
        &self.shared.sealer
    }

    pub(crate) fn encoder(&self) -> &Arc<FrameEncoder> {
        &self.shared.encoder
    }

    pub(crate) fn tables(&self) -> &TableCache {
        &self.shared.tables
    }

    /// Notes in this file what a publication has stored until it is committed, so that one that is cut short goes on where it
    /// was. The file is for this repository alone; the first call counts.
    pub fn note_unfinished_in(&self, path: PathBuf) {
        self.shared.unfinished.get_or_init(|| Unfinished::new(path));
    }

    pub(crate) fn unfinished(&self) -> Option<&Unfinished> {
        self.shared.unfinished.get()
    }

    /// Notes that a version is known to exist: from now on an older head is an error.
    pub fn remember(&self, version: Version) {
        self.shared.seen.fetch_max(version.number(), Ordering::SeqCst);
    }

    /// Returns the highest version; none before the first.
    ///
    /// # Errors
    /// `Corrupt` if `latest` is damaged or went back; `Unavailable`.
    pub async fn head(&self) -> Result<Option<Version>> {
        // Taken before the read: a head that somebody else sees meanwhile may well be newer than ours.
        let seen = self.shared.seen.load(Ordering::SeqCst);
        let head = self.backend().head().await?;
        if head.map_or(0, Version::number) < seen {
            let head = head.map_or("nothing".to_owned(), |head| format!("version {head}"));
            let id = self.descriptor().id;
            let message =
                format!("latest of repository {id} went back from version {seen} to {head}");
            return Err(Error::new(ErrorKind::Corrupt, message)
                .with_hint("an old copy was put in its place, or the server hides versions"));
        }
        head.into_iter().for_each(|head| self.remember(head));
        Ok(head)
    }

    /// Returns the versions that can be read, oldest first. Where objects cannot be listed (a static web server), the
    /// newest thousand are looked for.
    ///
    /// # Errors
    /// As [`head`](Self::head).
    pub async fn versions(&self) -> Result<Vec<Version>> {
        let Some(head) = self.head().await? else { return Ok(Vec::new()) };
        let listed = match self.backend().list("versions/").await {
            Ok(listed) => listed,
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            Err(_) => return self.probe_versions(head).await,
        };
        let manifests = listed.into_iter().filter_map(|listed| match listed.name {
            ObjectName::Manifest(version) if version <= head => Some(version),
            _ => None,
        });
        let mut versions: Vec<Version> = manifests.collect();
        versions.sort_unstable();
        Ok(versions)
    }

    async fn probe_versions(&self, head: Version) -> Result<Vec<Version>> {
        let oldest = head.number().saturating_sub(MAX_PROBED_VERSIONS - 1).max(1);
        let found: Vec<Option<Version>> = stream::iter(oldest..=head.number())
            .filter_map(async |number| Version::new(number))
            .map(|version| async move {
                let size = self.backend().size(&ObjectName::Manifest(version)).await?;
                Ok::<_, Error>(size.map(|_| version))
            })
            .buffered(PROBES_AT_ONCE)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Opens a version.
    ///
    /// # Errors
    /// `NotFound`, naming the version and the head; `Corrupt` if its manifest is damaged, not signed by the publisher, or that of another version.
    pub async fn version(&self, version: Version) -> Result<VersionReader> {
        // A manifest beyond the head is what a publisher left that died before its commit was done.
        if version.number() > self.shared.seen.load(Ordering::SeqCst) {
            let head = self.head().await?;
            if head.is_none_or(|head| version > head) {
                return Err(self.no_such(version, head));
            }
        }
        let name = ObjectName::Manifest(version);
        let manifest = read_checked(&**self.backend(), &name, || async {
            let bytes = self.backend().read(&name, None).await?;
            Manifest::open(&bytes, self.descriptor(), version)
        });
        match manifest.await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(self.no_such(version, self.head().await?))
            }
            manifest => Ok(VersionReader::new(self.clone(), manifest?)),
        }
    }

    fn no_such(&self, version: Version, head: Option<Version>) -> Error {
        let id = self.descriptor().id;
        let state = match head {
            None => "it has no version yet".to_owned(),
            Some(head) if version > head => format!("the latest is {head}"),
            Some(head) => format!("it was removed; the latest is {head}"),
        };
        let message = format!("version {version} of repository {id} does not exist: {state}");
        Error::new(ErrorKind::NotFound, message)
    }
}
