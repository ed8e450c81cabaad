//! `/server/…`: passes a request on to the server with the credentials of the session, and streams both bodies.
//!
//! So the command line needs one log-in only, and keys stay in the daemon. Nothing is kept or understood here, but for one
//! thing: when a password changes, what the old one opens on this host goes.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, header};
use axum::response::Response;
use collective_api::host::USER_HEADER;
use collective_model::{Error, ErrorKind, ResultExt, UserName};

use crate::core::Core;
use crate::http::{Failed, Who};
use crate::session::SetAside;

/// Headers that are about one connection only (RFC 9110, 7.6.1), and ours.
const NOT_PASSED_ON: [HeaderName; 6] = [
    header::HOST,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
];

pub(super) async fn pass_on(
    State(core): State<Arc<Core>>,
    Who(session): Who,
    Path(path): Path<String>,
    request: Request,
) -> Result<Response, Failed> {
    let (parts, body) = request.into_parts();
    let link = session.link().ok_or_else(|| {
        Error::new(ErrorKind::Unavailable, "this session cannot reach the server")
            .with_hint("log in again while the server can be reached")
    })?;
    let (way, base) = (link.way(), link.way().base());
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let url = format!("{}/{path}{query}", base.trim_end_matches('/'));
    let mut headers = passed_on(&parts.headers);
    headers.remove(USER_HEADER);
    let aside = match changes_password(&parts.method, &path, &session.user) {
        Some(user) => Some(SetAside::new(&core, &user)?),
        None => None,
    };
    let answer = way
        .client
        .http()
        .request(parts.method, url)
        .headers(headers)
        .body(reqwest::Body::wrap_stream(body.into_data_stream()))
        .send()
        .await
        .map_err(reqwest::Error::without_url);
    if let Some(aside) = aside {
        // A request that was cut off may have been carried out.
        let unchanged = match &answer {
            Ok(answer) => !answer.status().is_success(),
            Err(error) => error.is_connect(),
        };
        if unchanged {
            aside.put_back(&core)?;
        }
    }
    let answer = match answer {
        Err(cause) => Err(way.client.explain(cause).await),
        Ok(answer) => Ok(answer),
    };
    let answer = link.explain(answer)?;
    let mut response = Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        *headers = passed_on(answer.headers());
    }
    let response = response
        .body(Body::from_stream(answer.bytes_stream()))
        .or_error(ErrorKind::Internal, || "cannot pass the server's answer on".to_owned())?;
    Ok(response)
}

/// Whose password a request sets, if it does.
fn changes_password(method: &Method, path: &str, caller: &UserName) -> Option<UserName> {
    let parts: Vec<&str> = path.split('/').collect();
    match parts[..] {
        _ if method != Method::PUT => None,
        ["v1", "password"] => Some(caller.clone()),
        ["v1", "users", user, "password"] => user.parse().ok(),
        _ => None,
    }
}

fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut passed = headers.clone();
    for name in NOT_PASSED_ON {
        passed.remove(name);
    }
    passed
}
