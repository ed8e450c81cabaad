//! What a person has: the appliances that they may start, their subscriptions, and the locks on these.

use collective_model::{
    ApplianceName, Epoch, HostId, HostName, SubscriptionId, Timestamp, Version,
};
use collective_repository::{Descriptor, Retention};
use serde::{Deserialize, Serialize};

use super::account::User;

/// Everything that a host needs to know of one person. Hosts keep a copy for days without network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Whose.
    pub user: User,
    /// What they may start.
    pub appliances: Vec<ProfileAppliance>,
    /// What they have used.
    pub subscriptions: Vec<Subscription>,
    /// Which versions of their user disks the server keeps; none: all.
    #[serde(default)]
    pub user_disk_retention: Option<Retention>,
}

/// An appliance that a person may start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileAppliance {
    /// The name.
    pub name: ApplianceName,
    /// Its repository, which the host trusts because the server says so here.
    pub repository: Descriptor,
    /// The latest version; none before the first was published.
    pub head: Option<Version>,
}

/// One user's use of one appliance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Its id.
    pub id: SubscriptionId,
    /// Of what.
    pub appliance: ApplianceName,
    /// The repository of its user disk.
    pub repository: Descriptor,
    /// The latest version of the user disk; none before the first.
    pub head: Option<Version>,
    /// Who may write it now.
    pub lock: Option<Lock>,
}

/// Subscribes the user to an appliance. Where they are subscribed already, that subscription is the answer and the
/// offered repository is ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubscribeRequest {
    /// To what.
    pub appliance: ApplianceName,
    /// The repository to create for the user disk: private, drawn by the device.
    pub repository: Descriptor,
}

/// The right to write a user disk. It is held until it is released or broken; one whose holder was not heard of for
/// longer than the lease, and had nothing left to back up, may be taken over without being broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Who holds it.
    pub host: HostId,
    /// What people call the holder.
    pub host_name: HostName,
    /// Its fencing number.
    pub epoch: Epoch,
    /// Held since.
    pub since: Timestamp,
    /// When the holder was last heard of.
    pub seen: Timestamp,
    /// When the lease ends unless it is renewed.
    pub expires: Timestamp,
    /// Bytes that the holder has not backed up, as it last said; none if it never said.
    pub backlog_bytes: Option<u64>,
}

/// Takes the lock for the host of the device that asks. The holder itself gets its own lock again, with the same epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeLock {
    /// Take it from whoever holds it. What they have not backed up, they can no longer publish.
    pub break_lock: bool,
}

/// Says that the holder is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewLock {
    /// The fencing number that the holder has.
    pub epoch: Epoch,
    /// Bytes that are not backed up.
    pub backlog_bytes: u64,
}
