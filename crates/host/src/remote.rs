//! The seam to the server, as one logged-in user sees it: profile, subscriptions, locks and repositories.
//!
//! The host asks for nothing else. The real one speaks HTTPS ([`crate::session`] makes it); tests have one over
//! directories.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use collective_api::host::LockHolder;
use collective_api::server::{Popularity, ReadReport};
use collective_model::{
    ApplianceName, Epoch, Error, ErrorKind, RepositoryId, Result, SubscriptionId, Version,
};
use collective_repository::backend::Backend;
use collective_repository::{Descriptor, Retention};
use serde::{Deserialize, Serialize};

/// The server, on behalf of a user.
#[async_trait]
pub trait Remote: Send + Sync + Debug {
    async fn profile(&self) -> Result<Profile>;

    /// Creates the user's subscription to an appliance, or returns the one there is.
    async fn subscribe(
        &self,
        appliance: &ApplianceName,
        descriptor: &Descriptor,
    ) -> Result<Subscribed>;

    /// Deletes a subscription with its user disk.
    async fn unsubscribe(&self, id: SubscriptionId) -> Result<()>;

    /// Takes the lock; the same host may take it again.
    ///
    /// # Errors
    /// `Conflict` that names who holds it.
    async fn lock(&self, id: SubscriptionId, take: bool) -> Result<Epoch>;

    /// Says that the lock is still held, and what is not backed up.
    async fn renew(&self, id: SubscriptionId, epoch: Epoch, backlog_bytes: u64) -> Result<()>;

    async fn release(&self, id: SubscriptionId, epoch: Epoch) -> Result<()>;

    /// Says what a guest read of an appliance's system disk.
    async fn report(&self, id: RepositoryId, report: &ReadReport) -> Result<()>;

    /// Asks what is read most of a version of an appliance; none where nobody knows.
    async fn popularity(&self, id: RepositoryId, version: Version) -> Result<Option<Popularity>>;

    /// The objects of a repository; `epoch` goes with what is written.
    fn backend(&self, id: RepositoryId, epoch: Epoch) -> Result<Arc<dyn Backend>>;
}

/// What a user may start, and what they have: replicated to the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    pub appliances: Vec<Entitled>,
    pub subscriptions: Vec<Subscribed>,
    /// Which versions of user disks the server keeps; none: all.
    #[serde(default)]
    pub user_disk_retention: Option<Retention>,
}

/// An appliance that a user may start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entitled {
    pub name: ApplianceName,
    pub descriptor: Descriptor,
    pub latest: Option<Version>,
}

/// A subscription of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribed {
    pub id: SubscriptionId,
    pub appliance: ApplianceName,
    pub descriptor: Descriptor,
    pub latest: Option<Version>,
    pub lock: Option<LockHolder>,
}

impl Profile {
    /// Finds an appliance.
    ///
    /// # Errors
    /// `NotFound`, for an appliance that is unknown or that the user may not start: the two are not told apart.
    pub fn appliance(&self, name: &ApplianceName) -> Result<&Entitled> {
        self.appliances.iter().find(|entry| &entry.name == name).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("there is no appliance `{name}` that you may start"),
            )
            .with_hint("see `collective list`; an administrator grants appliances")
        })
    }

    pub fn subscription(&self, name: &ApplianceName) -> Option<&Subscribed> {
        self.subscriptions.iter().find(|entry| &entry.appliance == name)
    }
}
