//! A server made of directories: one user, their profile in memory, locks with epochs, repositories on disk.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use collective_api::server::{Popularity, ReadReport};
use collective_host::remote::{Entitled, Profile, Remote, Subscribed};
use collective_model::{
    ApplianceName, Epoch, Error, ErrorKind, RepositoryId, Result, SubscriptionId, Timestamp,
    Version,
};
use collective_repository::Descriptor;
use collective_repository::backend::{
    Backend, Commit, Directory, Exclusive, Listed, ObjectName, Pieces,
};

/// The server; hosts each have a [`Seat`] at it.
#[derive(Debug)]
pub struct Directories {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    profile: Profile,
    /// Who holds the only lock, and the epoch it got.
    lock: Option<(String, Epoch)>,
    epochs: u64,
    /// Whether the log-ins are ended.
    refuses: bool,
    /// Ranges of packs that were read.
    reads: Vec<Range<u64>>,
    /// What is told of what is popular, and heard of it, unless the server is silent about it.
    popularity: Option<Popularity>,
    is_silent: bool,
    reports: Vec<ReadReport>,
}

impl Directories {
    pub fn new(path: &Path) -> Arc<Self> {
        let state = Mutex::new(State::default());
        Arc::new(Self { path: path.to_owned(), state })
    }

    pub fn entitle(&self, name: &ApplianceName, descriptor: Descriptor) {
        let entry = Entitled { name: name.clone(), descriptor, latest: None };
        self.state.lock().unwrap().profile.appliances.push(entry);
    }

    /// Ends every log-in.
    pub fn refuse(&self) {
        self.state.lock().unwrap().refuses = true;
    }

    /// Says what is popular.
    pub fn popular(&self, popularity: Popularity) {
        self.state.lock().unwrap().popularity = Some(popularity);
    }

    /// Answers nothing about what is popular, or does so again.
    pub fn silent(&self, is_silent: bool) {
        self.state.lock().unwrap().is_silent = is_silent;
    }

    /// The ranges of packs that were read, in order.
    pub fn reads(&self) -> Vec<Range<u64>> {
        self.state.lock().unwrap().reads.clone()
    }

    /// What hosts reported.
    pub fn reports(&self) -> Vec<ReadReport> {
        self.state.lock().unwrap().reports.clone()
    }

    pub fn lock_holder(&self) -> Option<String> {
        self.state.lock().unwrap().lock.as_ref().map(|lock| lock.0.clone())
    }

    pub fn repository(&self, id: RepositoryId) -> PathBuf {
        self.path.join(id.to_string())
    }
}

/// The server as one host sees it.
#[derive(Debug)]
pub struct Seat {
    pub host: String,
    pub server: Arc<Directories>,
}

impl Seat {
    fn stale(&self, epoch: Epoch) -> Result<()> {
        let lock = self.server.state.lock().unwrap().lock.clone();
        if lock == Some((self.host.clone(), epoch)) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, "the lock is another's"))
    }
}

#[async_trait]
impl Remote for Seat {
    async fn profile(&self) -> Result<Profile> {
        let state = self.server.state.lock().unwrap();
        if state.refuses {
            return Err(Error::new(ErrorKind::Denied, "the log-in is over").with_hint("log in"));
        }
        Ok(state.profile.clone())
    }

    async fn subscribe(&self, name: &ApplianceName, descriptor: &Descriptor) -> Result<Subscribed> {
        Directory::create(self.server.repository(descriptor.id))?;
        let entry = Subscribed {
            id: SubscriptionId([5; 16]),
            appliance: name.clone(),
            descriptor: descriptor.clone(),
            latest: None,
            lock: None,
        };
        self.server.state.lock().unwrap().profile.subscriptions.push(entry.clone());
        Ok(entry)
    }

    async fn unsubscribe(&self, id: SubscriptionId) -> Result<()> {
        self.server.state.lock().unwrap().profile.subscriptions.retain(|entry| entry.id != id);
        Ok(())
    }

    async fn lock(&self, _: SubscriptionId, take: bool) -> Result<Epoch> {
        let mut state = self.server.state.lock().unwrap();
        if let Some((host, epoch)) = &state.lock {
            if *host == self.host {
                return Ok(*epoch);
            }
            if !take {
                let message = format!("the user disk is locked by `{host}`");
                return Err(Error::new(ErrorKind::Conflict, message).with_hint("--break-lock"));
            }
        }
        state.epochs += 1;
        let epoch = Epoch(state.epochs);
        state.lock = Some((self.host.clone(), epoch));
        Ok(epoch)
    }

    async fn renew(&self, _: SubscriptionId, epoch: Epoch, _: u64) -> Result<()> {
        self.stale(epoch)
    }

    async fn release(&self, _: SubscriptionId, epoch: Epoch) -> Result<()> {
        self.stale(epoch)?;
        self.server.state.lock().unwrap().lock = None;
        Ok(())
    }

    async fn report(&self, _: RepositoryId, report: &ReadReport) -> Result<()> {
        let mut state = self.server.state.lock().unwrap();
        if state.is_silent {
            return Err(Error::new(ErrorKind::Unavailable, "no answer"));
        }
        state.reports.push(report.clone());
        Ok(())
    }

    async fn popularity(&self, _: RepositoryId, _: Version) -> Result<Option<Popularity>> {
        let state = self.server.state.lock().unwrap();
        if state.is_silent {
            return Err(Error::new(ErrorKind::Unavailable, "no answer"));
        }
        Ok(state.popularity.clone())
    }

    fn backend(&self, id: RepositoryId, _: Epoch) -> Result<Arc<dyn Backend>> {
        let directory = Directory::open(self.server.repository(id))?;
        Ok(Arc::new(Heard { directory, server: Arc::clone(&self.server) }))
    }
}

/// A repository of which it is noted what is read of packs.
#[derive(Debug)]
struct Heard {
    directory: Directory,
    server: Arc<Directories>,
}

#[async_trait]
impl Backend for Heard {
    async fn read(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes> {
        self.directory.read(name, range).await
    }

    async fn stream(&self, name: &ObjectName, range: Range<u64>) -> Result<Pieces> {
        if let ObjectName::Pack(_) = name {
            self.server.state.lock().unwrap().reads.push(range.clone());
        }
        self.directory.stream(name, range).await
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.directory.size(name).await
    }

    async fn write(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        self.directory.write(name, bytes).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.directory.list(prefix).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.directory.delete(name).await
    }

    async fn head(&self) -> Result<Option<Version>> {
        self.directory.head().await
    }

    async fn commit(&self, commit: Commit) -> Result<()> {
        self.directory.commit(commit).await
    }

    async fn exclusive(&self) -> Result<Exclusive> {
        self.directory.exclusive().await
    }

    async fn remove_leftovers(&self, before: Timestamp) -> Result<u64> {
        self.directory.remove_leftovers(before).await
    }
}
