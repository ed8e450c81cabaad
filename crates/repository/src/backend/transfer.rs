//! Bytes over HTTP, either way: what comes is taken in no further than was asked for, and who stalls is given up.
//!
//! A server counts as away by how long nothing moves, not by how long all of it takes.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use collective_model::{Error, ErrorKind, Result, ResultExt};
use futures::stream::{self, StreamExt, TryStreamExt};
use reqwest::header::CONTENT_LENGTH;
use reqwest::{Body, RequestBuilder, Response};
use tokio::sync::watch;

use super::Pieces;

/// No byte for this long, and the server counts as away.
const STALL: Duration = Duration::from_secs(30);

/// Nothing taken of an upload for this long, and the server counts as away. The system takes some MiB in one go and then nothing until
/// a good part is sent, which on the slowest line worth waiting for (16 KiB/s) is minutes later.
const UPLOAD_STALL: Duration = Duration::from_secs(5 * 60);

/// Bytes of an upload that are handed on at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// Sends and receives, and knows whom to name when it fails. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    /// Where it goes, as messages say it.
    pub(super) place: Arc<str>,
    pub(super) stall: Duration,
    pub(super) upload_stall: Duration,
}

impl Transfer {
    pub(super) fn new(place: &str) -> Self {
        Self { place: place.into(), stall: STALL, upload_stall: UPLOAD_STALL }
    }

    pub(super) async fn send(&self, what: &str, request: RequestBuilder) -> Result<Response> {
        tokio::time::timeout(self.stall, request.send())
            .await
            .map_err(|_| self.stalled(what, self.stall))?
            .or_error(ErrorKind::Unavailable, || self.failed(what))
    }

    /// Sends what has a body, and waits as long as some of it is taken from time to time.
    pub(super) async fn upload(
        &self,
        what: &str,
        request: RequestBuilder,
        bytes: Bytes,
    ) -> Result<Response> {
        let (note, mut taken) = watch::channel(());
        let length = bytes.len();
        let chunks = (0..length).step_by(CHUNK_BYTES).map(move |start| {
            note.send_replace(());
            Ok::<_, Infallible>(bytes.slice(start..length.min(start + CHUNK_BYTES)))
        });
        let body = Body::wrap_stream(stream::iter(chunks));
        let mut answer = pin!(request.header(CONTENT_LENGTH, length).body(body).send());
        let mut all_taken = false;
        loop {
            let stalled = tokio::time::sleep(self.upload_stall);
            let answer = tokio::select! {
                answer = &mut answer => answer,
                more = taken.changed(), if !all_taken => {
                    all_taken = more.is_err();
                    continue;
                }
                () = stalled => return Err(self.stalled(what, self.upload_stall)),
            };
            return answer.or_error(ErrorKind::Unavailable, || self.failed(what));
        }
    }

    pub(super) fn failed(&self, what: &str) -> String {
        format!("cannot {what} at {}", self.place)
    }

    fn stalled(&self, what: &str, limit: Duration) -> Error {
        let message = format!("{}: nothing moved for {limit:?}", self.failed(what));
        Error::new(ErrorKind::Unavailable, message)
    }

    /// Takes in a body of `limit` bytes at most; more is `Corrupt`.
    pub(super) async fn body(&self, response: Response, limit: usize, what: &str) -> Result<Bytes> {
        let mut pieces = self.pieces(response, limit, what.to_owned());
        let mut bytes = BytesMut::new();
        while let Some(piece) = pieces.try_next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    }

    /// The pieces of a body of `limit` bytes at most; more is `Corrupt`.
    pub(super) fn pieces(&self, response: Response, limit: usize, what: String) -> Pieces {
        let this = self.clone();
        let pieces = stream::try_unfold((response, limit), move |(mut response, left)| {
            let (this, what) = (this.clone(), what.clone());
            async move {
                let cut = || format!("{}: the answer was cut off", this.failed(&what));
                let piece = tokio::time::timeout(this.stall, response.chunk())
                    .await
                    .map_err(|_| this.stalled(&what, this.stall))?
                    .or_error(ErrorKind::Unavailable, cut)?;
                let Some(piece) = piece else { return Ok(None) };
                let left = left.checked_sub(piece.len()).ok_or_else(|| {
                    let message = format!("cannot {what}: it is longer than {limit} bytes");
                    Error::new(ErrorKind::Corrupt, message)
                })?;
                Ok(Some((piece, (response, left))))
            }
        });
        pieces.boxed()
    }
}
