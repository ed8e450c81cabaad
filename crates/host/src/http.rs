//! The routes of the host's Unix socket: they parse, pass on and answer. What happens is elsewhere.
//!
//! Whoever can open the socket is the computer's owner; which user is meant says a header, or the only session there is.

mod events;
mod proxy;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{any, get, post};
use collective_api::failure::{ErrorBody, Failure};
use collective_api::host::{
    ApplianceStatus, CacheStatus, ContactRequest, Empty, ExecRequest, HoldRequest, HostStatus,
    JoinRequest, LoginRequest, LogoutRequest, Operation, StartRequest, StopRequest, TrimRequest,
    USER_HEADER, Versions,
};
use collective_disk::CacheReport;
use collective_model::{
    ApplianceName, Error, ErrorKind, Monitor, OperationId, Progress, Result, ResultExt, UserName,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::core::Core;
use crate::instance::Command;
use crate::operation::Handle;
use crate::session::Session;

/// Bytes of a request of ours, at most: the largest is the input of a program in the guest.
const REQUEST_BYTES: usize = 24 << 20;

/// All routes.
pub(crate) fn router(core: Arc<Core>) -> Router {
    let own = Router::new()
        .route("/v1/host", get(host))
        .route("/v1/contact", post(contact))
        .route("/v1/join", post(join))
        .route("/v1/login", post(login))
        .route("/v1/logout", post(logout))
        .route("/v1/appliances", get(appliances))
        .route("/v1/appliances/{name}", get(appliance))
        .route("/v1/appliances/{name}/versions", get(versions))
        .route("/v1/appliances/{name}/exec", post(exec))
        .route("/v1/appliances/{name}/hold", post(hold).delete(release))
        .route("/v1/appliances/{name}/{verb}", post(verb))
        .route("/v1/cache/trim", post(trim_cache))
        .route("/v1/cache/verify", post(verify_cache))
        .route("/v1/operations", get(operations))
        .route("/v1/operations/{id}", get(operation).delete(cancel))
        .route("/v1/operations/{id}/events", get(events::operation))
        .route("/v1/events", get(events::all))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES));
    own.route("/server/{*path}", any(proxy::pass_on))
        .fallback(async || {
            Failed(Error::new(ErrorKind::NotFound, "the host daemon has no such address"))
        })
        .with_state(core)
}

/// An error on its way out.
pub(crate) struct Failed(pub(crate) Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind().http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody { error: Failure::from(&self.0) })).into_response()
    }
}

type Answer<T> = std::result::Result<Json<T>, Failed>;

fn answer<T: Serialize>(value: T) -> Answer<T> {
    Ok(Json(value))
}

/// The session of a request.
pub(crate) struct Who(pub(crate) Arc<Session>);

impl FromRequestParts<Arc<Core>> for Who {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, core: &Arc<Core>) -> Result<Self, Failed> {
        let named = parts.headers.get(USER_HEADER).map(|value| {
            let text = value.to_str().or_error(ErrorKind::Invalid, || {
                format!("the header {USER_HEADER} is not a user's name")
            })?;
            text.parse::<UserName>()
        });
        Ok(Self(core.sessions.find(named.transpose()?.as_ref())?))
    }
}

/// Whose appliances a request is about: those of a person who is logged in, or of the only one whose machines run.
struct Whose {
    user: UserName,
    session: Option<Arc<Session>>,
}

impl FromRequestParts<Arc<Core>> for Whose {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, core: &Arc<Core>) -> Result<Self, Failed> {
        let refused = match Who::from_request_parts(parts, core).await {
            Ok(Who(session)) => {
                return Ok(Self { user: session.user.clone(), session: Some(session) });
            }
            Err(refused) => refused,
        };
        let named = parts.headers.get(USER_HEADER).map(|value| value.as_bytes());
        let mut users = core.instances.users_running();
        users.retain(|user| named.is_none_or(|named| named == user.as_str().as_bytes()));
        match users.pop_first() {
            Some(user) if users.is_empty() => Ok(Self { user, session: None }),
            _ => Err(refused),
        }
    }
}

/// Reads a request; an empty body is an empty object.
fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T> {
    let body = if body.is_empty() { b"{}".as_slice() } else { body };
    serde_json::from_slice(body)
        .or_error(ErrorKind::Invalid, || "the request cannot be read".to_owned())
}

async fn host(State(core): State<Arc<Core>>) -> Answer<HostStatus> {
    answer(core.status().await)
}

async fn contact(body: Bytes) -> Result<Response, Failed> {
    let request: ContactRequest = parse(&body)?;
    Ok(Json(crate::session::contact(&request.url).await?).into_response())
}

async fn join(State(core): State<Arc<Core>>, body: Bytes) -> Answer<HostStatus> {
    let request: JoinRequest = parse(&body)?;
    crate::session::join(&core, &request).await?;
    answer(core.status().await)
}

async fn login(State(core): State<Arc<Core>>, body: Bytes) -> Result<Response, Failed> {
    let request: LoginRequest = parse(&body)?;
    let session = crate::session::login(&core, &request).await?;
    Ok(Json(core.shown(&session)).into_response())
}

async fn logout(State(core): State<Arc<Core>>, body: Bytes) -> Answer<Empty> {
    let request: LogoutRequest = parse(&body)?;
    crate::session::logout(&core, &request).await?;
    answer(Empty {})
}

async fn appliances(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    whose: std::result::Result<Whose, Failed>,
) -> Answer<Vec<ApplianceStatus>> {
    let sessions = core.sessions.all();
    if headers.contains_key(USER_HEADER) || sessions.len() < 2 {
        let Whose { user, session } = whose?;
        return answer(core.appliances(&user, session.as_deref()).await?);
    }
    // Where nobody is meant, everybody's.
    let mut list = Vec::new();
    for session in &sessions {
        list.extend(core.appliances(&session.user, Some(session)).await?);
    }
    answer(list)
}

async fn appliance(
    State(core): State<Arc<Core>>,
    Whose { user, session }: Whose,
    Path(name): Path<ApplianceName>,
) -> Answer<ApplianceStatus> {
    answer(core.appliance(&user, session.as_deref(), &name).await?)
}

async fn versions(
    State(core): State<Arc<Core>>,
    Who(session): Who,
    Path(name): Path<ApplianceName>,
) -> Answer<Versions> {
    answer(core.versions(&session, &name).await?)
}

async fn exec(
    State(core): State<Arc<Core>>,
    Who(session): Who,
    Path(name): Path<ApplianceName>,
    body: Bytes,
) -> Result<Response, Failed> {
    let request: ExecRequest = parse(&body)?;
    core.known_appliance(&session, &name).await?;
    let (reply, answered) = tokio::sync::oneshot::channel();
    core.instances.get(&core, &session.user, &name)?.send(Command::Exec(request, reply)).await?;
    let answered = answered
        .await
        .or_error(ErrorKind::Internal, || format!("`{name}` was dropped by the daemon"))?;
    Ok(Json(answered?).into_response())
}

async fn verb(
    State(core): State<Arc<Core>>,
    Whose { user, session }: Whose,
    Path((name, verb)): Path<(ApplianceName, String)>,
    body: Bytes,
) -> Answer<Operation> {
    let wish: fn(&Bytes, Handle) -> Result<Command> = match verb.as_str() {
        "start" => |body, handle| Ok(Command::Start(parse::<StartRequest>(body)?, handle)),
        "stop" => |body, handle| Ok(Command::Stop(parse::<StopRequest>(body)?, handle)),
        "reset" => |body, handle| parse::<Empty>(body).map(|_| Command::Reset(handle)),
        "undo" => |body, handle| Ok(Command::Undo(parse(body)?, handle)),
        "publish" => |body, handle| parse::<Empty>(body).map(|_| Command::Publish(handle)),
        "delete" => |body, handle| Ok(Command::Delete(parse(body)?, handle)),
        _ => {
            let message = format!("an appliance cannot `{verb}`");
            return Err(Error::new(ErrorKind::NotFound, message).into());
        }
    };
    match &session {
        Some(session) => core.known_appliance(session, &name).await?,
        // Nobody is logged in, but what runs can be stopped.
        None if verb == "stop" && core.instances.status(&user, &name).is_some() => {}
        None => drop(core.sessions.find(Some(&user))?),
    }
    let instance = core.instances.get(&core, &user, &name)?;
    let handle = core.operations.begin(&verb, &name, &user);
    let sent = match wish(&body, handle.clone()) {
        Ok(command) => instance.send(command).await,
        Err(error) => Err(error),
    };
    if let Err(error) = sent {
        let failure = Error::from(Failure::from(&error));
        handle.end(Err::<(), _>(error));
        return Err(failure.into());
    }
    answer(handle.now())
}

async fn hold(
    State(core): State<Arc<Core>>,
    Who(session): Who,
    Path(name): Path<ApplianceName>,
    body: Bytes,
) -> Answer<Operation> {
    let request: HoldRequest = parse(&body)?;
    core.profile(&session).await?.appliance(&name)?;
    let handle = core.operations.begin("hold", &name, &session.user);
    let now = handle.now();
    tokio::spawn(async move {
        let done = crate::hold::hold(&core, &session, &name, request, &handle).await;
        handle.end(done);
    });
    answer(now)
}

async fn release(
    State(core): State<Arc<Core>>,
    Who(session): Who,
    Path(name): Path<ApplianceName>,
) -> Answer<Empty> {
    core.known_appliance(&session, &name).await?;
    crate::hold::release(&core, &core.paths.instance(&session.user, &name))?;
    answer(Empty {})
}

async fn trim_cache(State(core): State<Arc<Core>>, body: Bytes) -> Answer<CacheStatus> {
    let request: TrimRequest = parse(&body)?;
    let cache = core.cache.clone();
    let trimmed = tokio::task::spawn_blocking(move || cache.trim(request.to_bytes)).await;
    trimmed.or_error(ErrorKind::Internal, || "the cache was not trimmed".to_owned())?;
    answer(core.cache_status())
}

async fn verify_cache(State(core): State<Arc<Core>>, body: Bytes) -> Answer<Operation> {
    parse::<Empty>(&body)?;
    let handle = core.operations.begin_own("verify the cache");
    handle.past_cancelling();
    let (now, cache) = (handle.now(), core.cache.clone());
    tokio::task::spawn_blocking(move || {
        handle.stage("reading every frame");
        let found = cache.verify(|done_bytes| {
            handle.progress(Progress { done_bytes, total_bytes: None, moved_bytes: 0 });
        });
        let CacheReport { frames, bytes, damaged } = found;
        handle.end(Ok(collective_api::host::CacheReport { frames, bytes, damaged }));
    });
    answer(now)
}

async fn operations(State(core): State<Arc<Core>>) -> Answer<Vec<Operation>> {
    answer(core.operations.list())
}

async fn operation(
    State(core): State<Arc<Core>>,
    Path(id): Path<OperationId>,
) -> Answer<Operation> {
    answer(core.operations.get(id)?.now())
}

async fn cancel(State(core): State<Arc<Core>>, Path(id): Path<OperationId>) -> Answer<Operation> {
    let handle = core.operations.get(id)?;
    let now = handle.now();
    if !now.state.is_over() && !now.may_cancel {
        let message = format!("`{}` can no longer be cancelled", now.verb);
        return Err(Error::new(ErrorKind::Conflict, message).into());
    }
    handle.cancel();
    answer(handle.now())
}
