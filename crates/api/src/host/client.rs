//! Speaks with the host daemon over its Unix socket. Cheap to clone.
//!
//! Methods that begin work return its [`Operation`] at once; [`HostClient::finish`] waits for the end and tells
//! each change on the way, and [`HostClient::watch`] gives the changes themselves.

use std::path::{Path, PathBuf};

use collective_model::{ApplianceName, Error, ErrorKind, OperationId, Result, ResultExt, UserName};
use reqwest::header::HeaderMap;
use reqwest::{Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::events::EventReader;
use super::{
    ApplianceStatus, CacheStatus, Contact, ContactRequest, DeleteRequest, Empty, Event, ExecReply,
    ExecRequest, HoldRequest, HostStatus, JoinRequest, LoginRequest, LogoutRequest, Operation,
    OperationState, Session, StartRequest, StopRequest, TrimRequest, USER_HEADER, UndoRequest,
    Versions,
};
use crate::{failure, http};

/// The name in URLs that go through the socket; it is never resolved.
const BASE: &str = "http://collective-host";

/// A connection to the host daemon.
#[derive(Clone, Debug)]
pub struct HostClient {
    socket: PathBuf,
    http: reqwest::Client,
    user: Option<UserName>,
}

impl HostClient {
    /// Makes a client of the daemon that listens on `socket`. Nothing is sent yet.
    ///
    /// # Errors
    /// `Internal` if the HTTP stack cannot be set up.
    pub fn new(socket: &Path) -> Result<Self> {
        let http = http::over_socket(socket, HeaderMap::new())?;
        Ok(Self { socket: socket.to_owned(), http, user: None })
    }

    /// Speaks for `user`, where several are logged in.
    #[must_use]
    pub fn for_user(mut self, user: UserName) -> Self {
        self.user = Some(user);
        self
    }

    /// Returns whom it speaks for, if it was told.
    #[must_use]
    pub fn user(&self) -> Option<&UserName> {
        self.user.as_ref()
    }

    /// Returns the socket that it speaks on.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns the HTTP client under it, which reaches the socket whatever the URL's host.
    #[must_use]
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Returns the URL under which the daemon passes requests on to the server.
    #[must_use]
    pub fn server_base(&self) -> String {
        format!("{BASE}/server")
    }

    /// Returns the host itself.
    pub async fn host(&self) -> Result<HostStatus> {
        self.get("/v1/host").await
    }

    /// Asks what a server shows at first contact.
    pub async fn contact(&self, request: &ContactRequest) -> Result<Contact> {
        self.post("/v1/contact", request).await
    }

    /// Ties the host to a server.
    pub async fn join(&self, request: &JoinRequest) -> Result<HostStatus> {
        self.post("/v1/join", request).await
    }

    /// Logs a person in.
    pub async fn login(&self, request: &LoginRequest) -> Result<Session> {
        self.post("/v1/login", request).await
    }

    /// Ends a session.
    pub async fn logout(&self, request: &LogoutRequest) -> Result<()> {
        self.post("/v1/logout", request).await.map(|Empty {}| ())
    }

    /// Returns the appliances that the user may start.
    pub async fn appliances(&self) -> Result<Vec<ApplianceStatus>> {
        self.get("/v1/appliances").await
    }

    /// Returns one appliance.
    pub async fn appliance(&self, name: &ApplianceName) -> Result<ApplianceStatus> {
        self.get(&format!("/v1/appliances/{name}")).await
    }

    /// Begins to start an appliance.
    pub async fn start(&self, name: &ApplianceName, request: &StartRequest) -> Result<Operation> {
        self.verb(name, "start", request).await
    }

    /// Begins to stop an appliance.
    pub async fn stop(&self, name: &ApplianceName, request: &StopRequest) -> Result<Operation> {
        self.verb(name, "stop", request).await
    }

    /// Begins to drop the ephemeral disk and what was written to the system disk.
    pub async fn reset(&self, name: &ApplianceName) -> Result<Operation> {
        self.verb(name, "reset", &Empty {}).await
    }

    /// Begins to take the user disk back to an old version.
    pub async fn undo(&self, name: &ApplianceName, request: &UndoRequest) -> Result<Operation> {
        self.verb(name, "undo", request).await
    }

    /// Begins to back the user disk up now.
    pub async fn publish(&self, name: &ApplianceName) -> Result<Operation> {
        self.verb(name, "publish", &Empty {}).await
    }

    /// Fetches a version whole and keeps it on the host.
    pub async fn hold(&self, name: &ApplianceName, request: &HoldRequest) -> Result<Operation> {
        self.verb(name, "hold", request).await
    }

    /// Keeps an appliance on the host no longer than the cache wants to.
    pub async fn release(&self, name: &ApplianceName) -> Result<()> {
        let path = format!("/v1/appliances/{name}/hold");
        self.call::<Empty>(Method::DELETE, &path, None::<&Empty>).await.map(drop)
    }

    /// Lets what nobody holds leave the cache; returns how the cache stands then.
    pub async fn trim_cache(&self, request: &TrimRequest) -> Result<CacheStatus> {
        self.post("/v1/cache/trim", request).await
    }

    /// Reads every frame of the cache, as an operation that ends with a [`CacheReport`](super::CacheReport).
    pub async fn verify_cache(&self) -> Result<Operation> {
        self.post("/v1/cache/verify", &Empty {}).await
    }

    /// Begins to delete the subscription.
    pub async fn delete(&self, name: &ApplianceName, request: &DeleteRequest) -> Result<Operation> {
        self.verb(name, "delete", request).await
    }

    /// Runs a program in the guest and waits for its end.
    pub async fn exec(&self, name: &ApplianceName, request: &ExecRequest) -> Result<ExecReply> {
        self.verb(name, "exec", request).await
    }

    /// Returns the versions of an appliance and of its user disk.
    pub async fn versions(&self, name: &ApplianceName) -> Result<Versions> {
        self.get(&format!("/v1/appliances/{name}/versions")).await
    }

    /// Returns the operations that go on or ended lately.
    pub async fn operations(&self) -> Result<Vec<Operation>> {
        self.get("/v1/operations").await
    }

    /// Returns one operation.
    pub async fn operation(&self, id: OperationId) -> Result<Operation> {
        self.get(&format!("/v1/operations/{id}")).await
    }

    /// Cancels an operation; it ends soon after.
    pub async fn cancel(&self, id: OperationId) -> Result<Operation> {
        self.call(Method::DELETE, &format!("/v1/operations/{id}"), None::<&Empty>).await
    }

    /// Watches an operation: its state now, then every change, until it is over.
    pub async fn watch(&self, id: OperationId) -> Result<OperationEvents> {
        let path = format!("/v1/operations/{id}/events");
        Ok(OperationEvents { events: self.stream(&path).await? })
    }

    /// Watches everything that happens on the host.
    pub async fn events(&self) -> Result<HostEvents> {
        Ok(HostEvents { events: self.stream("/v1/events").await? })
    }

    /// Waits for the end of an operation, tells every change, and gives its failure as an error.
    pub async fn finish(
        &self,
        operation: Operation,
        mut changed: impl FnMut(&Operation),
    ) -> Result<Operation> {
        let mut last = operation;
        changed(&last);
        if !last.state.is_over() {
            let mut events = self.watch(last.id).await?;
            while let Some(operation) = events.next().await? {
                changed(&operation);
                last = operation;
            }
        }
        match last.state {
            OperationState::Done => Ok(last),
            OperationState::Cancelled => {
                Err(Error::new(ErrorKind::Conflict, format!("`{}` was cancelled", last.verb)))
            }
            OperationState::Failed => Err(last.error.map_or_else(
                || Error::new(ErrorKind::Internal, format!("`{}` failed", last.verb)),
                Error::from,
            )),
            OperationState::Running => Err(Error::new(
                ErrorKind::Unavailable,
                format!("the host daemon went away during `{}`", last.verb),
            )
            .with_hint("the work goes on when it is back: look with `collective status`")),
        }
    }

    async fn verb<T: DeserializeOwned>(
        &self,
        name: &ApplianceName,
        verb: &str,
        request: &impl Serialize,
    ) -> Result<T> {
        self.post(&format!("/v1/appliances/{name}/{verb}"), request).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, None::<&Empty>).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.call(Method::POST, path, Some(body)).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let bytes = self
            .send(method, path, body)
            .await?
            .bytes()
            .await
            .or_error(ErrorKind::Unavailable, || self.went_away())?;
        serde_json::from_slice(&bytes).or_error(ErrorKind::Internal, || {
            format!("cannot read the host daemon's answer to {path}")
        })
    }

    async fn stream(&self, path: &str) -> Result<EventStream> {
        let response = self.send(Method::GET, path, None::<&Empty>).await?;
        Ok(EventStream { response, reader: EventReader::default() })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Response> {
        let mut request = self.http.request(method, format!("{BASE}{path}"));
        if let Some(user) = &self.user {
            request = request.header(USER_HEADER, user.as_str());
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|source| {
            Error::new(ErrorKind::Unavailable, self.went_away())
                .with_source(source.without_url())
                .with_hint("start it with `collective host`")
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = response.bytes().await.unwrap_or_default();
        Err(failure::of_response(status, &body))
    }

    fn went_away(&self) -> String {
        format!("no host daemon answers on {}", self.socket.display())
    }
}

/// The changes of one operation.
#[derive(Debug)]
pub struct OperationEvents {
    events: EventStream,
}

impl OperationEvents {
    /// Waits for the next change; none after the last.
    ///
    /// # Errors
    /// `Unavailable` if the daemon went away.
    pub async fn next(&mut self) -> Result<Option<Operation>> {
        self.events.next().await
    }
}

/// What happens on the host.
#[derive(Debug)]
pub struct HostEvents {
    events: EventStream,
}

impl HostEvents {
    /// Waits for the next event; none when the daemon stops.
    ///
    /// # Errors
    /// `Unavailable` if the daemon went away.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        self.events.next().await
    }
}

#[derive(Debug)]
struct EventStream {
    response: Response,
    reader: EventReader,
}

impl EventStream {
    async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(data) = self.reader.next() {
                return serde_json::from_str(&data).map(Some).or_error(ErrorKind::Internal, || {
                    "cannot read an event of the host daemon".to_owned()
                });
            }
            let bytes = self
                .response
                .chunk()
                .await
                .or_error(ErrorKind::Unavailable, || "the host daemon went away".to_owned())?;
            match bytes {
                Some(bytes) => self.reader.push(&bytes)?,
                None => return Ok(None),
            }
        }
    }
}
