//! `/server/…`: passes a request on to the server with the credentials of the session, and streams both bodies.
//!
//! So the command line needs one log-in only, and keys stay in the daemon. Nothing is kept or understood here.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::Response;
use collective_api::host::USER_HEADER;
use collective_model::{Error, ErrorKind, ResultExt};

use crate::core::Core;
use crate::http::{Failed, Who};

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
    State(_): State<Arc<Core>>,
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
    let unreachable = || format!("cannot reach the server at {base}");
    let answer = way
        .client
        .http()
        .request(parts.method, url)
        .headers(headers)
        .body(reqwest::Body::wrap_stream(body.into_data_stream()))
        .send()
        .await
        .map_err(reqwest::Error::without_url)
        .or_error(ErrorKind::Unavailable, unreachable);
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

fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut passed = headers.clone();
    for name in NOT_PASSED_ON {
        passed.remove(name);
    }
    passed
}
