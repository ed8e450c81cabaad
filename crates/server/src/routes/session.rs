//! How computers and people come in: joining, logging in and out, certificates, passwords.
//!
//! A name that does not exist gets the same answers, in the same time, as one that does.

use std::sync::Arc;

use argon2::{Algorithm, Argon2, Params, Version};
use axum::Json;
use axum::extract::State as Shared;
use collective_api::identity::{Certificate, Subject};
use collective_api::keybag::{Keybag, PasswordParameters, Salt};
use collective_api::secret::Secret;
use collective_api::server::{
    GuestHost, Issued, JoinReply, JoinRequest, LoginParametersRequest, LoginReply, LoginRequest,
    PasswordChange, RenewRequest, ServerInfo,
};
use collective_api::trust::Anchor;
use collective_model::{
    DeviceId, Error, ErrorKind, HostId, HostName, Result, ResultExt, Timestamp, UserName,
};
use serde::{Deserialize, Serialize};

use super::Input;
use super::account::user;
use crate::answer::Answer;
use crate::caller::{Caller, Device};
use crate::database::{Transaction, Value, text};
use crate::state::{State, random};

/// Devices of one user; with a further log-in the oldest ends.
const DEVICES_MAX: i64 = 64;

/// What is stored of a password: argon2id of its proof.
#[derive(Serialize, Deserialize)]
struct StoredProof {
    salt: Salt,
    hash: Secret,
}

pub async fn server(Shared(state): Shared<Arc<State>>) -> Answer<Json<ServerInfo>> {
    let authority = Anchor(state.authority.certificate_pem().to_owned());
    Ok(Json(ServerInfo {
        release: env!("CARGO_PKG_VERSION").to_owned(),
        fingerprint: authority.fingerprint()?,
        authority,
        time: state.now(),
    }))
}

pub async fn login_parameters(
    Shared(state): Shared<Arc<State>>,
    Input(request): Input<LoginParametersRequest>,
) -> Answer<Json<PasswordParameters>> {
    let sql = "select parameters from users where name = $1";
    let rows = state.database.read(sql, &[text(&request.user)]).await?;
    if let Some(row) = rows.first() {
        return Ok(Json(row.json(0)?));
    }
    let made = blake3::keyed_hash(state.authority.answer_key(), request.user.as_str().as_bytes());
    let salt = *made.as_bytes().first_chunk().expect("32 bytes have 16 first ones");
    Ok(Json(PasswordParameters::with_salt(salt)))
}

pub async fn join(
    Shared(state): Shared<Arc<State>>,
    Input(request): Input<JoinRequest>,
) -> Answer<Json<JoinReply>> {
    let now = state.now();
    let id = HostId(random()?);
    let issued = issue(&state, &Subject::Host(id), &request.request)?;
    let mut transaction = state.database.begin().await?;
    let sql = "update tokens set used_by = $1 \
        where hash = $2 and used_by is null and expires > $3 returning id";
    let hash = text(&token_hash(&request.token));
    let used = transaction.run(sql, &[text(&request.name), hash, Value::from(now.0)]).await?;
    if used.is_empty() {
        return Err(Error::new(ErrorKind::Denied, "the token is not good, no longer, or was used")
            .with_hint("ask an administrator for a new one: `collective token create`")
            .into());
    }
    let inserted = insert_host(&mut transaction, id, &request.name, true, now).await;
    inserted.map_err(|error| match error.kind() {
        ErrorKind::Conflict => {
            let message = format!("there is a host named `{}` already", request.name);
            Error::new(ErrorKind::Conflict, message).with_hint("join under another name")
        }
        _ => error,
    })?;
    state.audit(&mut transaction, &format!("host {}", request.name), "joined".to_owned()).await?;
    transaction.commit().await?;
    Ok(Json(JoinReply { host: id, issued }))
}

pub async fn login(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Input(request): Input<LoginRequest>,
) -> Answer<Json<LoginReply>> {
    check_password(&state, &caller, &request.user, &request.proof).await?;
    let now = state.now();
    let mut transaction = state.database.begin().await?;
    let (host, host_name, guest) = match (&caller, &request.guest) {
        (Caller::Host(host) | Caller::Device(Device { host, .. }), _) => {
            (host.id, host.name.clone(), None)
        }
        (_, Some(guest)) => {
            let made = introduce(&state, &mut transaction, guest).await?;
            (made.host, guest.name.clone(), Some(made))
        }
        _ => {
            let message = "people log in at a host, and this request comes from none";
            return Err(Error::new(ErrorKind::Denied, message).into());
        }
    };
    let device = DeviceId(random()?);
    let subject = Subject::Device { user: request.user.clone(), device };
    let issued = issue(&state, &subject, &request.request)?;
    let sql = "delete from devices where user_name = $1 and id not in \
        (select id from devices where user_name = $1 order by created desc limit $2)";
    transaction.run(sql, &[text(&request.user), Value::from(DEVICES_MAX - 1)]).await?;
    let sql = "insert into devices (id, user_name, host, created) values ($1, $2, $3, $4)";
    let values = [text(&device), text(&request.user), text(&host), Value::from(now.0)];
    transaction.run(sql, &values).await?;
    let rows =
        transaction.run("select keybag from users where name = $1", &[text(&request.user)]).await?;
    let keybag: Keybag = rows.first().ok_or_else(wrong_password)?.json(0)?;
    let who = format!("{} at {host_name}", request.user);
    state.audit(&mut transaction, &who, "logged in".to_owned()).await?;
    transaction.commit().await?;
    let user = user(&state, &request.user).await?;
    Ok(Json(LoginReply { device, issued, keybag, user, host: guest }))
}

/// Makes a host of a computer without a token, because a person logs in at it.
async fn introduce(
    state: &State,
    transaction: &mut Transaction,
    guest: &GuestHost,
) -> Result<JoinReply> {
    let host = HostId(random()?);
    let issued = issue(state, &Subject::Host(host), &guest.request)?;
    insert_host(transaction, host, &guest.name, false, state.now()).await?;
    Ok(JoinReply { host, issued })
}

async fn insert_host(
    transaction: &mut Transaction,
    id: HostId,
    name: &HostName,
    member: bool,
    now: Timestamp,
) -> Result<()> {
    let sql = "insert into hosts (id, name, member, joined) values ($1, $2, $3, $4)";
    let values = [text(&id), text(name), Value::from(i64::from(member)), Value::from(now.0)];
    transaction.run(sql, &values).await.map(drop)
}

pub async fn logout(Shared(state): Shared<Arc<State>>, caller: Caller) -> Answer<()> {
    let device = caller.device()?;
    let mut transaction = state.database.begin().await?;
    transaction.run("delete from devices where id = $1", &[text(&device.id)]).await?;
    state.audit(&mut transaction, &caller.audit_name(), "logged out".to_owned()).await?;
    Ok(transaction.commit().await?)
}

pub async fn renew(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Input(request): Input<RenewRequest>,
) -> Answer<Json<Issued>> {
    let subject = match &caller {
        Caller::Host(host) => Subject::Host(host.id),
        Caller::Device(device) => Subject::Device { user: device.user.clone(), device: device.id },
        _ => {
            let message = "only a host or a device has a certificate to renew";
            return Err(Error::new(ErrorKind::Denied, message).into());
        }
    };
    Ok(Json(issue(&state, &subject, &request.request)?))
}

pub async fn change_password(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Input(change): Input<PasswordChange>,
) -> Answer<()> {
    let device = caller.device()?;
    let current = change.current.clone().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "a new password needs the proof of the current one")
    })?;
    check_password(&state, &caller, &device.user, &current).await?;
    store_password(&state, &caller, &device.user, change).await
}

pub async fn own_keybag(Shared(state): Shared<Arc<State>>, caller: Caller) -> Answer<Json<Keybag>> {
    let name = &caller.device()?.user;
    Ok(Json(super::account::stored_keybag(&state, name).await?))
}

/// Stores a new password and ends all log-ins but the caller's own.
pub async fn store_password(
    state: &State,
    caller: &Caller,
    name: &UserName,
    change: PasswordChange,
) -> Answer<()> {
    let proof = stored_proof(state, change.proof.clone()).await?;
    let own = match caller {
        Caller::Device(device) => device.id.to_string(),
        _ => String::new(),
    };
    let mut transaction = state.database.begin().await?;
    let sql = "update users set parameters = $1, proof = $2, keybag = $3 \
        where name = $4 returning name";
    let (parameters, keybag) = (json(&change.parameters), json(&change.keybag));
    let values =
        [Value::from(Some(parameters)), text(&proof), Value::from(Some(keybag)), text(name)];
    if transaction.run(sql, &values).await?.is_empty() {
        return Err(super::absent("user", name).into());
    }
    let sql = "delete from devices where user_name = $1 and id <> $2";
    transaction.run(sql, &[text(name), text(&own)]).await?;
    let what = format!("set the password of {name}");
    state.audit(&mut transaction, &caller.audit_name(), what).await?;
    Ok(transaction.commit().await?)
}

/// Inserts a user with the hash of their proof.
pub async fn insert_user(
    state: &State,
    transaction: &mut Transaction,
    request: &collective_api::server::CreateUser,
    proof: &str,
) -> Result<()> {
    let sql = "insert into users (name, administrator, parameters, proof, keybag, created) \
        values ($1, $2, $3, $4, $5, $6)";
    let password = &request.password;
    let values = [
        text(&request.name),
        Value::from(i64::from(request.administrator)),
        Value::from(Some(json(&password.parameters))),
        text(&proof),
        Value::from(Some(json(&password.keybag))),
        Value::from(state.now().0),
    ];
    transaction.run(sql, &values).await.map(drop)
}

/// Makes what is stored of a proof.
pub async fn stored_proof(state: &State, proof: Secret) -> Result<String> {
    let salt = Salt(random()?);
    let hash = hash(state, proof, salt).await?;
    Ok(json(&StoredProof { salt, hash }))
}

/// The hash under which a token is stored; its secret has 256 random bits.
pub fn token_hash(secret: &Secret) -> String {
    blake3::hash(secret.bytes()).to_hex().to_string()
}

/// Checks a password and counts the guess.
async fn check_password(
    state: &State,
    caller: &Caller,
    name: &UserName,
    proof: &Secret,
) -> Result<()> {
    let address = caller.address();
    let now = state.now();
    state.guesses(|guesses| guesses.pay(name, address, now))?;
    let rows =
        state.database.read("select proof from users where name = $1", &[text(name)]).await?;
    let known: Option<StoredProof> = rows.first().map(|row| row.json(0)).transpose()?;
    // A stranger's proof is hashed too, and compared with nothing.
    let salt = known.as_ref().map_or(Salt([0; 16]), |known| known.salt);
    let hash = hash(state, proof.clone(), salt).await?;
    // Comparing hashes of both takes as long wherever they differ.
    let same = |known: &StoredProof| blake3::hash(known.hash.bytes()) == blake3::hash(hash.bytes());
    if !known.as_ref().is_some_and(same) {
        tracing::info!(user = %name, %address, "a wrong password");
        return Err(wrong_password());
    }
    state.guesses(|guesses| guesses.give_back(name, address));
    Ok(())
}

async fn hash(state: &State, proof: Secret, salt: Salt) -> Result<Secret> {
    let _turn = state.turn(&state.password_checks).await?;
    let failed = || "cannot check the password".to_owned();
    let work = move || {
        let mut hash = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::DEFAULT)
            .hash_password_into(proof.bytes(), &salt.0, &mut hash)
            .map(|()| Secret::new(hash))
            .map_err(|cause| cause.to_string())
    };
    tokio::task::spawn_blocking(work)
        .await
        .or_error(ErrorKind::Internal, failed)?
        .or_error(ErrorKind::Internal, failed)
}

fn issue(state: &State, subject: &Subject, request: &str) -> Result<Issued> {
    let life = match subject {
        Subject::Host(_) => state.lives.host,
        Subject::Device { .. } => state.lives.device,
    };
    let now = state.now();
    let certificate = state.authority.sign(request, &subject.to_string(), life, now)?;
    Ok(Issued { certificate: Certificate(certificate), expires: now.after(life) })
}

fn wrong_password() -> Error {
    Error::new(ErrorKind::Denied, "the name or the password is wrong")
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain structs always become JSON")
}
