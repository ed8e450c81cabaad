//! Appliances: for administrators.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State as Shared};
use collective_api::server::{Appliance, CreateAppliance};
use collective_model::{ApplianceName, Error, ErrorKind, RepositoryId, Result, Version};
use collective_repository::{Descriptor, Kind};

use super::repository::{delete_repository, insert_repository, remove_objects};
use super::{Input, absent, exists_already};
use crate::answer::Answer;
use crate::caller::Caller;
use crate::database::{Row, Value, text};
use crate::popularity;
use crate::state::State;
use crate::upkeep::record;

pub async fn list(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
) -> Answer<Json<Vec<Appliance>>> {
    caller.administrator()?;
    let sql = "select name, descriptor, head, retention from appliances \
        join repositories on repositories.id = appliances.repository order by name";
    let mut appliances = Vec::new();
    for row in state.database.read(sql, &[]).await? {
        appliances.push(appliance(&state, &row).await?);
    }
    Ok(Json(appliances))
}

pub async fn show(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(name): Path<ApplianceName>,
) -> Answer<Json<Appliance>> {
    caller.administrator()?;
    Ok(Json(find(&state, &name).await?))
}

pub async fn create(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Input(request): Input<CreateAppliance>,
) -> Answer<Json<Appliance>> {
    caller.administrator()?;
    request.repository.check()?;
    if request.repository.kind != Kind::Appliance || request.repository.encrypted {
        let message = "the repository of an appliance must be public and of the kind `appliance`";
        return Err(Error::new(ErrorKind::Invalid, message).into());
    }
    let mut transaction = state.database.begin().await?;
    insert_repository(&state, &mut transaction, &request.repository).await?;
    let sql = "insert into appliances (name, repository, created) values ($1, $2, $3)";
    let values = [text(&request.name), text(&request.repository.id), Value::from(state.now().0)];
    let inserted = transaction.run(sql, &values).await;
    inserted.map_err(|error| exists_already(error, "appliance", &request.name))?;
    let what = format!("created appliance {}", request.name);
    state.audit(&mut transaction, &caller.audit_name(), what).await?;
    state.objects.create(&request.repository).await?;
    transaction.commit().await?;
    Ok(Json(find(&state, &request.name).await?))
}

pub async fn remove(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(name): Path<ApplianceName>,
) -> Answer<()> {
    caller.administrator()?;
    let mut transaction = state.database.begin().await?;
    let sql = "delete from appliances where name = $1 returning repository";
    let rows = transaction.run(sql, &[text(&name)]).await?;
    let id: RepositoryId = rows.first().ok_or_else(|| absent("appliance", &name))?.parse(0)?;
    delete_repository(&mut transaction, id).await?;
    let what = format!("removed appliance {name} with its repository {id}");
    state.audit(&mut transaction, &caller.audit_name(), what).await?;
    transaction.commit().await?;
    remove_objects(&state, id).await;
    Ok(())
}

pub async fn find(state: &State, name: &ApplianceName) -> Result<Appliance> {
    let sql = "select name, descriptor, head, retention from appliances \
        join repositories on repositories.id = appliances.repository where name = $1";
    let rows = state.database.read(sql, &[text(name)]).await?;
    appliance(state, rows.first().ok_or_else(|| absent("appliance", name))?).await
}

async fn appliance(state: &State, row: &Row) -> Result<Appliance> {
    let name: ApplianceName = row.parse(0)?;
    let repository: Descriptor = row.json(1)?;
    let sql = "select group_name from grants where appliance = $1 order by group_name";
    let rows = state.database.read(sql, &[text(&name)]).await?;
    let groups = rows.iter().map(|row| row.parse(0)).collect::<Result<_>>()?;
    let objects = state.objects.repository(repository.id)?.list("").await?;
    let stored_bytes = objects.iter().map(|object| object.size_bytes).sum();
    let head = Version::new(row.integer(2)?.unsigned_abs());
    let retention = row.json_optional(3)?;
    let check = record::check_of(state, repository.id).await?;
    let reads = popularity::overview(state, repository.id).await?;
    Ok(Appliance { name, repository, head, groups, stored_bytes, retention, check, reads })
}
