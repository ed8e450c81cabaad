//! What the host knows of itself, of its appliances and of their versions.

use collective_model::{
    ApplianceName, HostId, HostName, OperationId, Timestamp, UserName, Version,
};
use collective_repository::retention::Reason;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The host itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// What people call it; none before it joined.
    pub name: Option<HostName>,
    /// Its id at the server; none while it is a guest there.
    pub id: Option<HostId>,
    /// The release of the daemon.
    pub release: String,
    /// Its process.
    pub pid: u32,
    /// The server it is tied to.
    pub server: Option<ServerStatus>,
    /// The host's own certificate; none before it joined, or before anybody logged in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
    /// Who is logged in.
    pub sessions: Vec<Session>,
    /// The cache.
    pub cache: CacheStatus,
    /// Where what was fetched came from: the server first, then the mirrors.
    #[serde(default)]
    pub sources: Vec<SourceStatus>,
    /// What runs the machines; none until it was probed.
    pub accelerator: Option<AcceleratorStatus>,
    /// Minutes between backups of a running appliance's user disk; 0: only when it stops.
    pub publish_minutes: u32,
    /// Whether the server is told which parts of system disks are read; not known of a daemon that never does.
    #[serde(default)]
    pub reports: bool,
    /// Whether the connection is paid for by what it carries, so that nothing is fetched before it is asked for.
    #[serde(default)]
    pub metered: bool,
}

/// The server of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Where it is.
    pub url: String,
    /// SHA-256 of its certificate authority.
    pub fingerprint: String,
    /// Whether it answered when it was last asked.
    pub reachable: bool,
    /// Whether it was asked since the daemon started.
    #[serde(default)]
    pub asked: bool,
}

/// Where frames come from, and what came since the daemon started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// The mirror's URL; none for the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    /// Bytes that it brought.
    pub fetched_bytes: u64,
    /// How often it failed, or gave wrong bytes.
    pub failures: u64,
    /// How often another was faster that was asked later.
    pub late: u64,
    /// Why it is left out, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<DroppedStatus>,
}

/// Why a source is not asked; the server is then asked only for what nobody else has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedStatus {
    /// Since when.
    pub since: Timestamp,
    /// From when on it is tried again, when something is needed.
    pub until: Timestamp,
    /// Why.
    pub reason: String,
}

/// A person who is logged in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Who.
    pub user: UserName,
    /// Whether the server took the log-in; else the last password that worked here did.
    pub online: bool,
    /// Since when.
    pub since: Timestamp,
    /// What the server knows the log-in by; it is renewed while the server can be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
    /// Why the server takes this log-in no more, and what to do; what is here is shown all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Failure>,
}

/// How long a certificate is good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// When it ends.
    pub ends: Timestamp,
    /// From when on a new one is asked for.
    pub renewal: Timestamp,
    /// Why the last attempt to get a new one failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How full the cache is, and what it was filled with since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// Bytes it holds.
    pub used_bytes: u64,
    /// Bytes that crossed the network since the daemon started.
    pub fetched_bytes: u64,
    /// Bytes that were asked for of two sources since then because the first was slow.
    #[serde(default)]
    pub raced_bytes: u64,
    /// Frames that it holds.
    #[serde(default)]
    pub frames: u64,
    /// Reads that it answered since the daemon started.
    #[serde(default)]
    pub hits: u64,
    /// Reads that it did not.
    #[serde(default)]
    pub misses: u64,
    /// Frames that the disk did not give back right; they were fetched again.
    #[serde(default)]
    pub damaged: u64,
}

/// What a look at every frame of the cache found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheReport {
    /// Frames that were read.
    pub frames: u64,
    /// Their bytes, decompressed.
    pub bytes: u64,
    /// Frames that were not right, and were dropped; they are fetched again when they are wanted.
    pub damaged: u64,
}

/// What runs the machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceleratorStatus {
    /// `kvm` or `tcg`.
    pub name: String,
    /// Why this one.
    pub why: String,
}

/// Where an appliance is in its life here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Not running.
    #[serde(rename = "off")]
    Stopped,
    /// Waits for memory or a place.
    Queued,
    /// On its way up.
    Starting,
    /// Its guest runs.
    Running,
    /// Its guest is held, with a reason.
    Paused,
    /// On its way down.
    Stopping,
}

/// One appliance that a user may start, as this host sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApplianceStatus {
    /// Its name.
    pub name: ApplianceName,
    /// Whose list it is in.
    pub user: UserName,
    /// Its latest published version, as last heard.
    pub latest: Option<Version>,
    /// Where it is in its life.
    pub state: InstanceState,
    /// Why it is paused, or why it is not running although it should be.
    pub reason: Option<String>,
    /// The version that runs, if it runs.
    pub running: Option<Version>,
    /// Whether a newer version waits for the next start.
    pub restart_needed: bool,
    /// Seconds from start until the guest's agent answered, of the last start.
    pub boot_seconds: Option<f64>,
    /// What was fetched of the system disk that runs.
    pub fetched: Option<Fetched>,
    /// How well the boot trace foretold the last start that came up.
    #[serde(default)]
    pub foretold: Option<Foretold>,
    /// The user disk, if it has one.
    pub user_disk: Option<UserDiskStatus>,
    /// Who holds the subscription's lock, as last heard.
    pub lock: Option<LockHolder>,
    /// Whether it is held here, to run without the server.
    #[serde(default)]
    pub held: Option<Held>,
    /// The Unix socket on which its screen is shown by VNC, while it runs.
    #[serde(default)]
    pub screen: Option<String>,
    /// Work that goes on.
    pub operation: Option<OperationId>,
}

/// An appliance that somebody wants to have here whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// One version; none: the latest, whichever that is.
    pub version: Option<Version>,
    /// The version that is here whole.
    pub complete: Option<Version>,
}

/// How well a boot trace foretold what a start read of its system disk, each block counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foretold {
    /// Bytes that the start read.
    pub read_bytes: u64,
    /// How many of them the trace had.
    pub foretold_bytes: u64,
}

/// What was fetched of a disk that is paged in, since it was opened; what was in the cache already does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fetched {
    /// Bytes of the disk that were fetched.
    pub bytes: u64,
    /// The size of the disk.
    pub size_bytes: u64,
    /// The share of the disk, from 0 to 1.
    pub share: f64,
}

/// A user disk and its backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserDiskStatus {
    /// The version that was published last from here, or that the disk here is made on.
    pub version: Option<Version>,
    /// When it was published.
    pub published: Option<Timestamp>,
    /// Bytes written here that are not published yet; at 0 it is safe to leave.
    pub backlog_bytes: u64,
    /// Why the last backup failed, until one succeeds.
    pub problem: Option<String>,
    /// Files of layers that could not be published because the lock was lost.
    pub kept: Vec<String>,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    /// On which host, by its name.
    pub host: String,
    /// Whether that is this host.
    pub here: bool,
    /// Since when.
    pub since: Timestamp,
    /// When it was last heard of.
    pub seen: Option<Timestamp>,
    /// What it said it has not backed up.
    pub backlog_bytes: Option<u64>,
}

/// The versions of an appliance and of the user disk that goes with it, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// What the administrator published.
    pub appliance: Vec<VersionStatus>,
    /// What was backed up.
    pub user_disk: Vec<VersionStatus>,
}

/// One version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionStatus {
    /// Its number.
    pub version: Version,
    /// When it was published.
    pub time: Timestamp,
    /// The size of its disks.
    pub size_bytes: u64,
    /// What its publisher says of it.
    pub notes: String,
    /// Whether the server will keep it, if it prunes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stays: Option<Stay>,
}

/// How long a version stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stay {
    /// It would stay if it were pruned now, for this reason.
    Kept(Reason),
    /// It goes when the server prunes next.
    UntilPruned,
}
