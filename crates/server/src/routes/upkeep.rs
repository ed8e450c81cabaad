//! Checking and pruning on request, the rules by which the server prunes by itself, and how it all stands: for administrators.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State as Shared};
use collective_api::server::{
    DamagedObject, KeptVersion, PruneReport, PruneRequest, SetRetention, Upkeep, VerifyReport,
};
use collective_model::{ApplianceName, Error, ErrorKind};
use collective_repository::{Retention, VerifyState};

use super::appliance::find;
use super::{Input, absent};
use crate::answer::Answer;
use crate::caller::Caller;
use crate::database::{Value, text};
use crate::state::State;
use crate::upkeep::{self, record};

pub async fn verify(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(name): Path<ApplianceName>,
) -> Answer<Json<VerifyReport>> {
    caller.administrator()?;
    let _turn = state.turn(&state.repository_work).await?;
    let descriptor = find(&state, &name).await?.repository;
    let repository = upkeep::open(&state, &descriptor).await?;
    let mut verification = repository.verification(VerifyState::default()).await?;
    while verification.step().await? {}
    let report = verification.state().report.clone();
    record::finished(&state, descriptor.id, &report).await?;
    let damages = report.damages.into_iter();
    Ok(Json(VerifyReport {
        objects: report.objects,
        bytes: report.bytes,
        damages: damages
            .map(|damage| DamagedObject { object: damage.object, what: damage.what })
            .collect(),
        further_damages: report.further_damages,
    }))
}

pub async fn prune(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(name): Path<ApplianceName>,
    Input(request): Input<PruneRequest>,
) -> Answer<Json<PruneReport>> {
    caller.administrator()?;
    let _turn = state.turn(&state.repository_work).await?;
    let appliance = find(&state, &name).await?;
    let rule = request.rule.or(appliance.retention).ok_or_else(|| {
        let message = format!("no rule says which versions of `{name}` stay");
        Error::new(ErrorKind::Invalid, message).with_hint("say how many, for example the last 3")
    })?;
    rule.check()?;
    let PruneRequest { keep, dry_run, .. } = request;
    let report = upkeep::prune(&state, &appliance.repository, rule, keep, dry_run).await?;
    if !dry_run {
        let count = report.removed_versions.len();
        let mut transaction = state.database.begin().await?;
        let what = format!("pruned {count} versions of {name}");
        state.audit(&mut transaction, &caller.audit_name(), what).await?;
        transaction.commit().await?;
    }
    let kept = report.kept_versions.into_iter();
    Ok(Json(PruneReport {
        versions: report.removed_versions,
        kept: kept.map(|(version, reason)| KeptVersion { version, reason }).collect(),
        unreachable_packs: report.waiting_objects,
        swept_packs: report.removed_objects,
        freed_bytes: report.removed_bytes,
    }))
}

pub async fn set_appliance_retention(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(name): Path<ApplianceName>,
    Input(SetRetention { rule }): Input<SetRetention>,
) -> Answer<()> {
    caller.administrator()?;
    rule.iter().try_for_each(Retention::check)?;
    let mut transaction = state.database.begin().await?;
    let sql = "update appliances set retention = $1 where name = $2 returning name";
    let json = rule.map(|rule| record::json(&rule));
    let rows = transaction.run(sql, &[Value::from(json), text(&name)]).await?;
    rows.first().ok_or_else(|| absent("appliance", &name))?;
    let what = format!("set what is kept of {name}: {}", said(rule));
    state.audit(&mut transaction, &caller.audit_name(), what).await?;
    Ok(transaction.commit().await?)
}

pub async fn set_user_disk_retention(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Input(SetRetention { rule }): Input<SetRetention>,
) -> Answer<()> {
    caller.administrator()?;
    rule.iter().try_for_each(Retention::check)?;
    let mut transaction = state.database.begin().await?;
    record::set_user_disk_retention(&mut transaction, rule).await?;
    let what = format!("set what is kept of user disks: {}", said(rule));
    state.audit(&mut transaction, &caller.audit_name(), what).await?;
    Ok(transaction.commit().await?)
}

pub async fn show(Shared(state): Shared<Arc<State>>, caller: Caller) -> Answer<Json<Upkeep>> {
    caller.administrator()?;
    Ok(Json(record::overview(&state).await?))
}

fn said(rule: Option<Retention>) -> String {
    rule.map_or_else(|| "everything".to_owned(), |rule| rule.to_string())
}
