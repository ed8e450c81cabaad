//! The versions that a machine reads from, served to it on its export socket.
//!
//! Exports are named by role and version, so that a new daemon serves the same names again and a running disk can be moved
//! from one version to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use collective_api::host::Fetched;
use collective_disk::{Export, Fetcher, Heard, Late, Source, VersionDisk};
use collective_model::{BLOCK_BYTES, DiskRole, Error, ErrorKind, RepositoryId, Result, Version};
use collective_repository::{Descriptor, DiskReader, Trace, VersionReader};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::Run;
use super::reads::Reads;
use crate::core::Core;
use crate::paths::InstancePaths;
use crate::popularity;
use crate::record;
use crate::session::Session;

/// How long a start waits for what QEMU itself reads of the disks while it comes up. Without this it would hang there,
/// and nobody could say why.
const FIRST_BLOCKS_LIMIT: Duration = Duration::from_secs(30);

/// The disks of one machine.
pub(super) struct Disks {
    export: Export,
    fetcher: Fetcher,
    system: VersionDisk,
    users: BTreeMap<Version, VersionDisk>,
    /// Exports whose lateness is listened to already.
    heeded: BTreeSet<String>,
    /// What the guest reads of the system disk.
    pub(super) reads: Reads,
    /// Brings what the boot will need, and then what is popular besides.
    ahead: Vec<AbortOnDropHandle<()>>,
}

/// Names an export.
pub(super) fn export_name(role: DiskRole, version: Version) -> String {
    format!("{role}-{version}")
}

impl Disks {
    /// Listens for the machine of `run` and serves its system disk.
    pub(super) async fn open(
        core: &Core,
        paths: &InstancePaths,
        run: &Run,
        version: &VersionReader,
        starting: bool,
    ) -> Result<Self> {
        let reader = version.disk(DiskRole::System).await?;
        let system = core.disk(reader);
        let trace = version.trace(DiskRole::System).await.unwrap_or_else(|error| {
            tracing::warn!("no boot trace: {}", error.chain());
            Trace::default()
        });
        let reads = Reads::new(&system, run.version, trace, starting);
        record::make_directory(&paths.runtime)?;
        let export = Export::bind(paths.export_socket())?;
        let heard = Heard::new(Arc::new(system.clone()), reads.map());
        export.add(&export_name(DiskRole::System, run.version), Arc::new(heard))?;
        Ok(Self {
            export,
            fetcher: core.fetcher.clone(),
            system,
            users: BTreeMap::new(),
            heeded: BTreeSet::new(),
            reads,
            ahead: Vec::new(),
        })
    }

    /// Brings the boot of the system disk into the cache, in its order, and holds it there.
    pub(super) fn replay(&mut self, pin: String) {
        let (system, cache) = (self.system.clone(), self.fetcher.cache().clone());
        let trace = self.reads.trace();
        self.ahead.push(AbortOnDropHandle::new(tokio::spawn(async move {
            let frames = system.replay(&trace).await;
            cache.pin(&pin, frames);
        })));
    }

    /// Brings what most guests read besides into the cache, after everything that is more urgent.
    pub(super) fn bring_popular(
        &mut self,
        core: &Arc<Core>,
        session: Arc<Session>,
        repository: RepositoryId,
        version: Version,
    ) {
        let (system, core) = (self.system.clone(), Arc::clone(core));
        self.ahead.push(AbortOnDropHandle::new(tokio::spawn(async move {
            let counts = popularity::of(&core, &session, repository, version).await;
            if let Some(counts) = counts {
                system.prefetch(&Trace { ranges: popularity::likely(&counts) }).await;
            }
        })));
    }

    /// Waits until the first blocks of all disks are here.
    ///
    /// # Errors
    /// If they do not come, why: `Unavailable`, or `Corrupt` where the repository is damaged.
    pub(super) async fn first_blocks(&self) -> Result<()> {
        for disk in std::iter::once(&self.system).chain(self.users.values()) {
            let late = disk.late();
            let read = disk.read(0, BLOCK_BYTES as usize);
            tokio::pin!(read);
            // The read is asked why it is late, so it must outlive its time.
            match tokio::time::timeout(FIRST_BLOCKS_LIMIT, &mut read).await {
                Ok(read) => drop(read?),
                Err(_) => return Err(no_first_blocks(late.borrow().as_ref())),
            }
        }
        Ok(())
    }

    /// Serves a version of the user disk.
    pub(super) async fn serve_user(
        &mut self,
        core: &Core,
        session: &Session,
        descriptor: &Descriptor,
        version: Version,
    ) -> Result<()> {
        if self.users.contains_key(&version) {
            return Ok(());
        }
        let repository = core.repository(session, descriptor, collective_model::Epoch(0)).await?;
        let reader = repository.version(version).await?;
        let disk: DiskReader = reader.disk(DiskRole::User).await?;
        let disk = core.disk(disk);
        self.export.add(&export_name(DiskRole::User, version), Arc::new(disk.clone()))?;
        self.users.insert(version, disk);
        Ok(())
    }

    /// Stops serving the versions of the user disk that are not `kept`.
    pub(super) fn only_user(&mut self, kept: Version) {
        let gone = self.users.keys().copied().filter(|version| *version != kept);
        for version in gone.collect::<Vec<_>>() {
            self.export.remove(&export_name(DiskRole::User, version));
            self.users.remove(&version);
            self.heeded.remove(&export_name(DiskRole::User, version));
        }
    }

    /// What tells that reads of these disks are late, by export; each is returned once.
    pub(super) fn late(&mut self) -> Vec<(String, watch::Receiver<Option<Late>>)> {
        let users = self.users.iter();
        let users = users.map(|(version, disk)| (export_name(DiskRole::User, *version), disk));
        std::iter::once((DiskRole::System.to_string(), &self.system))
            .chain(users)
            .filter(|(name, _)| self.heeded.insert(name.clone()))
            .map(|(name, disk)| (name, disk.late()))
            .collect()
    }

    pub(super) fn fetched(&self) -> Fetched {
        use collective_disk::Source as _;
        let size_bytes = self.system.size_bytes();
        let share = self.system.fetched_share();
        Fetched { bytes: (share * size_bytes as f64) as u64, size_bytes, share }
    }

    pub(super) async fn shutdown(self) {
        drop(self.ahead);
        self.export.shutdown().await;
    }
}

fn no_first_blocks(late: Option<&Late>) -> Error {
    let (kind, why) = match late {
        Some(late) => (late.reason.kind, late.reason.text.as_str()),
        None => (ErrorKind::Unavailable, "the repository does not answer"),
    };
    let hint = match kind {
        ErrorKind::Corrupt => {
            "an administrator finds what is damaged with `collective appliance verify`, and can store it again"
        }
        _ => "start it again when the server is back; what is cached here stays",
    };
    Error::new(kind, format!("the first blocks of a disk do not come: {why}")).with_hint(hint)
}
