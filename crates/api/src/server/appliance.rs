//! Appliances as administrators see them.

use collective_model::{ApplianceName, GroupName, Version};
use collective_repository::Descriptor;
use serde::{Deserialize, Serialize};

/// An appliance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appliance {
    /// The name.
    pub name: ApplianceName,
    /// Its repository, which readers trust because the server says so here.
    pub repository: Descriptor,
    /// The latest version; none before the first was published.
    pub head: Option<Version>,
    /// The groups that may start it.
    pub groups: Vec<GroupName>,
    /// Bytes that its repository takes.
    pub stored_bytes: u64,
}

/// Makes an appliance with an empty repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateAppliance {
    /// The name.
    pub name: ApplianceName,
    /// Its repository; its publisher's key is who can publish.
    pub repository: Descriptor,
}

/// What a complete check of a repository found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong; nothing if empty.
    pub damages: Vec<DamagedObject>,
}

/// One damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedObject {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// Asks to drop old versions, and the packs that no version reaches any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneRequest {
    /// How many of the latest versions stay, at least 1.
    pub keep_last: u64,
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
    /// Packs that no version reaches; they are swept when a running upload or reader can no longer need them.
    pub unreachable_packs: u64,
    /// Packs that were swept.
    pub swept_packs: u64,
    /// Bytes that were freed.
    pub freed_bytes: u64,
}
