//! What the parts of the daemon share: its directories, settings, cache, sessions, operations and instances.
//!
//! Everything here is a handle; what changes lives behind channels or in the cache's own care. Also the answers that
//! need more than one part: lists of appliances and of versions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use collective_api::host::{
    AcceleratorStatus, ApplianceStatus, CacheStatus, HostStatus, InstanceState, ServerStatus, Stay,
    VersionStatus, Versions,
};
use collective_disk::{Cache, CacheOptions, FetchSettings, Fetcher, VersionDisk};
use collective_model::{
    ApplianceName, Epoch, Error, ErrorKind, Result, Timestamp, UserName, Version,
};
use collective_repository::retention::Candidate;
use collective_repository::{
    Descriptor, DiskReader, Kind, Repository, Retention, Trust, retention,
};
use collective_vm::accelerator::{self, Probed};
use collective_vm::qemu::Qemu;
use tokio::sync::{OnceCell, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::HostOptions;
use crate::admission::Desk;
use crate::instance::Instances;
use crate::metered::Connection;
use crate::mirrors::{self, Mirrors};
use crate::operation::Operations;
use crate::paths::Paths;
use crate::record;
use crate::remote::Profile;
use crate::renewal::{Holder, Renewals};
use crate::replica::{Copies, Replica};
use crate::session::{Guesses, Session, Sessions};
use crate::settings::SettingsStore;

/// How long a list waits for the server before the copy here is shown.
const PROFILE_LIMIT: Duration = Duration::from_secs(10);

/// How long a daemon on its way out may keep the cache, and how often it is tried.
const CACHE_LIMIT: Duration = Duration::from_secs(5);
const CACHE_PAUSE: Duration = Duration::from_millis(50);

/// Versions that are listed, newest first; each costs a small read.
const VERSIONS_LISTED: usize = 100;

/// The shared parts.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) options: HostOptions,
    pub(crate) paths: Paths,
    pub(crate) settings: SettingsStore,
    pub(crate) cache: Cache,
    pub(crate) sessions: Sessions,
    /// Wrong passwords where no server answers.
    pub(crate) guesses: Guesses,
    /// Whether the server answered the last log-in; none before the first.
    heard: watch::Sender<Option<bool>>,
    /// What became of attempts to renew certificates.
    pub(crate) renewals: Renewals,
    pub(crate) operations: Operations,
    pub(crate) instances: Instances,
    pub(crate) fetcher: Fetcher,
    copies: Copies,
    mirrors: Mirrors,
    pub(crate) connection: Connection,
    /// The line for the memory that guests may have.
    pub(crate) admission: Desk,
    /// Ends streams of events when the daemon goes down.
    pub(crate) stop: CancellationToken,
    qemu: OnceCell<Qemu>,
    probed: OnceCell<Probed>,
}

impl Core {
    /// Opens the host's directory.
    pub(crate) async fn open(options: HostOptions) -> Result<Arc<Self>> {
        let paths = Paths { dir: options.dir.clone(), runtime: options.runtime_dir.clone() };
        paths.check()?;
        let settings = SettingsStore::open(&paths)?;
        let cache_options = CacheOptions { capacity_bytes: options.cache_bytes };
        let cache = open_cache(&paths, cache_options).await?;
        let mirrors = Mirrors::open(&options.mirrors)?;
        let fetches = FetchSettings::default();
        let fetcher = Fetcher::with_mirrors(cache.clone(), fetches, mirrors.names());
        let stop = CancellationToken::new();
        Ok(Arc::new(Self {
            copies: Copies::new(fetcher.clone(), stop.clone()),
            fetcher,
            mirrors,
            connection: Connection::new(options.metered),
            admission: Desk::open(options.memory_mib),
            options,
            paths,
            settings,
            cache,
            sessions: Sessions::new(),
            guesses: Guesses::default(),
            heard: watch::Sender::new(None),
            renewals: Renewals::new(),
            operations: Operations::new(),
            instances: Instances::new(),
            stop,
            qemu: OnceCell::new(),
            probed: OnceCell::new(),
        }))
    }

    pub(crate) async fn status(&self) -> HostStatus {
        let settings = self.settings.get();
        let sessions: Vec<_> =
            self.sessions.all().iter().map(|session| self.shown(session)).collect();
        let heard = *self.heard.borrow();
        let reachable = match sessions.as_slice() {
            [] => heard == Some(true),
            sessions => sessions.iter().any(|session| session.online),
        };
        let asked = heard.is_some() || !sessions.is_empty();
        HostStatus {
            certificate: settings
                .server
                .as_ref()
                .and_then(|server| self.renewals.status(&Holder::Host, server.life)),
            name: settings.name,
            id: settings.id,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            server: settings.server.map(|server| ServerStatus {
                url: server.address.base(),
                fingerprint: server
                    .anchor
                    .fingerprint()
                    .map_or_else(|_| String::new(), |it| it.to_string()),
                reachable,
                asked,
            }),
            sessions,
            cache: self.cache_status(),
            sources: mirrors::status(&self.fetcher.sources()),
            accelerator: self.probed.get().map(|probe| AcceleratorStatus {
                name: probe.accelerator.to_string(),
                why: probe.why.clone(),
            }),
            publish_minutes: self.options.publish_minutes,
            reports: self.options.reports,
            metered: self.connection.is_metered(),
        }
    }

    /// Whether something may be fetched that nobody asked for.
    pub(crate) fn fetches_ahead(&self) -> bool {
        self.options.prefetch && !self.connection.is_metered()
    }

    /// Remembers whether the server answered somebody who has no session.
    pub(crate) fn heard<T>(&self, answer: &Result<T>) {
        let answered = answer.as_ref().map_or_else(Error::is_answer, |_| true);
        self.heard.send_replace(Some(answered));
    }

    pub(crate) fn cache_status(&self) -> CacheStatus {
        let (cache, fetches) = (self.cache.stats(), self.fetcher.stats());
        CacheStatus {
            capacity_bytes: self.options.cache_bytes,
            used_bytes: cache.used_bytes,
            fetched_bytes: fetches.fetched_bytes,
            raced_bytes: fetches.raced_bytes,
            frames: cache.frames,
            hits: cache.hits,
            misses: cache.misses,
            damaged: cache.damaged,
        }
    }

    pub(crate) fn shown(&self, session: &Session) -> collective_api::host::Session {
        let life = session.link().and_then(|link| link.way().life);
        session.shown(self.renewals.status(&Holder::User(session.user.clone()), life))
    }

    /// Finds QEMU, once.
    pub(crate) async fn qemu(&self) -> Result<&Qemu> {
        self.qemu.get_or_try_init(Qemu::discover).await
    }

    /// Finds out what runs machines here, once.
    pub(crate) async fn probe(&self) -> Result<&Probed> {
        let qemu = self.qemu().await?;
        Ok(self.probed.get_or_init(|| accelerator::probe(qemu)).await)
    }

    /// The user's profile: asked for, or as it was last heard.
    pub(crate) async fn profile(&self, session: &Session) -> Result<Profile> {
        let path = self.paths.profile(&session.user);
        let asked = tokio::time::timeout(PROFILE_LIMIT, session.remote.profile()).await;
        let asked = asked.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Unavailable, "the server does not answer"))
        });
        session.saw_server(&asked);
        match asked {
            Ok(profile) => {
                if record::load(&path).ok().flatten().as_ref() != Some(&profile) {
                    record::make_directory(path.parent().unwrap_or(&self.paths.dir))?;
                    record::store(&path, &profile)?;
                }
                Ok(profile)
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                record::load(&path)?.ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// What a user may start; nothing is known of one who is not logged in.
    async fn profile_of(&self, session: Option<&Session>) -> Result<Profile> {
        match session {
            Some(session) => match self.profile(session).await {
                // The session says why; what is here is here all the same.
                Err(error) if error.kind() == ErrorKind::Denied => {
                    Ok(record::load(&self.paths.profile(&session.user))?.unwrap_or_default())
                }
                profile => profile,
            },
            None => Ok(Profile::default()),
        }
    }

    /// Checks that the user may start an appliance, or has something of it here.
    pub(crate) async fn known_appliance(
        &self,
        session: &Session,
        name: &ApplianceName,
    ) -> Result<()> {
        if self.paths.instance(&session.user, name).record().exists() {
            return Ok(());
        }
        self.profile(session).await?.appliance(name).map(drop)
    }

    pub(crate) async fn appliances(
        self: &Arc<Self>,
        user: &UserName,
        session: Option<&Session>,
    ) -> Result<Vec<ApplianceStatus>> {
        let profile = self.profile_of(session).await?;
        let mut list: BTreeMap<ApplianceName, ApplianceStatus> = profile
            .appliances
            .iter()
            .map(|entry| (entry.name.clone(), stopped(user, &entry.name)))
            .collect();
        for status in self.instances.statuses(user) {
            list.insert(status.name.clone(), status);
        }
        for status in list.values_mut() {
            self.complete(status, &profile);
        }
        Ok(list.into_values().collect())
    }

    pub(crate) async fn appliance(
        self: &Arc<Self>,
        user: &UserName,
        session: Option<&Session>,
        name: &ApplianceName,
    ) -> Result<ApplianceStatus> {
        let profile = self.profile_of(session).await?;
        let running = self.instances.status(user, name);
        let mut status = match running {
            Some(status) => status,
            None => {
                profile.appliance(name)?;
                stopped(user, name)
            }
        };
        self.complete(&mut status, &profile);
        Ok(status)
    }

    /// Adds what only the profile and the records know.
    fn complete(&self, status: &mut ApplianceStatus, profile: &Profile) {
        let entitled = profile.appliances.iter().find(|entry| entry.name == status.name);
        status.latest = entitled.and_then(|entry| entry.latest);
        status.restart_needed = status.running.is_some() && status.running < status.latest;
        status.lock = profile.subscription(&status.name).and_then(|entry| entry.lock.clone());
        status.held = crate::hold::held(&self.paths.instance(&status.user, &status.name));
    }

    pub(crate) async fn versions(
        &self,
        session: &Session,
        name: &ApplianceName,
    ) -> Result<Versions> {
        let profile = self.profile(session).await?;
        let appliance = self.repository(session, &profile.appliance(name)?.descriptor, Epoch(0));
        let appliance = listed(&appliance.await?).await?;
        let mut user_disk = match profile.subscription(name) {
            Some(entry) => {
                listed(&self.repository(session, &entry.descriptor, Epoch(0)).await?).await?
            }
            None => Vec::new(),
        };
        if let Some(rule) = &profile.user_disk_retention {
            foresee(rule, &mut user_disk, crate::now());
        }
        Ok(Versions { appliance, user_disk })
    }

    /// Opens a repository through its copies on this host.
    pub(crate) async fn repository(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        epoch: Epoch,
    ) -> Result<Repository> {
        let backend = Arc::new(self.replica(session, descriptor, epoch)?);
        Repository::open(backend, trust(session, descriptor)).await
    }

    /// A disk of a version, with all sources that its frames may come from.
    pub(crate) fn disk(&self, reader: DiskReader) -> VersionDisk {
        let mirrors = self.mirrors.of(reader.descriptor());
        VersionDisk::with_mirrors(reader, mirrors, self.fetcher.clone())
    }

    pub(crate) fn replica(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        epoch: Epoch,
    ) -> Result<Replica> {
        let real = session.remote.backend(descriptor.id, epoch)?;
        Replica::new(real, &self.paths.replica(descriptor.id), self.copies.clone())
    }
}

/// Opens the cache. The directory is ours already, so whoever still has the cache is a daemon on its way out.
async fn open_cache(paths: &Paths, options: CacheOptions) -> Result<Cache> {
    let until = Instant::now() + CACHE_LIMIT;
    loop {
        match Cache::open(&paths.cache(), options) {
            Err(error) if error.kind() == ErrorKind::Conflict && Instant::now() < until => {
                tokio::time::sleep(CACHE_PAUSE).await;
            }
            opened => return opened,
        }
    }
}

/// What the profile says of a repository is what the host believes of it.
pub(crate) fn trust(session: &Session, descriptor: &Descriptor) -> Trust {
    let private = descriptor.encrypted || descriptor.kind == Kind::UserDisk;
    Trust {
        id: descriptor.id,
        publisher: descriptor.publisher,
        secret: private.then(|| session.repository_secret(descriptor.id)),
    }
}

async fn listed(repository: &Repository) -> Result<Vec<VersionStatus>> {
    let mut versions: Vec<Version> = repository.versions().await?;
    versions.sort_unstable();
    let mut list = Vec::new();
    for version in versions.into_iter().rev().take(VERSIONS_LISTED) {
        let reader = repository.version(version).await?;
        let manifest = reader.manifest();
        list.push(VersionStatus {
            version,
            time: manifest.time,
            size_bytes: manifest.disks.iter().map(|disk| disk.size_bytes).sum(),
            notes: manifest.notes.clone(),
            stays: None,
        });
    }
    Ok(list)
}

/// Says which versions of a user disk the server will keep. A rule counts from the newest version, so that the older ones, which may not
/// be in the list, change nothing.
fn foresee(rule: &Retention, versions: &mut [VersionStatus], now: Timestamp) {
    let candidate = |status: &VersionStatus| Candidate {
        version: status.version,
        time: status.time,
        stored: status.time,
        replaces: retention::replaces(&status.notes),
    };
    let candidates: Vec<Candidate> = versions.iter().map(candidate).collect();
    let kept = rule.keep(Kind::UserDisk, &candidates, &[], now);
    for status in versions {
        let stay = kept.get(&status.version).map_or(Stay::UntilPruned, |why| Stay::Kept(*why));
        status.stays = Some(stay);
    }
}

/// An appliance of which nothing runs here.
pub(crate) fn stopped(user: &UserName, name: &ApplianceName) -> ApplianceStatus {
    ApplianceStatus {
        name: name.clone(),
        user: user.clone(),
        latest: None,
        state: InstanceState::Stopped,
        reason: None,
        running: None,
        restart_needed: false,
        boot_seconds: None,
        fetched: None,
        foretold: None,
        user_disk: None,
        lock: None,
        held: None,
        screen: None,
        operation: None,
    }
}

#[cfg(test)]
mod tests {
    use collective_api::host::{Stay, VersionStatus};
    use collective_model::{Timestamp, Version};
    use collective_repository::Retention;
    use collective_repository::retention::{Reason, notes_of_undo};

    use super::foresee;

    #[test]
    fn of_each_version_of_a_user_disk_it_is_said_whether_it_stays() {
        let undone = notes_of_undo(Version::FIRST);
        let status = |number: u64| VersionStatus {
            version: Version::new(number).unwrap(),
            time: Timestamp(i64::try_from(number).unwrap()),
            size_bytes: 0,
            notes: if number == 3 { undone.clone() } else { String::new() },
            stays: None,
        };
        let mut versions = [6, 5, 4, 3, 2, 1].map(status);
        foresee(&Retention::of_last(1), &mut versions, Timestamp(1000));
        let expected = [
            Stay::Kept(Reason::Head),
            Stay::Kept(Reason::Undo),
            Stay::UntilPruned,
            Stay::Kept(Reason::Replaced),
            Stay::Kept(Reason::Replaced),
            Stay::UntilPruned,
        ];
        assert_eq!(versions.map(|version| version.stays.unwrap()), expected);
    }
}
