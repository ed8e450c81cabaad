//! Looking after repositories: which versions stay, and whether what is stored is well.

use collective_model::{ApplianceName, Timestamp, UserName, Version};
use collective_repository::Retention;
use collective_repository::retention::Reason;
use serde::{Deserialize, Serialize};

/// What a complete check of a repository found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong, as far as it is named; nothing if empty.
    pub damages: Vec<DamagedObject>,
    /// Damages beyond these.
    #[serde(default)]
    pub further_damages: u64,
}

/// One damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedObject {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// What the server remembers of the checks of a repository, its own and those that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// When the last complete one ended; none before the first.
    pub finished: Option<Timestamp>,
    /// Objects that it read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Damages that it found.
    pub damaged: u64,
    /// The first of them.
    pub damages: Vec<DamagedObject>,
    /// Bytes that one which is under way has read.
    pub under_way_bytes: Option<u64>,
}

/// Asks to drop old versions, and the packs that no version reaches any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneRequest {
    /// Which versions stay, the latest always; without it the rule that is set for the appliance.
    pub rule: Option<Retention>,
    /// Other versions that stay.
    #[serde(default)]
    pub keep: Vec<Version>,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What went, or would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    /// Versions that were dropped.
    pub versions: Vec<Version>,
    /// Versions that stay.
    pub kept: Vec<KeptVersion>,
    /// Packs that no version reaches; they are swept when a running upload or reader can no longer need them.
    pub unreachable_packs: u64,
    /// Packs that were swept.
    pub swept_packs: u64,
    /// Bytes that were freed.
    pub freed_bytes: u64,
}

/// A version that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptVersion {
    /// Its number.
    pub version: Version,
    /// Why.
    pub reason: Reason,
}

/// Says which versions stay from now on: of an appliance, or of all user disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetRetention {
    /// The rule; none: the server never prunes by itself.
    pub rule: Option<Retention>,
}

/// How all repositories of the server stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upkeep {
    /// Which versions of user disks stay; none: all.
    pub user_disks: Option<Retention>,
    /// Repositories that have a version.
    pub repositories: u64,
    /// Those of them that were never checked whole.
    pub unchecked: u64,
    /// When the one was checked whose check is the longest ago; none if none was.
    pub oldest_check: Option<Timestamp>,
    /// Those in which the last check found damage, the first hundred.
    pub damaged: Vec<DamagedRepository>,
}

/// A repository that is not well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedRepository {
    /// The appliance that it is of.
    pub appliance: ApplianceName,
    /// Whose user disk for the appliance it is of; none: it is of the appliance itself.
    pub user: Option<UserName>,
    /// What was found.
    pub check: CheckStatus,
}
