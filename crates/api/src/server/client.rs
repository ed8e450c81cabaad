//! Speaks with the server: over HTTPS, on its administrators' socket, or through a host's daemon. Cheap to clone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use collective_model::{
    ApplianceName, Epoch, Error, ErrorKind, GroupName, HostId, RepositoryId, Result, ResultExt,
    SubscriptionId, UserName, Version,
};
use reqwest::header::{ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    Appliance, AuditEntry, CreateAppliance, CreateGroup, CreateToken, CreateUser, Grant, Group,
    HostEntry, Issued, JoinReply, JoinRequest, Lock, LoginParametersRequest, LoginReply,
    LoginRequest, PasswordChange, Popularity, Profile, PruneReport, PruneRequest, ReadReport,
    RenewLock, RenewRequest, ServerInfo, SetRetention, SubscribeRequest, Subscription, TakeLock,
    Token, TokenCreated, Upkeep, User, VerifyReport,
};
use crate::host::{HostClient, USER_HEADER};
use crate::identity::Identity;
use crate::keybag::{Keybag, PasswordParameters};
use crate::trust::{self, Anchor, ServerAddress};
use crate::{failure, http};

/// How long the server may take over an ordinary request; repositories and long work have limits of their own.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to check or prune a whole repository.
const REPOSITORY_WORK_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Bytes of an answer, at most: a profile of some 10,000 appliances.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// The name in URLs that go through a Unix socket; it is never resolved.
const SOCKET_BASE: &str = "http://collective-server";

/// A connection to the server as somebody.
#[derive(Clone, Debug)]
pub struct ServerClient {
    http: reqwest::Client,
    base: String,
    /// What to compare with when a TLS handshake fails.
    pinned: Option<Arc<(ServerAddress, Anchor)>>,
}

impl ServerClient {
    /// Speaks HTTPS with the server of a pinned authority, as `identity` or as nobody.
    ///
    /// # Errors
    /// `Corrupt` if a certificate or key is damaged.
    pub fn https(
        address: &ServerAddress,
        anchor: &Anchor,
        identity: Option<&Identity>,
    ) -> Result<Self> {
        let tls = anchor.client_config(identity)?;
        let http = http::over_tls(tls)?;
        let pinned = Some(Arc::new((address.clone(), anchor.clone())));
        Ok(Self { http, base: address.base(), pinned })
    }

    /// Speaks on the server's administrators' socket.
    ///
    /// # Errors
    /// `Internal` if the HTTP stack cannot be set up.
    pub fn unix(socket: &Path) -> Result<Self> {
        let http = http::over_socket(socket, HeaderMap::new())?;
        Ok(Self { http, base: SOCKET_BASE.to_owned(), pinned: None })
    }

    /// Speaks through a host's daemon, as the user whose session that client uses.
    ///
    /// # Errors
    /// `Internal` if the HTTP stack cannot be set up.
    pub fn through(host: &HostClient) -> Result<Self> {
        let mut headers = HeaderMap::new();
        if let Some(user) = host.user() {
            let value = HeaderValue::from_str(user.as_str())
                .or_error(ErrorKind::Invalid, || format!("`{user}` fits no header"))?;
            headers.insert(USER_HEADER, value);
        }
        let http = http::over_socket(host.socket(), headers)?;
        Ok(Self { http, base: host.server_base(), pinned: None })
    }

    /// Returns the HTTP client, for `repository::backend::Http`.
    #[must_use]
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Returns the URL below which the objects of a repository are.
    #[must_use]
    pub fn repository_url(&self, id: RepositoryId) -> String {
        format!("{}/v1/repositories/{id}", self.base)
    }

    /// Returns what the server says about itself.
    pub async fn server(&self) -> Result<ServerInfo> {
        self.get("server").await
    }

    /// Returns how to derive keys from a user's password.
    pub async fn login_parameters(&self, user: &UserName) -> Result<PasswordParameters> {
        self.post("login/parameters", &LoginParametersRequest { user: user.clone() }).await
    }

    /// Logs a person in.
    pub async fn login(&self, request: &LoginRequest) -> Result<LoginReply> {
        self.post("login", request).await
    }

    /// Revokes the device that asks.
    pub async fn logout(&self) -> Result<()> {
        self.done(Method::POST, "logout", None::<&()>).await
    }

    /// Ties a computer to the server.
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinReply> {
        self.post("hosts/join", request).await
    }

    /// Gets a new certificate for the host or device that asks.
    pub async fn renew(&self, request: &RenewRequest) -> Result<Issued> {
        self.post("certificate", request).await
    }

    /// Returns the profile, and the tag to ask with next time; none if it is as it was at that tag.
    pub async fn profile(&self, known: Option<&str>) -> Result<Option<(Profile, Option<String>)>> {
        let mut request = self.request(Method::GET, "profile");
        if let Some(tag) = known {
            request = request.header(IF_NONE_MATCH, tag);
        }
        let response = self.send("profile", request).await?;
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        Ok(Some((read("profile", response).await?, tag)))
    }

    /// Changes the password of who asks.
    pub async fn change_password(&self, change: &PasswordChange) -> Result<()> {
        self.done(Method::PUT, "password", Some(change)).await
    }

    /// Returns the keybag of who asks, to wrap it under a new password.
    pub async fn own_keybag(&self) -> Result<Keybag> {
        self.get("keybag").await
    }

    /// Subscribes who asks to an appliance.
    pub async fn subscribe(&self, request: &SubscribeRequest) -> Result<Subscription> {
        self.post("subscriptions", request).await
    }

    /// Deletes a subscription and the repository of its user disk.
    pub async fn unsubscribe(&self, id: SubscriptionId) -> Result<()> {
        self.delete(&format!("subscriptions/{id}")).await
    }

    /// Takes the lock of a subscription.
    pub async fn take_lock(&self, id: SubscriptionId, request: &TakeLock) -> Result<Lock> {
        self.post(&format!("subscriptions/{id}/lock"), request).await
    }

    /// Renews the lock of a subscription.
    pub async fn renew_lock(&self, id: SubscriptionId, request: &RenewLock) -> Result<Lock> {
        self.call(Method::PUT, &format!("subscriptions/{id}/lock"), Some(request)).await
    }

    /// Releases the lock of a subscription.
    pub async fn release_lock(&self, id: SubscriptionId, epoch: Epoch) -> Result<()> {
        self.delete(&format!("subscriptions/{id}/lock?epoch={epoch}")).await
    }

    /// Says what a guest read of an appliance's system disk.
    pub async fn report(&self, repository: RepositoryId, report: &ReadReport) -> Result<()> {
        self.done(Method::POST, &format!("popularity/{repository}"), Some(report)).await
    }

    /// Returns what is read most of a version; none if nobody said anything of it or of one before it.
    pub async fn popularity(
        &self,
        repository: RepositoryId,
        version: Version,
    ) -> Result<Option<Popularity>> {
        self.get(&format!("popularity/{repository}/{version}")).await
    }

    /// Lists the users.
    pub async fn users(&self) -> Result<Vec<User>> {
        self.get("users").await
    }

    /// Makes an account.
    pub async fn create_user(&self, request: &CreateUser) -> Result<User> {
        self.post("users", request).await
    }

    /// Removes an account.
    pub async fn remove_user(&self, name: &UserName) -> Result<()> {
        self.delete(&format!("users/{name}")).await
    }

    /// Returns a user's keybag, for an administrator who sets a new password with the recovery key.
    pub async fn keybag(&self, name: &UserName) -> Result<Keybag> {
        self.get(&format!("users/{name}/keybag")).await
    }

    /// Sets a user's password.
    pub async fn set_password(&self, name: &UserName, change: &PasswordChange) -> Result<()> {
        self.done(Method::PUT, &format!("users/{name}/password"), Some(change)).await
    }

    /// Lists the groups.
    pub async fn groups(&self) -> Result<Vec<Group>> {
        self.get("groups").await
    }

    /// Makes a group.
    pub async fn create_group(&self, name: &GroupName) -> Result<Group> {
        self.post("groups", &CreateGroup { name: name.clone() }).await
    }

    /// Removes a group.
    pub async fn remove_group(&self, name: &GroupName) -> Result<()> {
        self.delete(&format!("groups/{name}")).await
    }

    /// Puts a user into a group.
    pub async fn add_member(&self, group: &GroupName, user: &UserName) -> Result<()> {
        self.done(Method::PUT, &format!("groups/{group}/members/{user}"), None::<&()>).await
    }

    /// Takes a user out of a group.
    pub async fn remove_member(&self, group: &GroupName, user: &UserName) -> Result<()> {
        self.delete(&format!("groups/{group}/members/{user}")).await
    }

    /// Lists the grants.
    pub async fn grants(&self) -> Result<Vec<Grant>> {
        self.get("grants").await
    }

    /// Grants an appliance to a group.
    pub async fn grant(&self, appliance: &ApplianceName, group: &GroupName) -> Result<()> {
        self.done(Method::PUT, &format!("grants/{appliance}/{group}"), None::<&()>).await
    }

    /// Takes a grant back.
    pub async fn revoke(&self, appliance: &ApplianceName, group: &GroupName) -> Result<()> {
        self.delete(&format!("grants/{appliance}/{group}")).await
    }

    /// Lists the tokens.
    pub async fn tokens(&self) -> Result<Vec<Token>> {
        self.get("tokens").await
    }

    /// Makes a token.
    pub async fn create_token(&self, request: &CreateToken) -> Result<TokenCreated> {
        self.post("tokens", request).await
    }

    /// Removes a token.
    pub async fn remove_token(&self, id: u64) -> Result<()> {
        self.delete(&format!("tokens/{id}")).await
    }

    /// Lists the hosts.
    pub async fn hosts(&self) -> Result<Vec<HostEntry>> {
        self.get("hosts").await
    }

    /// Shuts a host out.
    pub async fn remove_host(&self, id: HostId) -> Result<()> {
        self.delete(&format!("hosts/{id}")).await
    }

    /// Returns the latest lines of the audit log, newest first.
    pub async fn audit(&self) -> Result<Vec<AuditEntry>> {
        self.get("audit").await
    }

    /// Lists the appliances.
    pub async fn appliances(&self) -> Result<Vec<Appliance>> {
        self.get("appliances").await
    }

    /// Returns one appliance.
    pub async fn appliance(&self, name: &ApplianceName) -> Result<Appliance> {
        self.get(&format!("appliances/{name}")).await
    }

    /// Makes an appliance with an empty repository.
    pub async fn create_appliance(&self, request: &CreateAppliance) -> Result<Appliance> {
        self.post("appliances", request).await
    }

    /// Removes an appliance and its repository.
    pub async fn remove_appliance(&self, name: &ApplianceName) -> Result<()> {
        self.delete(&format!("appliances/{name}")).await
    }

    /// Checks every byte of an appliance's repository. Takes as long as reading it does.
    pub async fn verify_appliance(&self, name: &ApplianceName) -> Result<VerifyReport> {
        let path = format!("appliances/{name}/verify");
        let request = self.request(Method::POST, &path).timeout(REPOSITORY_WORK_LIMIT);
        read(&path, self.send(&path, request).await?).await
    }

    /// Drops old versions of an appliance.
    pub async fn prune_appliance(
        &self,
        name: &ApplianceName,
        request: &PruneRequest,
    ) -> Result<PruneReport> {
        let path = format!("appliances/{name}/prune");
        let request =
            self.request(Method::POST, &path).timeout(REPOSITORY_WORK_LIMIT).json(request);
        read(&path, self.send(&path, request).await?).await
    }

    /// Says which versions of an appliance stay when the server prunes it by itself.
    pub async fn set_appliance_retention(
        &self,
        name: &ApplianceName,
        request: &SetRetention,
    ) -> Result<()> {
        let path = format!("appliances/{name}/retention");
        self.done(Method::PUT, &path, Some(request)).await
    }

    /// Says which versions of user disks stay.
    pub async fn set_user_disk_retention(&self, request: &SetRetention) -> Result<()> {
        self.done(Method::PUT, "retention", Some(request)).await
    }

    /// Asks how all repositories stand.
    pub async fn upkeep(&self) -> Result<Upkeep> {
        self.get("upkeep").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, None::<&()>).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.call(Method::POST, path, Some(body)).await
    }

    async fn delete(&self, path: &str) -> Result<()> {
        self.done(Method::DELETE, path, None::<&()>).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        read(path, self.exchange(method, path, body).await?).await
    }

    async fn done(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<()> {
        self.exchange(method, path, body).await.map(drop)
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Response> {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.send(path, request).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/v1/{path}", self.base)).timeout(ANSWER_LIMIT)
    }

    async fn send(&self, path: &str, request: RequestBuilder) -> Result<Response> {
        let response = match request.send().await {
            Ok(response) => response,
            Err(cause) => return Err(self.explain(cause).await),
        };
        if response.status().is_success() || response.status() == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = bounded(path, response).await.unwrap_or_default();
        Err(failure::of_response(status, &body))
    }

    /// Says why the server could not be reached; a changed certificate is told from an absent server.
    pub async fn explain(&self, cause: reqwest::Error) -> Error {
        if let Some((address, anchor)) = self.pinned.as_deref()
            && trust::is_refusal(&cause)
            && let Some(changed) = trust::changed(address, anchor).await
        {
            return changed;
        }
        let where_to = match self.pinned.as_deref() {
            Some((address, _)) => format!("the server {address}"),
            None => "the server".to_owned(),
        };
        Error::new(ErrorKind::Unavailable, format!("cannot reach {where_to}"))
            .with_source(cause.without_url())
    }
}

/// Reads an answer of bounded size.
async fn read<T: DeserializeOwned>(path: &str, response: Response) -> Result<T> {
    let bytes = bounded(path, response).await?;
    serde_json::from_slice(&bytes)
        .or_error(ErrorKind::Internal, || format!("cannot read the server's answer to {path}"))
}

async fn bounded(path: &str, mut response: Response) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let cut = || format!("the server's answer to {path} was cut off");
    while let Some(chunk) = response.chunk().await.or_error(ErrorKind::Unavailable, cut)? {
        if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
            let message =
                format!("the server's answer to {path} has more than {ANSWER_BYTES_MAX} bytes");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use collective_model::ErrorKind;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls_pki_types::PrivatePkcs8KeyDer;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::ServerClient;
    use crate::trust::{Anchor, SERVER_NAME, ServerAddress};

    /// Counts the connections to a server that does `answer` with each.
    async fn serve<F: Future<Output = ()> + Send>(
        answer: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> (ServerAddress, Arc<AtomicU32>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let connections = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                answer(stream).await;
            }
        });
        (address, connections)
    }

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut wanted = CertificateParams::default();
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(wanted, KeyPair::generate().unwrap()).unwrap()
    }

    fn acceptor(authority: &CertifiedIssuer<'static, KeyPair>) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let wanted = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
        let certificate = wanted.signed_by(&key, authority).unwrap();
        let chain = vec![certificate.der().clone(), authority.der().clone()];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into());
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }

    #[tokio::test]
    async fn a_changed_certificate_is_denied_with_both_fingerprints() {
        let (known, other) = (Anchor(authority().pem()), authority());
        let acceptor = acceptor(&other);
        let (address, _) = serve(move |stream| {
            let handshake = acceptor.accept(stream);
            async move { drop(handshake.await) }
        })
        .await;
        let client = ServerClient::https(&address, &known, None).unwrap();
        let error = client.server().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        for anchor in [known, Anchor(other.pem())] {
            let fingerprint = anchor.fingerprint().unwrap().to_string();
            assert!(error.to_string().contains(&fingerprint), "{error}");
        }
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_is_not_asked_for_its_certificate_as_well() {
        let (address, connections) = serve(|stream| async move { drop(stream) }).await;
        let known = Anchor(authority().pem());
        let client = ServerClient::https(&address, &known, None).unwrap();
        assert_eq!(client.server().await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(connections.load(Ordering::SeqCst), 1);
    }
}
