//! A user's way to the server: a client that shows the certificate of their log-in, and everything that goes through it.
//!
//! The client is exchanged when the certificate is renewed and when the person logs in again. Whatever runs holds the
//! [`Link`] and not the client, so a machine that was started under the last certificate reads its disks under the next.
//! When the server does not answer and the certificate is over, the answer says so: the way back is another log-in.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use collective_api::ServerClient;
use collective_api::host::LockHolder;
use collective_api::identity::Identity;
use collective_api::server;
use collective_model::{
    ApplianceName, Epoch, Error, ErrorKind, HostId, RepositoryId, Result, SubscriptionId,
    Timestamp, UserName, Version,
};
use collective_repository::Descriptor;
use collective_repository::backend::{
    Backend, Commit, Exclusive, Http, Listed, ObjectName, Pieces,
};
use futures::stream::StreamExt;
use tokio::sync::watch;

use crate::now;
use crate::remote::{Entitled, Profile, Remote, Subscribed};
use crate::settings::{Life, Server};

/// A user's way to the server, as long as they are logged in and longer: machines hold it too.
#[derive(Debug)]
pub(crate) struct Link {
    user: UserName,
    current: watch::Sender<Arc<Way>>,
}

/// A client with what it shows.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) client: ServerClient,
    pub(crate) identity: Identity,
    /// Not known of a certificate that an earlier release got.
    pub(crate) life: Option<Life>,
    server: Server,
}

impl Way {
    pub(crate) fn new(server: &Server, identity: Identity, life: Option<Life>) -> Result<Self> {
        let client = ServerClient::https(&server.address, &server.anchor, Some(&identity))?;
        Ok(Self { client, identity, life, server: server.clone() })
    }

    /// The same way with a new certificate.
    pub(crate) fn renewed(&self, identity: Identity, life: Life) -> Result<Self> {
        Self::new(&self.server, identity, Some(life))
    }

    /// Tells whether this leads to the same server.
    pub(crate) fn leads_to(&self, server: &Server) -> bool {
        self.server.address == server.address && self.server.anchor == server.anchor
    }

    /// Where the server is.
    pub(crate) fn base(&self) -> String {
        self.server.address.base()
    }
}

impl Link {
    pub(crate) fn new(user: UserName, way: Way) -> Self {
        Self { user, current: watch::Sender::new(Arc::new(way)) }
    }

    pub(crate) fn way(&self) -> Arc<Way> {
        Arc::clone(&self.current.borrow())
    }

    pub(crate) fn exchange(&self, way: Way) {
        self.current.send_replace(Arc::new(way));
    }

    /// Says why there was no answer, if it is because the log-in is over.
    pub(crate) fn explain<T>(&self, answer: Result<T>) -> Result<T> {
        let life = self.way().life;
        answer.map_err(|error| explained(&self.user, life, now(), error))
    }
}

fn explained(user: &UserName, life: Option<Life>, now: Timestamp, error: Error) -> Error {
    let over = life.is_some_and(|life| life.is_over(now));
    if error.kind() != ErrorKind::Unavailable || error.is_answer() || !over {
        return error;
    }
    let message = format!("the log-in of `{user}` on this computer has ended");
    Error::new(ErrorKind::Unavailable, message).with_hint(again(user)).with_source(error)
}

/// What to do about a log-in that is over.
fn again(user: &UserName) -> String {
    format!("log in again with `collective login {user}`; nothing is lost meanwhile")
}

/// The server over HTTPS.
#[derive(Debug)]
pub(crate) struct AtServer {
    pub(crate) link: Arc<Link>,
    pub(crate) host: Option<HostId>,
}

impl AtServer {
    fn subscribed(&self, entry: server::Subscription) -> Subscribed {
        let lock = entry.lock.map(|lock| LockHolder {
            here: Some(lock.host) == self.host,
            host: lock.host_name.to_string(),
            since: lock.since,
            seen: Some(lock.seen),
            backlog_bytes: lock.backlog_bytes,
        });
        Subscribed {
            id: entry.id,
            appliance: entry.appliance,
            descriptor: entry.repository,
            latest: entry.head,
            lock,
        }
    }
}

#[async_trait]
impl Remote for AtServer {
    async fn profile(&self) -> Result<Profile> {
        let asked = self.link.way().client.profile(None).await;
        let (profile, _) = self.link.explain(asked)?.ok_or_else(|| {
            Error::new(ErrorKind::Internal, "the server says that an unknown profile is unchanged")
        })?;
        let entitled = |entry: server::ProfileAppliance| Entitled {
            name: entry.name,
            descriptor: entry.repository,
            latest: entry.head,
        };
        Ok(Profile {
            appliances: profile.appliances.into_iter().map(entitled).collect(),
            subscriptions: profile
                .subscriptions
                .into_iter()
                .map(|it| self.subscribed(it))
                .collect(),
            user_disk_retention: profile.user_disk_retention,
        })
    }

    async fn subscribe(
        &self,
        appliance: &ApplianceName,
        descriptor: &Descriptor,
    ) -> Result<Subscribed> {
        let request = server::SubscribeRequest {
            appliance: appliance.clone(),
            repository: descriptor.clone(),
        };
        let entry = self.link.way().client.subscribe(&request).await;
        self.link.explain(entry).map(|entry| self.subscribed(entry))
    }

    async fn unsubscribe(&self, id: SubscriptionId) -> Result<()> {
        self.link.explain(self.link.way().client.unsubscribe(id).await)
    }

    async fn lock(&self, id: SubscriptionId, take: bool) -> Result<Epoch> {
        let request = server::TakeLock { break_lock: take };
        let lock = self.link.way().client.take_lock(id, &request).await;
        self.link.explain(lock).map(|lock| lock.epoch)
    }

    async fn renew(&self, id: SubscriptionId, epoch: Epoch, backlog_bytes: u64) -> Result<()> {
        let request = server::RenewLock { epoch, backlog_bytes };
        let lock = self.link.way().client.renew_lock(id, &request).await;
        self.link.explain(lock).map(drop)
    }

    async fn release(&self, id: SubscriptionId, epoch: Epoch) -> Result<()> {
        self.link.explain(self.link.way().client.release_lock(id, epoch).await)
    }

    async fn report(&self, id: RepositoryId, report: &server::ReadReport) -> Result<()> {
        self.link.explain(self.link.way().client.report(id, report).await)
    }

    async fn popularity(
        &self,
        id: RepositoryId,
        version: Version,
    ) -> Result<Option<server::Popularity>> {
        match self.link.way().client.popularity(id, version).await {
            // A server of an earlier release counts nothing.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            asked => self.link.explain(asked),
        }
    }

    fn backend(&self, id: RepositoryId, epoch: Epoch) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(Linked { link: Arc::clone(&self.link), id, epoch }))
    }
}

/// The objects of a repository, over whichever way there is now.
#[derive(Debug)]
struct Linked {
    link: Arc<Link>,
    id: RepositoryId,
    epoch: Epoch,
}

impl Linked {
    fn http(&self) -> Http {
        let way = self.link.way();
        Http::new(way.client.http().clone(), &way.client.repository_url(self.id), self.epoch)
    }
}

#[async_trait]
impl Backend for Linked {
    async fn read(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes> {
        self.link.explain(self.http().read(name, range).await)
    }

    async fn stream(&self, name: &ObjectName, range: Range<u64>) -> Result<Pieces> {
        let pieces = self.link.explain(self.http().stream(name, range).await)?;
        let link = Arc::clone(&self.link);
        Ok(pieces.map(move |piece| link.explain(piece)).boxed())
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.link.explain(self.http().size(name).await)
    }

    async fn write(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        self.link.explain(self.http().write(name, bytes).await)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.link.explain(self.http().list(prefix).await)
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.link.explain(self.http().delete(name).await)
    }

    async fn head(&self) -> Result<Option<Version>> {
        self.link.explain(self.http().head().await)
    }

    async fn commit(&self, commit: Commit) -> Result<()> {
        self.link.explain(self.http().commit(commit).await)
    }

    async fn exclusive(&self) -> Result<Exclusive> {
        self.link.explain(self.http().exclusive().await)
    }

    async fn remove_leftovers(&self, before: Timestamp) -> Result<u64> {
        self.link.explain(self.http().remove_leftovers(before).await)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::Router;
    use axum::body::Body;
    use axum::http::{StatusCode, header};
    use axum::response::IntoResponse;
    use bytes::Bytes;
    use collective_api::ServerClient;
    use collective_api::identity::{Certificate, DeviceKey, Identity};
    use collective_api::server::{ReadPart, ReadReport};
    use collective_api::trust::Anchor;
    use collective_model::{Digest, Epoch, Error, ErrorKind, RepositoryId, Timestamp, Version};
    use collective_repository::backend::{Backend, ObjectName};
    use futures::stream::{self, StreamExt, TryStreamExt};
    use tokio::net::UnixListener;

    use super::{AtServer, Link, Linked, Way, explained};
    use crate::remote::Remote;
    use crate::settings::{Life, Server};

    #[test]
    fn a_server_that_is_away_is_told_from_a_log_in_that_is_over() {
        let life = Some(Life { begins: Timestamp(0), ends: Timestamp(10) });
        let at = |kind, life, now| {
            let user = "ann".parse().unwrap();
            explained(&user, life, Timestamp(now), Error::new(kind, "no answer"))
        };
        let over = at(ErrorKind::Unavailable, life, 10);
        assert_eq!(over.kind(), ErrorKind::Unavailable);
        assert_eq!(over.chain(), "the log-in of `ann` on this computer has ended: no answer");
        assert!(over.hint().unwrap().contains("collective login ann"));
        for (kind, life, now) in [
            (ErrorKind::Unavailable, life, 9),
            (ErrorKind::Unavailable, None, 10),
            (ErrorKind::Conflict, life, 10),
        ] {
            assert_eq!(at(kind, life, now).chain(), "no answer");
        }
    }

    #[tokio::test]
    async fn the_beginning_of_a_pack_is_here_before_its_end_was_sent() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("server.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            axum::serve(listener, Router::new().fallback(half_of_a_range)).await
        });
        let link = Arc::new(Link::new("ann".parse().unwrap(), way(&socket)));
        let linked = Linked { link, id: RepositoryId([1; 16]), epoch: Epoch(0) };
        let pack = ObjectName::Pack(Digest([2; 32]));
        let mut pieces = linked.stream(&pack, 0..8).await.unwrap();
        assert_eq!(pieces.try_next().await.unwrap(), Some(Bytes::from_static(b"half")));
        server.abort();
    }

    #[tokio::test]
    async fn a_server_that_counts_nothing_is_asked_in_vain_and_told_in_vain() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("server.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let earlier = Router::new().fallback(|| async { StatusCode::NOT_FOUND });
        let server = tokio::spawn(async move { axum::serve(listener, earlier).await });
        let link = Arc::new(Link::new("ann".parse().unwrap(), way(&socket)));
        let (remote, id) = (AtServer { link, host: None }, RepositoryId([1; 16]));
        assert_eq!(remote.popularity(id, Version::FIRST).await.unwrap(), None);
        let report = ReadReport {
            version: Version::FIRST,
            part: ReadPart::Use,
            regions: Vec::new(),
            read_bytes: 0,
            foretold_bytes: 0,
        };
        // It is not kept for another try.
        let refused = remote.report(id, &report).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotFound);
        server.abort();
    }

    /// Four bytes of eight, and then nothing.
    async fn half_of_a_range() -> impl IntoResponse {
        let first = stream::once(async { Ok::<_, Error>(Bytes::from_static(b"half")) });
        let body = Body::from_stream(first.chain(stream::pending()));
        (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_LENGTH, "8")], body)
    }

    fn way(socket: &std::path::Path) -> Way {
        let certificate = Certificate(String::new());
        Way {
            client: ServerClient::unix(socket).unwrap(),
            identity: Identity { certificate, key: DeviceKey::generate().unwrap() },
            life: None,
            server: Server {
                address: "server".parse().unwrap(),
                anchor: Anchor(String::new()),
                certificate: None,
                life: None,
            },
        }
    }
}
