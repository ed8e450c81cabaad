//! The objects of repositories over HTTP: read with ranges, written with checks, published by the `PUT` of a manifest.
//!
//! The head in SQL is the truth. A publication checks everything first, then, in one transaction that holds the rows of the
//! repository and of the lock: compares head and epoch, writes the manifest, moves the head. `latest` is written after that; a
//! reader is told the head from SQL, and a manifest beyond it does not exist, so a crash in between shows nobody half a version.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::{Path as InPath, Query, State as Shared};
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use collective_api::server::EPOCH_HEADER;
use collective_model::{
    Epoch, Error, ErrorKind, RepositoryId, Result, ResultExt, Timestamp, Version,
};
use collective_repository::backend::{
    Backend, Commit, Listed, ObjectName, check_commit, encode_latest,
};
use collective_repository::{Descriptor, Manifest};
use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;

use super::subscription::{lock_of_repository, peek_lock};
use crate::answer::Answer;
use crate::caller::{Caller, Device};
use crate::database::{Transaction, Value, text};
use crate::lock;
use crate::objects;
use crate::range::{Asked, asked};
use crate::state::State;

/// Bytes of an upload that are hashed and written at a time.
const GATHER_BYTES: usize = 1 << 20;
/// Bytes of a refused upload that are read all the same; a whole pack is less.
const DISCARDED_BYTES: u64 = 96 << 20;
/// No byte of an upload for this long, and it is given up.
const STALL: Duration = Duration::from_secs(60);
/// Objects whose size is looked up at a time before a publication.
const LOOKUPS: usize = 16;

/// What a caller may do with a repository.
pub struct Access {
    pub descriptor: Descriptor,
    pub head: Option<Version>,
    may_write: bool,
    may_list: bool,
    /// Whose lock must be held for writing; none for an appliance.
    locked_by: Option<Device>,
}

/// Which objects are listed.
#[derive(Deserialize)]
pub struct ListQuery {
    #[serde(default)]
    prefix: String,
}

pub async fn list(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    InPath(id): InPath<RepositoryId>,
    Query(query): Query<ListQuery>,
) -> Answer<Json<Vec<Listed>>> {
    let access = access(&state, &caller, id).await?;
    if !access.may_list {
        return Err(denied(id).into());
    }
    let mut listed = state.objects.repository(id)?.list(&query.prefix).await?;
    listed.retain(|object| is_published(&object.name, access.head));
    Ok(Json(listed))
}

pub async fn read(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    InPath((id, name)): InPath<(RepositoryId, String)>,
    headers: HeaderMap,
) -> Answer<Response> {
    let access = access(&state, &caller, id).await?;
    let name: ObjectName = name.parse()?;
    let missing = || Error::new(ErrorKind::NotFound, format!("{name} does not exist"));
    if name == ObjectName::Latest {
        let text = access.head.map(encode_latest).ok_or_else(missing)?;
        return Ok(text.into_response());
    }
    if !is_published(&name, access.head) {
        return Err(missing().into());
    }
    let objects = state.objects.repository(id)?;
    let size_bytes = objects.size(&name).await?.ok_or_else(missing)?;
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok());
    let (status, part) = match asked(range, size_bytes) {
        Asked::Whole => (StatusCode::OK, 0..size_bytes),
        Asked::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Asked::Nothing => {
            let content_range = [(CONTENT_RANGE, format!("bytes */{size_bytes}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, content_range).into_response());
        }
    };
    let mut response = Response::builder()
        .status(status)
        .header(ACCEPT_RANGES, "bytes")
        .header(CONTENT_LENGTH, part.end - part.start);
    if status == StatusCode::PARTIAL_CONTENT {
        let shown = format!("bytes {}-{}/{size_bytes}", part.start, part.end - 1);
        response = response.header(CONTENT_RANGE, shown);
    }
    let pieces = match part.is_empty() {
        true => futures::stream::empty().boxed(),
        false => objects.stream(&name, part).await?,
    };
    let pieces = pieces.inspect_err(|error| tracing::error!("{}", error.chain()));
    let response = response.body(Body::from_stream(pieces));
    Ok(response.or_error(ErrorKind::Internal, || format!("cannot send {name}"))?)
}

pub async fn write(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    InPath((id, name)): InPath<(RepositoryId, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer<()> {
    let access = access(&state, &caller, id).await?;
    let name: ObjectName = name.parse()?;
    if !access.may_write {
        return Err(denied(id).into());
    }
    let epoch = epoch_of(&headers)?;
    let mut pieces = body.into_data_stream();
    let written = take(&state, &access, name, epoch, &mut pieces).await;
    if written.is_err() {
        discard(&name, &mut pieces).await;
    }
    Ok(written?)
}

async fn take(
    state: &State,
    access: &Access,
    name: ObjectName,
    epoch: Epoch,
    pieces: &mut BodyDataStream,
) -> Result<()> {
    let id = access.descriptor.id;
    if let Some(device) = &access.locked_by {
        lock::check(&peek_lock(state, id).await?, device.host.id, epoch)?;
    }
    match name {
        ObjectName::Manifest(version) => {
            let manifest = gather(&name, pieces).await?;
            publish(state, access, Commit { version, manifest, epoch }).await
        }
        ObjectName::Part { version, .. } if access.head.is_none_or(|head| version > head) => {
            receive(state, id, name, pieces).await
        }
        ObjectName::Pack(_) => receive(state, id, name, pieces).await,
        ObjectName::Descriptor if gather(&name, pieces).await? == access.descriptor.encode() => {
            Ok(())
        }
        _ => {
            let message = format!("{name} cannot be written: it is published, or the server's own");
            Err(Error::new(ErrorKind::Conflict, message))
        }
    }
}

/// Reads what is left of a refused upload: who still writes when the connection closes never reads why.
async fn discard(name: &ObjectName, pieces: &mut BodyDataStream) {
    let mut left_bytes = name.limit_bytes().min(DISCARDED_BYTES);
    while let (1.., Ok(Some(piece))) = (left_bytes, next_piece(name, pieces).await) {
        left_bytes = left_bytes.saturating_sub(piece.len() as u64);
    }
}

/// Decides what a caller may do with a repository; who may do nothing learns nothing.
pub async fn access(state: &State, caller: &Caller, id: RepositoryId) -> Result<Access> {
    let sql = "select repositories.descriptor, repositories.head, appliances.name, \
        subscriptions.user_name from repositories \
        left join appliances on appliances.repository = repositories.id \
        left join subscriptions on subscriptions.repository = repositories.id \
        where repositories.id = $1";
    let rows = state.database.read(sql, &[text(&id)]).await?;
    let administrator = caller.administrator().is_ok();
    let Some(row) = rows.first() else {
        return Err(if administrator { super::absent("repository", &id) } else { denied(id) });
    };
    let appliance = row.optional_text(2)?;
    let owner = row.optional_text(3)?;
    let device = caller.device().ok();
    let own = device.filter(|device| owner.as_deref() == Some(device.user.as_str()));
    let entitled = match (device, &appliance) {
        (Some(device), Some(appliance)) => is_entitled(state, device, appliance).await?,
        _ => false,
    };
    if !administrator && own.is_none() && !entitled {
        return Err(denied(id));
    }
    Ok(Access {
        descriptor: row.json(0)?,
        head: Version::new(row.integer(1)?.unsigned_abs()),
        may_write: own.is_some() || administrator && appliance.is_some(),
        may_list: own.is_some() || administrator,
        locked_by: own.cloned(),
    })
}

async fn is_entitled(state: &State, device: &Device, appliance: &str) -> Result<bool> {
    let sql = "select 1 from grants join members on members.group_name = grants.group_name \
        where grants.appliance = $1 and members.user_name = $2 limit 1";
    let values = [text(&appliance), text(&device.user)];
    Ok(!state.database.read(sql, &values).await?.is_empty())
}

fn denied(id: RepositoryId) -> Error {
    Error::new(ErrorKind::Denied, format!("repository {id} is not yours to use"))
}

/// Tells whether readers may see an object: those of a version that is not published yet are its publisher's business.
fn is_published(name: &ObjectName, head: Option<Version>) -> bool {
    *name != ObjectName::Sweep
        && name.version().is_none_or(|version| head.is_some_and(|head| version <= head))
}

fn epoch_of(headers: &HeaderMap) -> Result<Epoch> {
    let Some(value) = headers.get(EPOCH_HEADER) else { return Ok(Epoch::default()) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number
        .map(Epoch)
        .ok_or_else(|| Error::new(ErrorKind::Invalid, format!("{EPOCH_HEADER} is not a number")))
}

/// Takes a small object in as a whole.
async fn gather(name: &ObjectName, pieces: &mut BodyDataStream) -> Result<Bytes> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = next_piece(name, pieces).await? {
        bytes.extend_from_slice(&piece);
        check_size(name, bytes.len() as u64)?;
    }
    Ok(bytes.freeze())
}

/// Takes an object in piece by piece. A pack must have the hash that is its name; what does not fit leaves nothing behind.
async fn receive(
    state: &State,
    id: RepositoryId,
    name: ObjectName,
    pieces: &mut BodyDataStream,
) -> Result<()> {
    let _turn = state.turn(&state.uploads).await?;
    let objects = state.objects.repository(id)?;
    let mut incoming = objects.receive(name).await?;
    let mut hasher = blake3::Hasher::new();
    let mut size_bytes = 0;
    let mut gathered = BytesMut::with_capacity(GATHER_BYTES);
    loop {
        let piece = next_piece(&name, pieces).await?;
        let last = piece.is_none();
        if let Some(piece) = piece {
            size_bytes += piece.len() as u64;
            check_size(&name, size_bytes)?;
            gathered.extend_from_slice(&piece);
        }
        if last || gathered.len() >= GATHER_BYTES {
            let whole = gathered.split().freeze();
            hasher.update(&whole);
            incoming = incoming.append(whole).await?;
        }
        if last {
            break;
        }
    }
    if let ObjectName::Pack(hash) = name
        && hasher.finalize() != blake3::Hash::from(hash.0)
    {
        let message = format!("{name} was not stored: its bytes have another hash");
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    incoming.keep().await?;
    // If the repository was removed meanwhile, nobody would ever look for this again.
    let known =
        state.database.read("select 1 from repositories where id = $1", &[text(&id)]).await?;
    if known.is_empty() {
        objects.delete(&name).await?;
        return Err(denied(id));
    }
    Ok(())
}

async fn next_piece(name: &ObjectName, pieces: &mut BodyDataStream) -> Result<Option<Bytes>> {
    let cut = || format!("the upload of {name} was cut off");
    let piece = tokio::time::timeout(STALL, pieces.next());
    let piece = piece.await.or_error(ErrorKind::Unavailable, cut)?;
    piece.transpose().or_error(ErrorKind::Unavailable, cut)
}

fn check_size(name: &ObjectName, size_bytes: u64) -> Result<()> {
    let limit = name.limit_bytes();
    if size_bytes <= limit {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, format!("{name} may have {limit} bytes at most")))
}

async fn publish(state: &State, access: &Access, commit: Commit) -> Result<()> {
    let (id, version) = (access.descriptor.id, commit.version);
    check_commit(access.head, Epoch::default(), &commit)?;
    let manifest = Manifest::open(&commit.manifest, &access.descriptor, version)?;
    if access.locked_by.is_some() && manifest.epoch != commit.epoch {
        let message = format!("version {version} was signed under another lock");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let _turn = state.turn(&state.publications).await?;
    let objects = state.objects.repository(id)?;
    // Keeps a prune away, so that what is there now stays there.
    let _exclusive = objects.exclusive().await?;
    check_objects(&*objects, &manifest).await?;
    let mut transaction = state.database.begin().await?;
    if let Some(device) = &access.locked_by {
        let lock = lock_of_repository(&mut transaction, id).await?;
        lock::check(&lock, device.host.id, commit.epoch)?;
    }
    let sql = "update repositories set head = head where id = $1 returning head";
    let rows = transaction.run(sql, &[text(&id)]).await?;
    let head = rows.first().ok_or_else(|| denied(id))?.integer(0)?;
    check_commit(Version::new(head.unsigned_abs()), Epoch::default(), &commit)?;
    objects.write(&ObjectName::Manifest(version), commit.manifest).await?;
    let number = i64::try_from(version.number())
        .or_error(ErrorKind::Invalid, || format!("{version} is too high a number for a version"))?;
    let sql = "update repositories set head = $1 where id = $2";
    transaction.run(sql, &[Value::from(number), text(&id)]).await?;
    transaction.commit().await?;
    tracing::info!(repository = %id, %version, "published");
    // The version is published. If `latest` cannot be written now, the next start of the server does it.
    if let Err(error) = write_latest(&*objects, version).await {
        tracing::error!(repository = %id, "{}", error.chain());
    }
    Ok(())
}

async fn write_latest(objects: &dyn Backend, version: Version) -> Result<()> {
    objects.write(&ObjectName::Latest, encode_latest(version).into()).await
}

/// Writes `latest` if a publication could not: who goes by it, as a prune does, must not take the head for what nobody published.
pub async fn bring_up_latest(state: &State, id: RepositoryId) -> Result<()> {
    let objects = state.objects.repository(id)?;
    let _exclusive = objects.exclusive().await?;
    let sql = "select head from repositories where id = $1";
    let rows = state.database.read(sql, &[text(&id)]).await?;
    let head = rows.first().ok_or_else(|| super::absent("repository", &id))?.integer(0)?;
    match Version::new(head.unsigned_abs()) {
        Some(head) if objects.head().await.ok().flatten() != Some(head) => {
            write_latest(&*objects, head).await
        }
        _ => Ok(()),
    }
}

/// Checks that every object that a version needs is there, and as long as its manifest says.
async fn check_objects(objects: &dyn Backend, manifest: &Manifest) -> Result<()> {
    let needed = futures::stream::iter(manifest.objects()).map(Ok);
    needed
        .try_for_each_concurrent(LOOKUPS, |needed| async move {
            let what = match objects.size(&needed.name).await? {
                Some(size_bytes) if size_bytes == needed.size_bytes => return Ok(()),
                Some(size_bytes) => {
                    format!("has {size_bytes} bytes, and must have {}", needed.size_bytes)
                }
                None => "is missing".to_owned(),
            };
            let (version, name) = (manifest.version, needed.name);
            let message = format!("version {version} cannot be published: {name} {what}");
            Err(Error::new(ErrorKind::Conflict, message))
        })
        .await
}

/// Inserts the row of a new repository.
pub async fn insert_repository(
    state: &State,
    transaction: &mut Transaction,
    descriptor: &Descriptor,
) -> Result<()> {
    let sql = "insert into repositories (id, descriptor, head, created) values ($1, $2, 0, $3)";
    let text_of = serde_json::to_string(descriptor).expect("plain structs always become JSON");
    let values = [text(&descriptor.id), text(&text_of), Value::from(state.now().0)];
    transaction
        .run(sql, &values)
        .await
        .map(drop)
        .map_err(|error| super::exists_already(error, "repository", &descriptor.id))
}

/// Deletes the row of a repository and notes, in the same transaction, that its objects are to go: from then on nobody is
/// entitled to it, and a crash before [`remove_objects`] leaves work for the next start.
pub async fn delete_repository(transaction: &mut Transaction, id: RepositoryId) -> Result<()> {
    let sql = "insert into removals (repository) values ($1) on conflict do nothing";
    transaction.run(sql, &[text(&id)]).await?;
    transaction.run("delete from repositories where id = $1", &[text(&id)]).await.map(drop)
}

/// Removes the objects of a repository whose row is gone. What cannot be removed now is removed at the next start.
pub async fn remove_objects(state: &State, id: RepositoryId) {
    if let Err(error) = try_remove_objects(state, id).await {
        tracing::error!(repository = %id, "{}", error.chain());
    }
}

async fn try_remove_objects(state: &State, id: RepositoryId) -> Result<()> {
    state.objects.remove(id).await?;
    let sql = "delete from removals where repository = $1";
    state.database.write(sql, &[text(&id)]).await.map(drop)
}

/// Finishes what a crash interrupted, before the first request: `latest` follows the head, what cut uploads left goes, and so do removed
/// repositories and those that were made for rows that never came.
pub async fn repair(state: &State) -> Result<()> {
    let rows = state.database.read("select id, head, descriptor from repositories", &[]).await?;
    let known: HashSet<RepositoryId> =
        rows.iter().map(|row| row.parse(0)).collect::<Result<_>>()?;
    futures::stream::iter(&rows)
        .map(Ok)
        .try_for_each_concurrent(LOOKUPS, |row| async move {
            let head = Version::new(row.integer(1)?.unsigned_abs());
            let descriptor: Descriptor = row.json(2)?;
            let id = descriptor.id;
            if let Err(error) = repair_repository(state, head, descriptor).await {
                tracing::error!(repository = %id, "{}", error.chain());
            }
            Ok::<_, Error>(())
        })
        .await?;
    // What has versions goes only if the database says so.
    for row in state.database.read("select repository from removals", &[]).await? {
        remove_objects(state, row.parse(0)?).await;
    }
    state.objects.sweep(&known).await
}

async fn repair_repository(
    state: &State,
    head: Option<Version>,
    descriptor: Descriptor,
) -> Result<()> {
    let id = descriptor.id;
    if !state.objects.exists(id).await? {
        if head.is_some() {
            return Err(objects::missing(id));
        }
        // A server with another database took it for one without a row.
        tracing::warn!(repository = %id, "the place of an empty repository is made again");
        state.objects.create(&descriptor).await?;
    }
    let objects = state.objects.repository(id)?;
    // Nobody uploads yet, whatever the clock says.
    let freed_bytes = objects.remove_leftovers(Timestamp(i64::MAX)).await?;
    if freed_bytes > 0 {
        tracing::info!(repository = %id, freed_bytes, "what cut uploads left is removed");
    }
    let Some(head) = head else { return Ok(()) };
    if objects.head().await.ok().flatten() != Some(head) {
        tracing::warn!(repository = %id, %head, "`latest` is brought up to the head");
        write_latest(&*objects, head).await?;
    }
    Ok(())
}
