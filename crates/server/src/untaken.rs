//! Answers that a client does not take, on a connection that is alive otherwise.
//!
//! TCP knows when a peer takes nothing at all (`listener`). An HTTP/2 client can also let one stream stand still while it answers
//! pings for ever; then nobody asks the body of the answer for more. So each connection counts its bodies that have handed out
//! bytes, or could, and were not asked for more: if there are any and none was asked for long, the connection ends. A body that
//! waits for its own bytes is not counted: that is not the client's doing.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

/// The answers of one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Answers(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Bodies that could give more and are not asked.
    untaken: usize,
    /// When one was asked last, or began.
    taken: Instant,
}

impl Answers {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State { untaken: 0, taken: Instant::now() })))
    }

    /// Counts the body of an answer.
    pub fn watch(&self, inner: Body) -> Watched {
        self.note(1, 0);
        Watched { inner, answers: self.clone(), untaken: true, asked: false, ended: false }
    }

    /// Waits until answers were left untaken for `limit`, and up to twice that.
    pub async fn left(&self, limit: Duration) {
        let mut next = Instant::now() + limit;
        loop {
            tokio::time::sleep_until(next).await;
            let now = Instant::now();
            let State { untaken, taken } = *self.state();
            if untaken > 0 && now >= taken + limit {
                return;
            }
            next = if untaken > 0 { taken } else { now } + limit;
        }
    }

    fn note(&self, more: usize, less: usize) {
        let mut state = self.state();
        state.untaken = state.untaken + more - less;
        state.taken = Instant::now();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body of which it is known whether it is asked for more.
#[derive(Debug)]
pub struct Watched {
    inner: Body,
    answers: Answers,
    untaken: bool,
    asked: bool,
    ended: bool,
}

impl Watched {
    fn now(&mut self, untaken: bool) {
        self.answers.note(usize::from(untaken), usize::from(self.untaken));
        self.untaken = untaken;
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        this.asked = true;
        this.now(false);
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(context));
        this.ended = frame.is_none();
        this.now(!this.ended);
        Poll::Ready(frame)
    }

    /// Once asked, it ends only when it is asked after its last bytes: before, nobody may have taken them.
    fn is_end_stream(&self) -> bool {
        if self.asked { self.ended } else { self.inner.is_end_stream() }
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.now(false);
    }
}
