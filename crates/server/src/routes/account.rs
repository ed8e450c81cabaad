//! Users, groups, grants, tokens, hosts and the audit log: for administrators.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State as Shared};
use collective_api::keybag::Keybag;
use collective_api::secret::Secret;
use collective_api::server::{
    AuditEntry, CreateGroup, CreateToken, CreateUser, Grant, Group, HostEntry, PasswordChange,
    Token, TokenCreated, User,
};
use collective_model::{
    ApplianceName, Error, ErrorKind, GroupName, HostId, RepositoryId, Result, Timestamp, UserName,
};

use super::repository::{delete_repository, remove_objects};
use super::session::{insert_user, store_password, stored_proof, token_hash};
use super::{Input, absent, exists_already};
use crate::answer::Answer;
use crate::caller::Caller;
use crate::database::{Row, Value, text};
use crate::state::State;

/// Lines of the audit log in one answer.
const AUDIT_ANSWER_LINES: i64 = 1000;
/// The longest life of a token.
const TOKEN_LIFE_MAX_S: u64 = 366 * 24 * 3600;
/// Signs of a token's note.
const NOTE_SIGNS_MAX: usize = 200;
/// Tokens that are not used up: each of them lets a computer in.
const TOKENS_MAX: i64 = 10_000;

pub async fn users(Shared(state): Shared<Arc<State>>, caller: Caller) -> Answer<Json<Vec<User>>> {
    caller.administrator()?;
    let rows = state.database.read("select name from users order by name", &[]).await?;
    let mut users = Vec::with_capacity(rows.len());
    for row in rows {
        users.push(user(&state, &row.parse(0)?).await?);
    }
    Ok(Json(users))
}

pub async fn create_user(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Input(request): Input<CreateUser>,
) -> Answer<Json<User>> {
    caller.administrator()?;
    let proof = stored_proof(&state, request.password.proof.clone()).await?;
    let mut transaction = state.database.begin().await?;
    insert_user(&state, &mut transaction, &request, &proof)
        .await
        .map_err(|error| exists_already(error, "user", &request.name))?;
    for group in &request.groups {
        let sql = "insert into members (group_name, user_name) values ($1, $2)";
        let added = transaction.run(sql, &[text(group), text(&request.name)]).await;
        added.map_err(|error| missing_end(error, || absent("group", group)))?;
    }
    let what = format!("created user {}", request.name);
    state.audit(&mut transaction, &caller.audit_name(), what).await?;
    transaction.commit().await?;
    Ok(Json(user(&state, &request.name).await?))
}

pub async fn remove_user(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(name): Path<UserName>,
) -> Answer<()> {
    caller.administrator()?;
    let mut transaction = state.database.begin().await?;
    let sql = "delete from subscriptions where user_name = $1 returning repository";
    let rows = transaction.run(sql, &[text(&name)]).await?;
    let repositories: Vec<RepositoryId> =
        rows.iter().map(|row| row.parse(0)).collect::<Result<_>>()?;
    for id in &repositories {
        delete_repository(&mut transaction, *id).await?;
    }
    let sql = "delete from users where name = $1 returning name";
    if transaction.run(sql, &[text(&name)]).await?.is_empty() {
        return Err(absent("user", &name).into());
    }
    state.audit(&mut transaction, &caller.audit_name(), format!("removed user {name}")).await?;
    transaction.commit().await?;
    for id in repositories {
        remove_objects(&state, id).await;
    }
    Ok(())
}

pub async fn keybag(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(name): Path<UserName>,
) -> Answer<Json<Keybag>> {
    caller.administrator()?;
    Ok(Json(stored_keybag(&state, &name).await?))
}

/// Reads a user's keybag, which only their password or their recovery key opens.
pub async fn stored_keybag(state: &State, name: &UserName) -> Result<Keybag> {
    let sql = "select keybag from users where name = $1";
    let rows = state.database.read(sql, &[text(name)]).await?;
    rows.first().ok_or_else(|| absent("user", name))?.json(0)
}

pub async fn set_password(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(name): Path<UserName>,
    Input(change): Input<PasswordChange>,
) -> Answer<()> {
    caller.administrator()?;
    store_password(&state, &caller, &name, change).await
}

pub async fn groups(Shared(state): Shared<Arc<State>>, caller: Caller) -> Answer<Json<Vec<Group>>> {
    caller.administrator()?;
    let sql = "select name, user_name from user_groups \
        left join members on members.group_name = user_groups.name order by name, user_name";
    let mut groups: Vec<Group> = Vec::new();
    for row in state.database.read(sql, &[]).await? {
        let name: GroupName = row.parse(0)?;
        if groups.last().is_none_or(|last| last.name != name) {
            groups.push(Group { name, members: Vec::new() });
        }
        if let (Some(group), Some(member)) = (groups.last_mut(), row.parse_optional(1)?) {
            group.members.push(member);
        }
    }
    Ok(Json(groups))
}

pub async fn create_group(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Input(request): Input<CreateGroup>,
) -> Answer<Json<Group>> {
    let name = request.name;
    let sql = "insert into user_groups (name, created) values ($1, $2) returning name";
    let values = [text(&name), Value::from(state.now().0)];
    change(&state, &caller, format!("created group {name}"), sql, &values)
        .await
        .map_err(|error| exists_already(error, "group", &name))?;
    Ok(Json(Group { name, members: Vec::new() }))
}

pub async fn remove_group(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(name): Path<GroupName>,
) -> Answer<()> {
    let sql = "delete from user_groups where name = $1 returning name";
    let removed =
        change(&state, &caller, format!("removed group {name}"), sql, &[text(&name)]).await?;
    Ok(found(&removed, || absent("group", &name))?)
}

pub async fn add_member(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path((group, user)): Path<(GroupName, UserName)>,
) -> Answer<()> {
    let sql = "insert into members (group_name, user_name) values ($1, $2) on conflict do nothing";
    let what = format!("put {user} into group {group}");
    let added = change(&state, &caller, what, sql, &[text(&group), text(&user)]).await;
    match added {
        Ok(_) => Ok(()),
        Err(error) => Err(missing_of_two(
            &state,
            error,
            ("group", "select name from user_groups where name = $1", group.as_str()),
            ("user", "select name from users where name = $1", user.as_str()),
        )
        .await
        .into()),
    }
}

pub async fn remove_member(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path((group, user)): Path<(GroupName, UserName)>,
) -> Answer<()> {
    let sql = "delete from members where group_name = $1 and user_name = $2 returning user_name";
    let what = format!("took {user} out of group {group}");
    let removed = change(&state, &caller, what, sql, &[text(&group), text(&user)]).await?;
    let message = || Error::new(ErrorKind::NotFound, format!("`{user}` is not in group `{group}`"));
    Ok(found(&removed, message)?)
}

pub async fn grants(Shared(state): Shared<Arc<State>>, caller: Caller) -> Answer<Json<Vec<Grant>>> {
    caller.administrator()?;
    let sql = "select appliance, group_name from grants order by appliance, group_name";
    let rows = state.database.read(sql, &[]).await?;
    let grant = |row: &Row| Ok(Grant { appliance: row.parse(0)?, group: row.parse(1)? });
    Ok(Json(rows.iter().map(grant).collect::<Result<_>>()?))
}

pub async fn grant(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path((appliance, group)): Path<(ApplianceName, GroupName)>,
) -> Answer<()> {
    let sql = "insert into grants (appliance, group_name) values ($1, $2) on conflict do nothing";
    let what = format!("granted {appliance} to group {group}");
    let granted = change(&state, &caller, what, sql, &[text(&appliance), text(&group)]).await;
    match granted {
        Ok(_) => Ok(()),
        Err(error) => Err(missing_of_two(
            &state,
            error,
            ("appliance", "select name from appliances where name = $1", appliance.as_str()),
            ("group", "select name from user_groups where name = $1", group.as_str()),
        )
        .await
        .into()),
    }
}

pub async fn revoke(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path((appliance, group)): Path<(ApplianceName, GroupName)>,
) -> Answer<()> {
    let sql = "delete from grants where appliance = $1 and group_name = $2 returning appliance";
    let what = format!("took {appliance} back from group {group}");
    let removed = change(&state, &caller, what, sql, &[text(&appliance), text(&group)]).await?;
    let message = || {
        let message = format!("`{appliance}` is not granted to group `{group}`");
        Error::new(ErrorKind::NotFound, message)
    };
    Ok(found(&removed, message)?)
}

pub async fn tokens(Shared(state): Shared<Arc<State>>, caller: Caller) -> Answer<Json<Vec<Token>>> {
    caller.administrator()?;
    let sql = "select id, note, expires, used_by from tokens order by id";
    let rows = state.database.read(sql, &[]).await?;
    Ok(Json(rows.iter().map(token).collect::<Result<_>>()?))
}

pub async fn create_token(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Input(request): Input<CreateToken>,
) -> Answer<Json<TokenCreated>> {
    if request.life_s == 0 || request.life_s > TOKEN_LIFE_MAX_S {
        let message = format!("a token lives from 1 second to {} days", TOKEN_LIFE_MAX_S / 86_400);
        return Err(Error::new(ErrorKind::Invalid, message).into());
    }
    if request.note.chars().count() > NOTE_SIGNS_MAX {
        let message = format!("a token's note has {NOTE_SIGNS_MAX} characters at most");
        return Err(Error::new(ErrorKind::Invalid, message).into());
    }
    let secret = Secret::generate();
    let expires = state.now().after(Duration::from_secs(request.life_s));
    let sql = "insert into tokens (id, hash, note, expires) \
        select coalesce(max(id), 0) + 1, $1, $2, $3 from tokens having count(*) < $4 \
        returning id, note, expires, used_by";
    let values = [
        text(&token_hash(&secret)),
        text(&request.note),
        Value::from(expires.0),
        Value::from(TOKENS_MAX),
    ];
    let what = format!("created a token for {:?}", request.note);
    let made = change(&state, &caller, what, sql, &values).await?;
    let full = || Error::new(ErrorKind::Conflict, format!("there are {TOKENS_MAX} tokens already"));
    let token = token(made.first().ok_or_else(full)?)?;
    Ok(Json(TokenCreated { token, secret }))
}

pub async fn remove_token(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(id): Path<u64>,
) -> Answer<()> {
    let sql = "delete from tokens where id = $1 returning id";
    let number = i64::try_from(id).unwrap_or(i64::MAX);
    let what = format!("removed token {id}");
    let removed = change(&state, &caller, what, sql, &[Value::from(number)]).await?;
    Ok(found(&removed, || absent("token", &id))?)
}

pub async fn hosts(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
) -> Answer<Json<Vec<HostEntry>>> {
    caller.administrator()?;
    let sql = "select id, name, joined, seen, member from hosts order by name, joined";
    let rows = state.database.read(sql, &[]).await?;
    let host = |row: &Row| {
        let seen = row.optional_integer(3)?.map(Timestamp);
        let joined = Timestamp(row.integer(2)?);
        let member = row.integer(4)? != 0;
        Ok(HostEntry { id: row.parse(0)?, name: row.parse(1)?, member, joined, seen })
    };
    Ok(Json(rows.iter().map(host).collect::<Result<_>>()?))
}

pub async fn remove_host(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(id): Path<HostId>,
) -> Answer<()> {
    let sql = "delete from hosts where id = $1 returning id";
    let removed = change(&state, &caller, format!("removed host {id}"), sql, &[text(&id)]).await?;
    Ok(found(&removed, || absent("host", &id))?)
}

pub async fn audit(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
) -> Answer<Json<Vec<AuditEntry>>> {
    caller.administrator()?;
    let sql = "select time, who, what from audit order by time desc, nonce limit $1";
    let rows = state.database.read(sql, &[Value::from(AUDIT_ANSWER_LINES)]).await?;
    let line = |row: &Row| {
        let (who, what) = (row.optional_text(1)?, row.optional_text(2)?);
        let time = Timestamp(row.integer(0)?);
        Ok(AuditEntry { time, who: who.unwrap_or_default(), what: what.unwrap_or_default() })
    };
    Ok(Json(rows.iter().map(line).collect::<Result<_>>()?))
}

/// Returns what others may know of a user.
pub async fn user(state: &State, name: &UserName) -> Result<User> {
    let sql = "select administrator, created, group_name from users \
        left join members on members.user_name = users.name where name = $1 order by group_name";
    let rows = state.database.read(sql, &[text(name)]).await?;
    let first = rows.first().ok_or_else(|| absent("user", name))?;
    let groups = rows.iter().map(|row| row.parse_optional(2)).collect::<Result<Vec<_>>>()?;
    Ok(User {
        name: name.clone(),
        administrator: first.integer(0)? != 0,
        groups: groups.into_iter().flatten().collect(),
        created: Timestamp(first.integer(1)?),
    })
}

/// Runs one statement for an administrator, with its line in the audit log.
async fn change(
    state: &State,
    caller: &Caller,
    what: String,
    sql: &'static str,
    values: &[Value],
) -> Result<Vec<Row>> {
    caller.administrator()?;
    let mut transaction = state.database.begin().await?;
    let rows = transaction.run(sql, values).await?;
    state.audit(&mut transaction, &caller.audit_name(), what).await?;
    transaction.commit().await?;
    Ok(rows)
}

/// Names which end is missing of a row that ties two things: each is its kind, the question for it, and its name.
async fn missing_of_two(
    state: &State,
    error: Error,
    first: (&str, &'static str, &str),
    second: (&str, &'static str, &str),
) -> Error {
    if error.kind() != ErrorKind::Conflict {
        return error;
    }
    for (what, sql, name) in [first, second] {
        match state.database.read(sql, &[text(&name)]).await {
            Ok(rows) if rows.is_empty() => return absent(what, &name),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
    // Both are there by now: whoever tries again succeeds.
    error
}

fn found(rows: &[Row], absent: impl FnOnce() -> Error) -> Result<()> {
    if rows.is_empty() { Err(absent()) } else { Ok(()) }
}

/// A refused reference means that one of its ends is not there.
fn missing_end(error: Error, absent: impl FnOnce() -> Error) -> Error {
    if error.kind() == ErrorKind::Conflict { absent() } else { error }
}

fn token(row: &Row) -> Result<Token> {
    let note = row.optional_text(1)?.unwrap_or_default();
    let expires = Timestamp(row.integer(2)?);
    Ok(Token { id: row.integer(0)?.unsigned_abs(), note, expires, used_by: row.parse_optional(3)? })
}
