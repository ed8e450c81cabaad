//! Versions that are held whole on this host, so that they run without the server; and what is fetched before it is asked for.
//!
//! A hold is a record beside the instance. It is pursued until all frames of the system disk and of the user disk are in the
//! cache and pinned there, across restarts of the daemon, behind everything that guests read; then it follows what is
//! published, and the old version stays whole until the new one is. Of an appliance that was used here and is not held, the
//! boot of a new version is fetched, so that the next start finds it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use collective_api::host::{Held, HoldRequest, InstanceState};
use collective_api::server::Popularity;
use collective_model::{
    ApplianceName, BlockRange, ByteCount, DiskRole, Epoch, Error, ErrorKind, Monitor, Progress,
    Result, UserName, Version,
};
use collective_repository::backend::Backend;
use collective_repository::{Descriptor, Trace, VersionReader};
use serde::{Deserialize, Serialize};

use crate::core::Core;
use crate::operation::{self, Handle};
use crate::paths::InstancePaths;
use crate::popularity;
use crate::record;
use crate::remote::Profile;
use crate::session::Session;

/// The format of the record.
const FORMAT: u32 = 1;
/// How often it is looked whether something new is published.
const LOOK_PAUSE: Duration = Duration::from_secs(300);
/// The first look comes after this: what a person does right after the log-in goes first.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// `hold.json`: what somebody wants to have here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hold {
    format: u32,
    /// One version; none: the latest, whichever that is.
    version: Option<Version>,
    /// What is here whole: the system disk's version and the user disk's.
    complete: Option<Version>,
    user_disk: Option<Version>,
}

/// What a person is told of a hold.
pub(crate) fn held(paths: &InstancePaths) -> Option<Held> {
    let hold: Hold = record::load(&paths.hold()).ok().flatten()?;
    Some(Held { version: hold.version, complete: hold.complete })
}

/// Fetches what is to be held, as an operation; returns when it is here whole.
pub(crate) async fn hold(
    core: &Arc<Core>,
    session: &Session,
    name: &ApplianceName,
    request: HoldRequest,
    handle: &Handle,
) -> Result<Held> {
    let paths = core.paths.instance(&session.user, name);
    let work = async {
        let profile = core.profile(session).await?;
        let version = open(core, session, name, &profile, request.version).await?;
        let before: Option<Hold> = record::load(&paths.hold())?;
        let mut hold = Hold {
            format: FORMAT,
            version: request.version,
            complete: before.and_then(|hold| hold.complete),
            user_disk: before.and_then(|hold| hold.user_disk),
        };
        record::make_directory(&paths.dir)?;
        record::store(&paths.hold(), &hold)?;
        let user = user_disk(core, session, name, &profile).await?;
        let mut disks = vec![(DiskRole::System, version.clone())];
        disks.extend(user.clone().map(|user| (DiskRole::User, user)));
        let counts = popular(core, session, name, &profile, &version).await;
        let popular = counts.as_ref().map(popularity::ranked).unwrap_or_default();
        let frames = complete(core, &disks, popular, handle).await?;
        keep_index(core, session, &profile.appliance(name)?.descriptor, &disks[0]).await?;
        if let (Some(subscribed), [_, user]) = (profile.subscription(name), disks.as_slice()) {
            keep_index(core, session, &subscribed.descriptor, user).await?;
        }
        core.cache.pin(&pin_name(&paths), frames);
        hold.complete = Some(version.manifest().version);
        hold.user_disk = user.map(|user| user.manifest().version);
        record::store(&paths.hold(), &hold)?;
        Ok(Held { version: hold.version, complete: hold.complete })
    };
    tokio::select! {
        done = work => done,
        () = handle.cancelled() => Err(operation::cancelled("the fetch")
            .with_hint("what came stays in the cache, and `collective hold` goes on from there")),
        () = core.stop.cancelled() => Err(Error::new(
            ErrorKind::Unavailable,
            "the daemon goes down; the next one goes on with this",
        )),
    }
}

/// Gives up a hold; what is here may leave the cache when it needs room.
pub(crate) fn release(core: &Core, paths: &InstancePaths) -> Result<()> {
    core.cache.unpin(&pin_name(paths));
    record::remove(&paths.hold())
}

fn pin_name(paths: &InstancePaths) -> String {
    format!("hold {}", paths.dir.display())
}

async fn open(
    core: &Core,
    session: &Session,
    name: &ApplianceName,
    profile: &Profile,
    wanted: Option<Version>,
) -> Result<VersionReader> {
    let descriptor = &profile.appliance(name)?.descriptor;
    let repository = core.repository(session, descriptor, Epoch(0)).await?;
    let version = match wanted {
        Some(version) => version,
        None => repository.head().await?.ok_or_else(|| {
            let message = format!("no version of `{name}` is published yet");
            Error::new(ErrorKind::NotFound, message)
        })?,
    };
    repository.version(version).await
}

/// What is read most of a version.
async fn popular(
    core: &Core,
    session: &Session,
    name: &ApplianceName,
    profile: &Profile,
    version: &VersionReader,
) -> Option<Popularity> {
    let repository = profile.appliance(name).ok()?.descriptor.id;
    popularity::of(core, session, repository, version.manifest().version).await
}

/// The latest version of the user disk, if there is one.
async fn user_disk(
    core: &Core,
    session: &Session,
    name: &ApplianceName,
    profile: &Profile,
) -> Result<Option<VersionReader>> {
    let Some(entry) = profile.subscription(name) else { return Ok(None) };
    let repository = core.repository(session, &entry.descriptor, Epoch(0)).await?;
    match repository.head().await? {
        Some(version) => repository.version(version).await.map(Some),
        None => Ok(None),
    }
}

/// Brings all of some disks into the cache, what is popular of the system disk first; returns their frames.
async fn complete(
    core: &Core,
    disks: &[(DiskRole, VersionReader)],
    popular: Vec<BlockRange>,
    handle: &Handle,
) -> Result<Vec<collective_model::Digest>> {
    let mut total_bytes = 0;
    for (role, version) in disks {
        total_bytes += version.manifest().disk(*role)?.data_bytes;
    }
    if total_bytes > core.options.cache_bytes {
        let message = format!(
            "the cache may have {}, and {} are to be held",
            ByteCount(core.options.cache_bytes),
            ByteCount(total_bytes)
        );
        return Err(Error::new(ErrorKind::Invalid, message)
            .with_hint("run the daemon with a larger --cache-size"));
    }
    let popular = Trace { ranges: popular };
    let (mut frames, mut done_bytes, mut moved_bytes) = (Vec::new(), 0, 0);
    for (role, version) in disks {
        let number = version.manifest().version;
        handle.stage(&format!("fetching the {role} disk, version {number}"));
        // Kept beside the cache by this: without the server, a start needs it.
        let trace = version.trace(*role).await?;
        let data_bytes = version.manifest().disk(*role)?.data_bytes;
        let disk = core.disk(version.disk(*role).await?);
        disk.prefetch(&trace).await;
        let boot_bytes = disk.stats().fetched_bytes;
        if *role == DiskRole::System && !popular.ranges.is_empty() {
            disk.prefetch(&popular).await;
            let bytes = ByteCount(disk.stats().fetched_bytes - boot_bytes);
            tracing::info!("what is read most of version {number} is here, {bytes} came");
        }
        let (disk_bytes, shown) = (disk.blocks().max(1), disk.clone());
        frames.extend(
            disk.complete(|blocks| {
                let share = blocks as f64 / disk_bytes as f64;
                handle.progress(Progress {
                    done_bytes: done_bytes + (data_bytes as f64 * share) as u64,
                    total_bytes: Some(total_bytes),
                    moved_bytes: moved_bytes + shown.stats().fetched_bytes,
                });
            })
            .await,
        );
        done_bytes += data_bytes;
        moved_bytes += disk.stats().fetched_bytes;
    }
    Ok(frames)
}

/// Sees to it that the index of a disk is on this host whole and sound, however large it is: a start without the server
/// has no other.
async fn keep_index(
    core: &Core,
    session: &Session,
    descriptor: &Descriptor,
    (role, version): &(DiskRole, VersionReader),
) -> Result<()> {
    let replica = core.replica(session, descriptor, Epoch(0))?;
    let manifest = version.manifest();
    let name = manifest.disk(*role)?.index_name(manifest.version);
    replica.keep_whole(&name).await?;
    match version.check_stored_index(*role).await {
        Err(error) if error.kind() == ErrorKind::Corrupt && replica.distrust(&name).await => {
            replica.keep_whole(&name).await?;
            version.check_stored_index(*role).await
        }
        checked => checked,
    }
}

/// Pursues holds and fetches what is new, until the daemon goes down.
pub(crate) async fn keep(core: Arc<Core>) {
    let mut sessions = core.sessions.watch();
    let mut boots = BTreeMap::new();
    loop {
        core.connection.look().await;
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(FIRST_PAUSE) => {}
        }
        sessions.mark_unchanged();
        for session in core.sessions.all() {
            if let Err(error) = keep_for(&core, &session, &mut boots).await {
                tracing::debug!("{}: nothing is fetched ahead: {}", session.user, error.chain());
            }
        }
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_PAUSE) => {}
            changed = sessions.changed() => if changed.is_err() { return },
        }
    }
}

/// Boots that were fetched, by user and appliance.
type Boots = BTreeMap<(UserName, ApplianceName), Version>;

async fn keep_for(core: &Arc<Core>, session: &Session, boots: &mut Boots) -> Result<()> {
    let profile = core.profile(session).await?;
    for entry in &profile.appliances {
        let paths = core.paths.instance(&session.user, &entry.name);
        let hold: Option<Hold> = record::load(&paths.hold())?;
        let kept = match hold {
            // What is published later is for another connection; who wants it now asks for the hold again.
            Some(hold) if hold.complete.is_some() && core.connection.is_metered() => Ok(()),
            Some(hold) => keep_hold(core, session, &profile, &entry.name, hold).await,
            None if core.fetches_ahead() && paths.record().exists() => {
                keep_boot(core, session, &profile, &entry.name, boots).await
            }
            None => Ok(()),
        };
        if let Err(error) = kept {
            tracing::info!("{}/{}: {}", session.user, entry.name, error.chain());
        }
    }
    Ok(())
}

/// Makes a hold whole, if it is not.
async fn keep_hold(
    core: &Arc<Core>,
    session: &Session,
    profile: &Profile,
    name: &ApplianceName,
    hold: Hold,
) -> Result<()> {
    let system = open(core, session, name, profile, hold.version).await?.manifest().version;
    let user = user_disk(core, session, name, profile).await?;
    let user = user.map(|user| user.manifest().version);
    if hold.complete == Some(system) && hold.user_disk == user {
        return Ok(());
    }
    let handle = core.operations.begin("hold", name, &session.user);
    let request = HoldRequest { version: hold.version };
    let done = self::hold(core, session, name, request, &handle).await;
    handle.end(done);
    Ok(())
}

/// Tells whether a version is on its way up here, or is up: then its start brings what it needs.
fn is_starting(core: &Core, session: &Session, name: &ApplianceName, version: Version) -> bool {
    let status = core.instances.status(&session.user, name);
    status.is_some_and(|status| {
        let comes_up = matches!(status.state, InstanceState::Queued | InstanceState::Starting);
        comes_up || status.running == Some(version)
    })
}

/// Fetches the boot of the latest version and what most guests read besides, once.
async fn keep_boot(
    core: &Arc<Core>,
    session: &Session,
    profile: &Profile,
    name: &ApplianceName,
    boots: &mut Boots,
) -> Result<()> {
    let version = open(core, session, name, profile, None).await?;
    let (key, number) = ((session.user.clone(), name.clone()), version.manifest().version);
    if boots.get(&key) == Some(&number) || is_starting(core, session, name, number) {
        return Ok(());
    }
    let trace = version.trace(DiskRole::System).await?;
    let disk = core.disk(version.disk(DiskRole::System).await?);
    disk.prefetch(&trace).await;
    if let Some(counts) = popular(core, session, name, profile, &version).await {
        disk.prefetch(&Trace { ranges: popularity::likely(&counts) }).await;
    }
    let bytes = disk.stats().fetched_bytes;
    if bytes > 0 {
        let what = format!("{}/{name}", session.user);
        tracing::info!("{what}: the boot of version {number} is here, {} came", ByteCount(bytes));
    }
    boots.insert(key, number);
    Ok(())
}
