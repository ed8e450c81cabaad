//! Appliances as administrators see them.

use collective_model::{ApplianceName, GroupName, Version};
use collective_repository::{Descriptor, Retention};
use serde::{Deserialize, Serialize};

use super::popularity::VersionReads;
use super::upkeep::CheckStatus;

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
    /// Which versions stay when the server prunes it by itself; none: it never does.
    #[serde(default)]
    pub retention: Option<Retention>,
    /// What the server knows of its objects' health.
    #[serde(default)]
    pub check: CheckStatus,
    /// How well boot traces foretell starts, for each version of which hosts reported.
    #[serde(default)]
    pub reads: Vec<VersionReads>,
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
