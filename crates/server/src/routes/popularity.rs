//! What is read of appliances: people's hosts report it, and who may read an appliance may ask for the counts.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State as Shared};
use collective_api::server::{Popularity, ReadReport};
use collective_model::{RepositoryId, Version};

use super::Input;
use super::repository::access;
use crate::answer::Answer;
use crate::caller::Caller;
use crate::popularity;
use crate::state::State;

pub async fn report(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(id): Path<RepositoryId>,
    Input(report): Input<ReadReport>,
) -> Answer<()> {
    let host = caller.device()?.host.id;
    let access = access(&state, &caller, id).await?;
    Ok(popularity::add(&state, &access.descriptor, access.head, host, &report).await?)
}

pub async fn show(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path((id, version)): Path<(RepositoryId, Version)>,
) -> Answer<Json<Option<Popularity>>> {
    access(&state, &caller, id).await?;
    Ok(Json(popularity::find(&state, id, version).await?))
}
