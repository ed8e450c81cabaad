//! How a password becomes a session: at the server, or, if none answers, with the last password that worked here; and
//! how the host is tied to a server.
//!
//! `account.json` keeps what a log-in without network needs: the device's key sealed under the password, its certificate and
//! the wrapped secret of the user. The password itself is kept nowhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use collective_api::ServerClient;
use collective_api::host::{Contact, JoinRequest, LoginRequest, LogoutRequest};
use collective_api::identity::{Certificate, DeviceKey, Identity};
use collective_api::keybag::{Keybag, PasswordKeys, PasswordParameters, UserSecret};
use collective_api::secret::{Sealed, Secret};
use collective_api::server;
use collective_api::trust::{self, Fingerprint, ServerAddress};
use collective_model::{Error, ErrorKind, Result, UserName};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Session;
use super::link::{AtServer, Link, Way};
use crate::core::Core;
use crate::instance::Command;
use crate::settings::{Life, Server, Settings};
use crate::{now, record};

/// `account.json`: what a log-in without network needs.
#[derive(Serialize, Deserialize)]
struct Account {
    parameters: PasswordParameters,
    keybag: Keybag,
    key: Sealed,
    certificate: Certificate,
    #[serde(default)]
    life: Option<Life>,
}

/// `sessions/<user>.json`: what a daemon that was killed goes on with. Lives in the runtime directory only.
#[derive(Serialize, Deserialize)]
struct Kept {
    secret: UserSecret,
    key: String,
    certificate: Certificate,
    #[serde(default)]
    life: Option<Life>,
}

/// Asks a server for its fingerprint.
pub(crate) async fn contact(url: &str) -> Result<Contact> {
    let address: ServerAddress = url.parse()?;
    let anchor = trust::contact(&address).await?;
    Ok(Contact { url: address.base(), fingerprint: anchor.fingerprint()?.to_string() })
}

/// Ties the host to a server.
pub(crate) async fn join(core: &Core, request: &JoinRequest) -> Result<()> {
    let settings = joined(core, request).await;
    core.heard(&settings);
    core.settings.replace(settings?)
}

/// What the host is once it is tied to a server. Nothing is kept, but for what a token was spent on.
async fn joined(core: &Core, request: &JoinRequest) -> Result<Settings> {
    let address: ServerAddress = request.url.parse()?;
    let before = core.settings.get();
    if before.server.as_ref().is_some_and(|server| server.address != address)
        && !core.sessions.all().is_empty()
    {
        return Err(Error::new(
            ErrorKind::Conflict,
            "people are logged in who belong to another server",
        )
        .with_hint("they must log out first"));
    }
    let anchor = trust::contact(&address).await?;
    let shown = anchor.fingerprint()?;
    if Fingerprint::try_from(request.fingerprint.trim().to_owned())? != shown {
        let message = format!(
            "the server {address} shows the fingerprint {shown}, which is not the given one"
        );
        return Err(Error::new(ErrorKind::Denied, message)
            .with_hint("compare it with what `collective serve` printed"));
    }
    let mut settings = Settings {
        format: 1,
        name: Some(request.name.clone()),
        id: None,
        server: Some(Server { address, anchor, certificate: None, life: None }),
    };
    if let Some(token) = &request.token {
        let token = Secret::try_from(token.trim().to_owned())
            .map_err(|_| Error::new(ErrorKind::Invalid, "this is not a join token"))?;
        let key = DeviceKey::generate()?;
        let wanted =
            server::JoinRequest { token, name: request.name.clone(), request: key.request()? };
        let joined = anonymous(&settings)?.join(&wanted).await?;
        keep_host(core, &mut settings, &key, joined)?;
    } else if let Some(old) = before.server {
        let same = settings.server.as_ref().is_some_and(|server| server.anchor == old.anchor);
        if let (true, Some(server)) = (same, &mut settings.server) {
            server.certificate = old.certificate;
            server.life = old.life;
            settings.id = before.id;
        }
    }
    Ok(settings)
}

fn keep_host(
    core: &Core,
    settings: &mut Settings,
    key: &DeviceKey,
    joined: server::JoinReply,
) -> Result<()> {
    record::store_bytes(&core.paths.host_key(), key.to_pem()?.as_bytes())?;
    settings.id = Some(joined.host);
    if let Some(server) = &mut settings.server {
        server.life = Some(Life::of(&joined.issued, now()));
        server.certificate = Some(joined.issued.certificate);
    }
    Ok(())
}

fn tied(settings: &Settings) -> Result<&Server> {
    settings.server.as_ref().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "this host is not tied to a server yet")
            .with_hint("tie it with `collective join URL`")
    })
}

fn anonymous(settings: &Settings) -> Result<ServerClient> {
    let server = tied(settings)?;
    ServerClient::https(&server.address, &server.anchor, None)
}

/// Speaks as the host, if the server knows it.
fn as_host(core: &Core, settings: &Settings) -> Result<ServerClient> {
    let server = tied(settings)?;
    let identity = match host_certificate(server) {
        Some(certificate) => {
            let key = DeviceKey::from_pem(&read_text(&core.paths.host_key())?)?;
            Some(Identity { certificate: certificate.clone(), key })
        }
        None => None,
    };
    ServerClient::https(&server.address, &server.anchor, identity.as_ref())
}

/// The host's certificate, unless it is over: the server refuses to talk with who shows such a one.
fn host_certificate(server: &Server) -> Option<&Certificate> {
    let is_over = server.life.is_some_and(|life| life.is_over(now()));
    server.certificate.as_ref().filter(|_| !is_over)
}

fn read_text(path: &Path) -> Result<zeroize::Zeroizing<String>> {
    use collective_model::IoResultExt;
    std::fs::read_to_string(path)
        .map(zeroize::Zeroizing::new)
        .or_io(|| format!("cannot read {}", path.display()))
}

/// Logs a person in.
pub(crate) async fn login(core: &Arc<Core>, request: &LoginRequest) -> Result<Arc<Session>> {
    let settings = match &request.join {
        Some(join) => {
            let settings = joined(core, join).await?;
            if join.token.is_some() {
                core.settings.replace(settings.clone())?;
            }
            settings
        }
        None => core.settings.get(),
    };
    let kept = online(core, settings, request).await;
    core.heard(&kept);
    let kept = match kept {
        // A server that answers decides, also when it only asks for patience.
        Err(error) if error.kind() == ErrorKind::Unavailable && !error.is_answer() => {
            let kept = offline(core, request).await.transpose().unwrap_or(Err(error))?;
            tracing::info!("{} is logged in without the server", request.user);
            kept
        }
        kept => kept?,
    };
    let session = {
        let _alone = core.sessions.alone();
        record::store(&core.paths.session(&request.user), &kept)?;
        core.sessions.insert(session(core, &request.user, kept)?)
    };
    // Also tells whether the server is there.
    core.profile(&session).await.map(drop).or_else(|error| match error.kind() {
        ErrorKind::Unavailable => Ok(()),
        _ => Err(error),
    })?;
    core.fetcher.retry_now();
    tell_instances(core, &request.user);
    Ok(session)
}

async fn online(core: &Core, mut settings: Settings, request: &LoginRequest) -> Result<Kept> {
    let client = as_host(core, &settings)?;
    let parameters = client.login_parameters(&request.user).await?;
    let keys = derive(request, &parameters).await?;
    let key = DeviceKey::generate()?;
    // One whose certificate is over has to be introduced again.
    let known = host_certificate(tied(&settings)?).is_some();
    let host_key = if known { None } else { Some(DeviceKey::generate()?) };
    let guest = match (&host_key, &settings.name) {
        (Some(key), Some(name)) => {
            Some(server::GuestHost { name: name.clone(), request: key.request()? })
        }
        _ => None,
    };
    let wanted = server::LoginRequest {
        user: request.user.clone(),
        proof: keys.proof.clone(),
        request: key.request()?,
        guest,
    };
    let reply = client.login(&wanted).await?;
    let introduced = host_key.zip(reply.host);
    let changed = introduced.is_some() || request.join.is_some();
    if let Some((host_key, joined)) = introduced {
        keep_host(core, &mut settings, &host_key, joined)?;
    }
    if changed {
        core.settings.replace(settings)?;
    }
    let secret = reply.keybag.open(&keys)?;
    let life = Some(Life::of(&reply.issued, now()));
    let certificate = reply.issued.certificate;
    let account = Account {
        parameters,
        keybag: reply.keybag,
        key: key.seal(&keys.wrap),
        certificate: certificate.clone(),
        life,
    };
    let path = core.paths.account(&request.user);
    record::make_directory(path.parent().unwrap_or(&core.paths.dir))?;
    record::store(&path, &account)?;
    Ok(Kept { secret, key: key.to_pem()?.to_string(), certificate, life })
}

/// Opens what the last log-in left; none if nobody of that name logged in here before.
async fn offline(core: &Core, request: &LoginRequest) -> Result<Option<Kept>> {
    let Some(account) = record::load::<Account>(&core.paths.account(&request.user))? else {
        return Ok(None);
    };
    core.guesses.pay(&request.user, Instant::now())?;
    let keys = derive(request, &account.parameters).await?;
    let key = DeviceKey::unseal(&account.key, &keys.wrap)?;
    let secret = account.keybag.open(&keys)?;
    core.guesses.right(&request.user);
    let key = key.to_pem()?.to_string();
    Ok(Some(Kept { secret, key, certificate: account.certificate, life: account.life }))
}

/// What a log-in without network needs, out of the way while the password changes: nothing that the old password opens may
/// be left afterwards.
pub(crate) struct SetAside {
    path: PathBuf,
    account: Option<Account>,
}

impl SetAside {
    pub(crate) fn new(core: &Core, user: &UserName) -> Result<Self> {
        let _alone = core.sessions.alone();
        let path = core.paths.account(user);
        // One that cannot be read is of no use either.
        let account = record::load(&path).unwrap_or_default();
        record::remove(&path)?;
        Ok(Self { path, account })
    }

    /// The password is what it was.
    pub(crate) fn put_back(self, core: &Core) -> Result<()> {
        let _alone = core.sessions.alone();
        match self.account {
            // A log-in meanwhile has left a newer one.
            Some(account) if !self.path.exists() => record::store(&self.path, &account),
            _ => Ok(()),
        }
    }
}

/// Derives the keys of a password, which takes a processor its time.
async fn derive(request: &LoginRequest, parameters: &PasswordParameters) -> Result<PasswordKeys> {
    use collective_model::ResultExt;
    let (password, parameters) = (request.password.clone(), parameters.clone());
    tokio::task::spawn_blocking(move || PasswordKeys::derive(&password, &parameters))
        .await
        .or_error(ErrorKind::Internal, || "cannot derive the keys of a password".to_owned())?
}

/// Goes on with the sessions that an earlier daemon had.
pub(crate) fn resume(core: &Arc<Core>) {
    for path in std::fs::read_dir(core.paths.sessions()).into_iter().flatten().flatten() {
        let path = path.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let Some(user) = stem.and_then(|stem| stem.parse::<UserName>().ok()) else { continue };
        let kept = record::load::<Kept>(&path).and_then(|kept| {
            kept.ok_or_else(|| Error::new(ErrorKind::NotFound, "the session is gone"))
        });
        match kept.and_then(|kept| session(core, &user, kept)) {
            Ok(session) => drop(core.sessions.insert(session)),
            Err(error) => tracing::warn!("the session of {user} is over: {}", error.chain()),
        }
    }
}

/// Makes a session; what runs for the user goes on over its way to the server.
fn session(core: &Core, user: &UserName, kept: Kept) -> Result<Session> {
    let settings = core.settings.get();
    let server = tied(&settings)?;
    let key = zeroize::Zeroizing::new(kept.key);
    let identity = Identity { certificate: kept.certificate, key: DeviceKey::from_pem(&key)? };
    let way = Way::new(server, identity, kept.life)?;
    let before = core.sessions.get(user).and_then(|session| session.link().cloned());
    let link = match before.filter(|link| link.way().leads_to(server)) {
        Some(link) => {
            link.exchange(way);
            link
        }
        None => Arc::new(Link::new(user.clone(), way)),
    };
    let remote = Arc::new(AtServer { link: Arc::clone(&link), host: settings.id });
    Ok(Session::new(user.clone(), kept.secret, remote, Some(link)))
}

/// Gets a new certificate for the host; its key stays.
pub(crate) async fn renew_host(core: &Core) -> Result<()> {
    let settings = core.settings.get();
    let Some(old) = settings.server.and_then(|server| server.certificate) else { return Ok(()) };
    let key = DeviceKey::from_pem(&read_text(&core.paths.host_key())?)?;
    let client = as_host(core, &core.settings.get())?;
    let issued = client.renew(&server::RenewRequest { request: key.request()? }).await?;
    let life = Life::of(&issued, now());
    core.settings.renew(&old, issued.certificate, life)
}

/// Gets a new certificate for a log-in; its key stays.
pub(crate) async fn renew_session(core: &Core, session: &Arc<Session>, link: &Link) -> Result<()> {
    let old = link.way();
    let key = old.identity.key.clone();
    let request = server::RenewRequest { request: key.request()? };
    let issued = link.explain(old.client.renew(&request).await)?;
    let life = Life::of(&issued, now());
    let certificate = issued.certificate;
    let _alone = core.sessions.alone();
    let still = core.sessions.get(&session.user);
    if !still.is_some_and(|still| Arc::ptr_eq(&still, session)) {
        // They logged out or in meanwhile.
        return Ok(());
    }
    let identity = Identity { certificate: certificate.clone(), key: key.clone() };
    link.exchange(old.renewed(identity, life)?);
    let kept = Kept {
        secret: session.secret.clone(),
        key: key.to_pem()?.to_string(),
        certificate: certificate.clone(),
        life: Some(life),
    };
    record::store(&core.paths.session(&session.user), &kept)?;
    let path = core.paths.account(&session.user);
    match record::load::<Account>(&path)? {
        Some(account) if account.certificate == old.identity.certificate => {
            record::store(&path, &Account { certificate, life: Some(life), ..account })
        }
        _ => Ok(()),
    }
}

/// Ends a session.
pub(crate) async fn logout(core: &Arc<Core>, request: &LogoutRequest) -> Result<()> {
    let session = core.sessions.find(Some(&request.user))?;
    for instance in core.instances.of_user(&request.user) {
        let status = instance.status();
        if status.state != collective_api::host::InstanceState::Stopped {
            let message = format!("`{}` runs", status.name);
            return Err(Error::new(ErrorKind::Conflict, message)
                .with_hint(format!("stop it first: `collective stop {}`", status.name)));
        }
        let backlog = status.user_disk.map_or(0, |disk| disk.backlog_bytes);
        if backlog > 0 && !request.force && !waits_in_vain(core, &session).await {
            let message = format!("`{}` has changes that are not backed up yet", status.name);
            return Err(Error::new(ErrorKind::Conflict, message)
                .with_hint("wait, or log out with --force: they stay here until the next log-in"));
        }
    }
    let _alone = core.sessions.alone();
    record::remove(&core.paths.session(&request.user))?;
    core.sessions.remove(&request.user);
    Ok(())
}

/// Tells whether the server takes no backups of a session any more: what is left stays here.
async fn waits_in_vain(core: &Core, session: &Session) -> bool {
    // What came of it is kept in the session.
    drop(core.profile(session).await);
    session.is_ended(now())
}

/// Tells a user's instances that there is a session again.
pub(crate) fn tell_instances(core: &Arc<Core>, user: &UserName) {
    for instance in core.instances.of_user(user) {
        tokio::spawn(async move {
            if let Err(error) = instance.send(Command::SessionCame).await {
                tracing::warn!("{}", error.chain());
            }
        });
    }
}
