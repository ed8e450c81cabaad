//! A person's profile, their subscriptions, and the lock of each.
//!
//! What is not the caller's does not exist for them: another's subscription and an unknown one give the same answer, and so do
//! an appliance that they may not start and one that nobody ever made.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State as Shared};
use axum::http::header::{ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use collective_api::server::{
    Lock, Profile, ProfileAppliance, RenewLock, SubscribeRequest, Subscription, TakeLock,
};
use collective_model::{
    ApplianceName, Epoch, Error, ErrorKind, RepositoryId, Result, SubscriptionId, Timestamp,
    UserName, Version,
};
use collective_repository::Kind;
use serde::Deserialize;

use super::Input;
use super::account::user;
use super::repository::{delete_repository, insert_repository, remove_objects};
use crate::answer::Answer;
use crate::caller::{Caller, Device};
use crate::database::{Row, Transaction, Value, text};
use crate::lock::{self, LockState, Taker};
use crate::state::{State, random};
use crate::upkeep::record;

/// The columns of a lock, in the order in which [`lock_state`] reads them.
macro_rules! lock_columns {
    () => {
        "epoch, holder, holder_name, since, seen, expires, backlog"
    };
}

/// The columns of a subscription, in the order in which [`subscription`] reads them.
macro_rules! subscription_columns {
    () => {
        concat!(
            lock_columns!(),
            ", subscriptions.id, appliance, repositories.descriptor, repositories.head \
             from subscriptions join repositories on repositories.id = subscriptions.repository"
        )
    };
}

pub async fn profile(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    headers: HeaderMap,
) -> Answer<Response> {
    let name = &caller.device()?.user;
    let sql = "select distinct appliances.name, repositories.descriptor, repositories.head \
        from appliances join repositories on repositories.id = appliances.repository \
        join grants on grants.appliance = appliances.name \
        join members on members.group_name = grants.group_name \
        where members.user_name = $1 order by appliances.name";
    let rows = state.database.read(sql, &[text(name)]).await?;
    let appliance = |row: &Row| {
        let head = Version::new(row.integer(2)?.unsigned_abs());
        Ok(ProfileAppliance { name: row.parse(0)?, repository: row.json(1)?, head })
    };
    let appliances = rows.iter().map(appliance).collect::<Result<_>>()?;
    let sql =
        concat!("select ", subscription_columns!(), " where user_name = $1 order by appliance");
    let rows = state.database.read(sql, &[text(name)]).await?;
    let subscriptions = rows.iter().map(subscription).collect::<Result<_>>()?;
    let user_disk_retention = record::user_disk_retention(&state).await?;
    let user = user(&state, name).await?;
    let profile = Profile { user, appliances, subscriptions, user_disk_retention };
    let body = serde_json::to_vec(&profile).expect("plain structs always become JSON");
    let tag = format!("\"{}\"", &blake3::hash(&body).to_hex()[..32]);
    let known = headers.get(IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    if known == Some(tag.as_str()) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    Ok(([(ETAG, tag)], Json(profile)).into_response())
}

pub async fn subscribe(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Input(request): Input<SubscribeRequest>,
) -> Answer<Json<Subscription>> {
    let user = &caller.device()?.user;
    if let Some(known) = find(&state, user, &request.appliance).await? {
        return Ok(Json(known));
    }
    request.repository.check()?;
    if request.repository.kind != Kind::UserDisk || !request.repository.encrypted {
        let message = "the repository of a user disk must be private and of the kind `user_disk`";
        return Err(Error::new(ErrorKind::Invalid, message).into());
    }
    let mut transaction = state.database.begin().await?;
    check_entitled(&mut transaction, user, &request.appliance).await?;
    let id = SubscriptionId(random()?);
    let made = async {
        insert_repository(&state, &mut transaction, &request.repository).await?;
        let sql = "insert into subscriptions \
            (id, user_name, appliance, repository, created, epoch) values ($1, $2, $3, $4, $5, 0)";
        let values = [
            text(&id),
            text(user),
            text(&request.appliance),
            text(&request.repository.id),
            Value::from(state.now().0),
        ];
        transaction.run(sql, &values).await?;
        let what = format!("subscribed to {}", request.appliance);
        state.audit(&mut transaction, &caller.audit_name(), what).await?;
        state.objects.create(&request.repository).await?;
        transaction.commit().await
    };
    let made = made.await;
    // Another request of the same person may have been faster: then its subscription is the answer.
    match (find(&state, user, &request.appliance).await?, made) {
        (Some(subscription), _) => Ok(Json(subscription)),
        (None, Err(error)) => Err(error.into()),
        (None, Ok(())) => Err(super::absent("subscription", &id).into()),
    }
}

pub async fn unsubscribe(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(id): Path<SubscriptionId>,
) -> Answer<()> {
    let device = caller.device()?;
    let mut transaction = state.database.begin().await?;
    let held = locked_state(&mut transaction, id, device).await?;
    if let Some(lock) = held.held.filter(|lock| lock.host != device.host.id) {
        let appliance = appliance_of(&mut transaction, id).await?;
        let message =
            format!("`{appliance}` is in use at `{}` since {}", lock.host_name, lock.since);
        return Err(Error::new(ErrorKind::Conflict, message)
            .with_hint(format!("stop it at `{}` first", lock.host_name))
            .into());
    }
    let sql = "delete from subscriptions where id = $1 returning repository, appliance";
    let rows = transaction.run(sql, &[text(&id)]).await?;
    let row = rows.first().ok_or_else(|| super::absent("subscription", &id))?;
    let (repository, appliance): (RepositoryId, ApplianceName) = (row.parse(0)?, row.parse(1)?);
    delete_repository(&mut transaction, repository).await?;
    let what = format!("deleted their subscription to {appliance} with its user disk");
    state.audit(&mut transaction, &caller.audit_name(), what).await?;
    transaction.commit().await?;
    remove_objects(&state, repository).await;
    Ok(())
}

pub async fn take_lock(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(id): Path<SubscriptionId>,
    Input(request): Input<TakeLock>,
) -> Answer<Json<Lock>> {
    let device = caller.device()?;
    let mut transaction = state.database.begin().await?;
    let before = locked_state(&mut transaction, id, device).await?;
    let taker = Taker {
        host: device.host.id,
        host_name: device.host.name.clone(),
        appliance: appliance_of(&mut transaction, id).await?,
    };
    let lock = lock::take(&before, &taker, request.break_lock, state.now())?;
    store_lock(&mut transaction, id, &lock).await?;
    if let Some(lost) = before.held.filter(|held| held.epoch != lock.epoch) {
        let what = format!("took the lock of subscription {id} from {}", lost.host_name);
        state.audit(&mut transaction, &caller.audit_name(), what).await?;
    }
    transaction.commit().await?;
    Ok(Json(lock))
}

pub async fn renew_lock(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(id): Path<SubscriptionId>,
    Input(request): Input<RenewLock>,
) -> Answer<Json<Lock>> {
    let device = caller.device()?;
    let mut transaction = state.database.begin().await?;
    let before = locked_state(&mut transaction, id, device).await?;
    let host = device.host.id;
    let lock = lock::renew(&before, host, request.epoch, request.backlog_bytes, state.now())?;
    store_lock(&mut transaction, id, &lock).await?;
    transaction.commit().await?;
    Ok(Json(lock))
}

/// Which lock is released.
#[derive(Deserialize)]
pub struct Release {
    epoch: Epoch,
}

/// Releases a lock. A lock that is no longer the caller's is released already, so a repeated release is no error.
pub async fn release_lock(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(id): Path<SubscriptionId>,
    Query(release): Query<Release>,
) -> Answer<()> {
    let device = caller.device()?;
    let mut transaction = state.database.begin().await?;
    let before = locked_state(&mut transaction, id, device).await?;
    if lock::check(&before, device.host.id, release.epoch).is_err() {
        return Ok(());
    }
    let sql = "update subscriptions set holder = null, holder_name = null, since = null, \
        seen = null, expires = null, backlog = null where id = $1";
    transaction.run(sql, &[text(&id)]).await?;
    Ok(transaction.commit().await?)
}

/// Reads the lock of a caller's own subscription, and keeps other transactions from it until this one ends.
async fn locked_state(
    transaction: &mut Transaction,
    id: SubscriptionId,
    device: &Device,
) -> Result<LockState> {
    let sql = concat!(
        "update subscriptions set epoch = epoch where id = $1 and user_name = $2 returning ",
        lock_columns!()
    );
    let rows = transaction.run(sql, &[text(&id), text(&device.user)]).await?;
    lock_state(rows.first().ok_or_else(|| super::absent("subscription", &id))?)
}

async fn appliance_of(transaction: &mut Transaction, id: SubscriptionId) -> Result<ApplianceName> {
    let sql = "select appliance from subscriptions where id = $1";
    let rows = transaction.run(sql, &[text(&id)]).await?;
    rows.first().ok_or_else(|| super::absent("subscription", &id))?.parse(0)
}

/// As [`locked_state`], for the subscription whose user disk is in a repository.
pub async fn lock_of_repository(
    transaction: &mut Transaction,
    repository: RepositoryId,
) -> Result<LockState> {
    let sql = concat!(
        "update subscriptions set epoch = epoch where repository = $1 returning ",
        lock_columns!()
    );
    let rows = transaction.run(sql, &[text(&repository)]).await?;
    lock_state(rows.first().ok_or_else(|| super::absent("repository", &repository))?)
}

/// Reads the lock of the subscription whose user disk is in a repository, as it is just now.
pub async fn peek_lock(state: &State, repository: RepositoryId) -> Result<LockState> {
    let sql = concat!("select ", lock_columns!(), " from subscriptions where repository = $1");
    let rows = state.database.read(sql, &[text(&repository)]).await?;
    lock_state(rows.first().ok_or_else(|| super::absent("repository", &repository))?)
}

async fn store_lock(transaction: &mut Transaction, id: SubscriptionId, lock: &Lock) -> Result<()> {
    let sql = "update subscriptions set epoch = $1, holder = $2, holder_name = $3, since = $4, \
        seen = $5, expires = $6, backlog = $7 where id = $8";
    let backlog = lock.backlog_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    let values = [
        Value::from(i64::try_from(lock.epoch.0).unwrap_or(i64::MAX)),
        text(&lock.host),
        text(&lock.host_name),
        Value::from(lock.since.0),
        Value::from(lock.seen.0),
        Value::from(lock.expires.0),
        Value::from(backlog),
        text(&id),
    ];
    transaction.run(sql, &values).await.map(drop)
}

fn lock_state(row: &Row) -> Result<LockState> {
    let epoch = Epoch(row.integer(0)?.unsigned_abs());
    let Some(host) = row.parse_optional(1)? else { return Ok(LockState { epoch, held: None }) };
    let held = Lock {
        host,
        host_name: row.parse(2)?,
        epoch,
        since: Timestamp(row.integer(3)?),
        seen: Timestamp(row.integer(4)?),
        expires: Timestamp(row.integer(5)?),
        backlog_bytes: row.optional_integer(6)?.map(i64::unsigned_abs),
    };
    Ok(LockState { epoch, held: Some(held) })
}

fn subscription(row: &Row) -> Result<Subscription> {
    Ok(Subscription {
        id: row.parse(7)?,
        appliance: row.parse(8)?,
        repository: row.json(9)?,
        head: Version::new(row.integer(10)?.unsigned_abs()),
        lock: lock_state(row)?.held,
    })
}

async fn find(
    state: &State,
    user: &UserName,
    appliance: &ApplianceName,
) -> Result<Option<Subscription>> {
    let sql =
        concat!("select ", subscription_columns!(), " where user_name = $1 and appliance = $2");
    let rows = state.database.read(sql, &[text(user), text(appliance)]).await?;
    rows.first().map(subscription).transpose()
}

async fn check_entitled(
    transaction: &mut Transaction,
    user: &UserName,
    appliance: &ApplianceName,
) -> Result<()> {
    let sql = "select 1 from grants join members on members.group_name = grants.group_name \
        where grants.appliance = $1 and members.user_name = $2 limit 1";
    if transaction.run(sql, &[text(appliance), text(user)]).await?.is_empty() {
        let message = format!("`{user}` is not entitled to an appliance `{appliance}`");
        return Err(Error::new(ErrorKind::Denied, message)
            .with_hint("see `collective list`, or ask an administrator for a grant"));
    }
    Ok(())
}
