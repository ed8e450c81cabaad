//! The routes of the API (docs/protocols/server.md), one module for each kind of caller's need.

mod account;
mod appliance;
mod popularity;
pub mod repository;
mod session;
pub mod subscription;
mod upkeep;

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use collective_model::{Error, ErrorKind, ResultExt};
use serde::de::DeserializeOwned;

use crate::answer::Refusal;
use crate::state::State;

/// Bytes of a request's body, objects apart.
const BODY_BYTES_MAX: usize = 1 << 20;
/// How long an ordinary request may take, its body's arrival included.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// Makes the service that answers all requests.
pub fn router(state: Arc<State>) -> Router {
    let quick = Router::new()
        .merge(people())
        .merge(administration())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn(limited));
    let long = Router::new()
        .route("/v1/appliances/{name}/verify", post(upkeep::verify))
        .route("/v1/appliances/{name}/prune", post(upkeep::prune))
        .route("/v1/repositories/{id}/", get(repository::list))
        .route("/v1/repositories/{id}/{*name}", get(repository::read).put(repository::write))
        .layer(DefaultBodyLimit::disable());
    quick.merge(long).fallback(nothing).with_state(state)
}

fn people() -> Router<Arc<State>> {
    Router::new()
        .route("/v1/server", get(session::server))
        .route("/v1/login/parameters", post(session::login_parameters))
        .route("/v1/login", post(session::login))
        .route("/v1/logout", post(session::logout))
        .route("/v1/hosts/join", post(session::join))
        .route("/v1/certificate", post(session::renew))
        .route("/v1/password", put(session::change_password))
        .route("/v1/keybag", get(session::own_keybag))
        .route("/v1/profile", get(subscription::profile))
        .route("/v1/popularity/{repository}", post(popularity::report))
        .route("/v1/popularity/{repository}/{version}", get(popularity::show))
        .route("/v1/subscriptions", post(subscription::subscribe))
        .route("/v1/subscriptions/{id}", delete(subscription::unsubscribe))
        .route(
            "/v1/subscriptions/{id}/lock",
            post(subscription::take_lock)
                .put(subscription::renew_lock)
                .delete(subscription::release_lock),
        )
}

fn administration() -> Router<Arc<State>> {
    Router::new()
        .route("/v1/users", get(account::users).post(account::create_user))
        .route("/v1/users/{name}", delete(account::remove_user))
        .route("/v1/users/{name}/keybag", get(account::keybag))
        .route("/v1/users/{name}/password", put(account::set_password))
        .route("/v1/groups", get(account::groups).post(account::create_group))
        .route("/v1/groups/{name}", delete(account::remove_group))
        .route(
            "/v1/groups/{group}/members/{user}",
            put(account::add_member).delete(account::remove_member),
        )
        .route("/v1/grants", get(account::grants))
        .route("/v1/grants/{appliance}/{group}", put(account::grant).delete(account::revoke))
        .route("/v1/tokens", get(account::tokens).post(account::create_token))
        .route("/v1/tokens/{id}", delete(account::remove_token))
        .route("/v1/hosts", get(account::hosts))
        .route("/v1/hosts/{id}", delete(account::remove_host))
        .route("/v1/audit", get(account::audit))
        .route("/v1/appliances", get(appliance::list).post(appliance::create))
        .route("/v1/appliances/{name}", get(appliance::show).delete(appliance::remove))
        .route("/v1/appliances/{name}/retention", put(upkeep::set_appliance_retention))
        .route("/v1/retention", put(upkeep::set_user_disk_retention))
        .route("/v1/upkeep", get(upkeep::show))
}

async fn limited(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_LIMIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!("the request took longer than {} s", REQUEST_LIMIT.as_secs());
            Refusal::from(Error::new(ErrorKind::Unavailable, message)).into_response()
        }
    }
}

async fn nothing(request: Request) -> Refusal {
    let message = format!("the server has no {} {}", request.method(), request.uri().path());
    Error::new(ErrorKind::NotFound, message).into()
}

/// The body of a request, from JSON.
pub struct Input<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Input<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let unreadable = || "the body of the request cannot be read".to_owned();
        let bytes =
            Bytes::from_request(request, state).await.or_error(ErrorKind::Invalid, unreadable)?;
        Ok(Self(serde_json::from_slice(&bytes).or_error(ErrorKind::Invalid, unreadable)?))
    }
}

/// The error for a thing that is not there.
fn absent(what: &str, name: &impl Display) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no {what} `{name}`"))
}

/// Names what a refused insert found in its way.
fn exists_already(error: Error, what: &str, name: &impl Display) -> Error {
    match error.kind() {
        ErrorKind::Conflict => {
            Error::new(ErrorKind::Conflict, format!("there is a {what} `{name}` already"))
        }
        _ => error,
    }
}
