//! Server-sent events: each change of one operation until it is over, and everything that happens on the host.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use collective_model::OperationId;
use futures::{Stream, StreamExt};
use serde::Serialize;
use tokio_stream::wrappers::{BroadcastStream, WatchStream};

use crate::core::Core;
use crate::http::Failed;

/// Silence after which a comment is sent, so that a watcher knows that the daemon is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) async fn operation(
    State(core): State<Arc<Core>>,
    Path(id): Path<OperationId>,
) -> Result<Sse<impl Stream<Item = Result<Sent, Infallible>>>, Failed> {
    let changes = WatchStream::new(core.operations.get(id)?.watch());
    let until_over = changes.scan(false, |over, operation| {
        let last = std::mem::replace(over, operation.state.is_over());
        std::future::ready((!last).then_some(operation))
    });
    let ended = until_over.flat_map(|operation| {
        // The watch channel lives on in the table; the stream must end by itself.
        let over = operation.state.is_over();
        futures::stream::iter([Some(operation)].into_iter().chain(over.then_some(None)))
    });
    let whole = ended.take_while(|it| std::future::ready(it.is_some()));
    let stop = core.stop.clone().cancelled_owned();
    Ok(stream(whole.filter_map(std::future::ready).take_until(stop)))
}

pub(super) async fn all(
    State(core): State<Arc<Core>>,
) -> Sse<impl Stream<Item = Result<Sent, Infallible>>> {
    // A watcher that fell behind misses events, and goes on with the next.
    let events = BroadcastStream::new(core.operations.events());
    let stop = core.stop.clone().cancelled_owned();
    stream(events.filter_map(|event| std::future::ready(event.ok())).take_until(stop))
}

fn stream<T: Serialize + 'static>(
    items: impl Stream<Item = T> + Send + 'static,
) -> Sse<impl Stream<Item = Result<Sent, Infallible>>> {
    let sent = items.map(|item| {
        let text = serde_json::to_string(&item).unwrap_or_default();
        Ok(Sent::default().data(text))
    });
    Sse::new(sent).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}
