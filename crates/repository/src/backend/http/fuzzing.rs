//! What fuzzing may call of the HTTP backend: answers of any bytes, without a network.

use std::ops::Range;

use bytes::Bytes;
use collective_model::{Epoch, Result};
use futures::stream::{self, TryStreamExt};
use reqwest::{Body, Client, Response};
use tokio::runtime::Runtime;

use super::{Http, Listed, ObjectName};

thread_local! {
    /// Made once: both take longer than an answer.
    static HERE: (Runtime, Http) = {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime without I/O needs nothing of the system");
        (runtime, Http::new(Client::new(), "http://localhost", Epoch::default()))
    };
}

/// Reads an object, or a range of it, from an answer.
pub(crate) fn answered(
    name: &ObjectName,
    range: Option<Range<u64>>,
    status: u16,
    body: &[u8],
) -> Result<Bytes> {
    run(status, body, async |http, response| {
        let response = http.found(name, range.as_ref(), response).await?;
        http.take(name, range, response).await
    })
}

/// Reads a range from an answer, piece by piece.
pub(crate) fn streamed(
    name: &ObjectName,
    range: Range<u64>,
    status: u16,
    body: &[u8],
) -> Result<Vec<u8>> {
    run(status, body, async |http, response| {
        let response = http.found(name, Some(&range), response).await?;
        let pieces = http.take_pieces(name, range, response).await?;
        pieces.map_ok(|piece| piece.to_vec()).try_concat().await
    })
}

/// Reads a list of objects from an answer.
pub(crate) fn listed(status: u16, body: &[u8]) -> Result<Vec<Listed>> {
    run(status, body, async |http, response| http.take_list("list", response).await)
}

/// Answers with a body that comes in two pieces.
fn run<T>(
    status: u16,
    body: &[u8],
    take: impl AsyncFnOnce(&Http, Response) -> Result<T>,
) -> Result<T> {
    let (left, right) = body.split_at(body.len() / 2);
    let pieces = [left.to_vec(), right.to_vec()].map(Ok::<_, std::convert::Infallible>);
    let mut response = http::Response::new(Body::wrap_stream(stream::iter(pieces)));
    *response.status_mut() = http::StatusCode::from_u16(status).expect("the caller has a table");
    HERE.with(|(runtime, http)| runtime.block_on(take(http, response.into())))
}
