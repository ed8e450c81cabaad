//! Objects over HTTP: any static web server to read, the Collective server to publish.
//!
//! Reads are `GET` with `Range`; the answer is taken in no further than what was asked for, so a lying server cannot fill the
//! memory. A server that stalls is given up: by how long nothing moves, not by how long all of it takes. Writes are `PUT`; the `PUT` of a manifest is the commit and carries the writer's epoch. The server
//! says what went wrong in JSON; a stranger's status is mapped to the nearest kind. Retrying is the caller's.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{Epoch, Error, ErrorKind, Result, ResultExt, Version};
use reqwest::header::{CONTENT_LENGTH, RANGE};
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;

use super::transfer::Transfer;
use super::{
    Backend, Commit, Listed, ObjectName, Pieces, decode_latest, not_found, one_piece, too_short,
};

/// The header that carries the fencing number of the writer's lock.
const EPOCH_HEADER: &str = "Collective-Epoch";

/// Text of an error answer that is read at most.
const MAX_ERROR_BYTES: usize = 64 << 10;

/// Causes of an error answer that are kept at most: each lies within the one before, and thousands would overflow the stack
/// of who drops them.
const MAX_CAUSES: usize = 32;

/// A list of objects that is read at most: some 100,000 of them.
const MAX_LIST_BYTES: usize = 32 << 20;

/// Reads and publishes over HTTP.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client,
    base: String,
    epoch: Epoch,
    transfer: Transfer,
    /// Whether who sends more than the range that was asked for is refused.
    ranges_only: bool,
}

impl Http {
    /// Makes a backend of the objects below `base`, such as `https://server/v1/repositories/<id>`; `epoch` goes with every write.
    #[must_use]
    pub fn new(client: Client, base: &str, epoch: Epoch) -> Self {
        let base = base.trim_end_matches('/').to_owned();
        let transfer = Transfer::new(&base);
        Self { client, base, epoch, transfer, ranges_only: false }
    }

    /// Refuses a server that answers with a whole object where a range was asked for: of a pack that is up to 96 MiB in memory.
    #[must_use]
    pub fn ranges_only(self) -> Self {
        Self { ranges_only: true, ..self }
    }

    /// Gives up when nothing has come for `stall`, or nothing of an upload was taken for `upload_stall`.
    #[must_use]
    pub fn with_limits(self, stall: Duration, upload_stall: Duration) -> Self {
        let transfer = Transfer { stall, upload_stall, ..self.transfer };
        Self { transfer, ..self }
    }

    fn url(&self, name: &ObjectName) -> String {
        format!("{}/{name}", self.base)
    }

    /// Turns an answer that is no success into an error.
    async fn accept(&self, what: &str, response: Response) -> Result<Response> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = self.transfer.body(response, MAX_ERROR_BYTES, what).await.unwrap_or_default();
        let message = self.transfer.failed(what);
        if let Ok(answer) = serde_json::from_slice::<ErrorAnswer>(&text) {
            return Err(Error::from(answer.error).context(message));
        }
        let kind = ErrorKind::of_http_status(status.as_u16());
        Err(Error::new(kind, format!("{message}: the server answered {status}")))
    }

    /// Asks for an object or a range of it.
    async fn get(&self, name: &ObjectName, range: Option<&Range<u64>>) -> Result<Response> {
        let what = read_of(name);
        let mut request = self.client.get(self.url(name));
        if let Some(range) = range {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        let response = self.transfer.send(&what, request).await?;
        self.found(name, range, response).await
    }

    /// Turns an answer that does not bring what was asked for into an error.
    async fn found(
        &self,
        name: &ObjectName,
        range: Option<&Range<u64>>,
        response: Response,
    ) -> Result<Response> {
        match response.status() {
            StatusCode::NOT_FOUND => Err(not_found(name)),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let needed = range.map_or(0, |range| range.end);
                let message = format!("{name} is cut short: {needed} bytes are needed");
                Err(Error::new(ErrorKind::Corrupt, message))
            }
            _ => self.accept(&read_of(name), response).await,
        }
    }

    /// Takes in the bytes that were asked for.
    async fn take(
        &self,
        name: &ObjectName,
        range: Option<Range<u64>>,
        response: Response,
    ) -> Result<Bytes> {
        let (what, limit) = (read_of(name), name.limit_bytes() as usize);
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let Some(range) = range else {
            return self.transfer.body(response, limit, &what).await;
        };
        let length = (range.end - range.start) as usize;
        if partial {
            let bytes = self.transfer.body(response, length, &what).await?;
            if bytes.len() < length {
                return Err(too_short(name, range.start + bytes.len() as u64, range.end));
            }
            return Ok(bytes);
        }
        // A server that knows no ranges sends it all.
        cut_out(name, &self.transfer.body(response, limit, &what).await?, &range)
    }

    /// Takes in the bytes that were asked for piece by piece.
    async fn take_pieces(
        &self,
        name: &ObjectName,
        range: Range<u64>,
        response: Response,
    ) -> Result<Pieces> {
        let what = read_of(name);
        if response.status() == StatusCode::PARTIAL_CONTENT {
            return Ok(self.transfer.pieces(response, (range.end - range.start) as usize, what));
        }
        if self.ranges_only {
            let message = format!("{}: the server gives no ranges", self.transfer.failed(&what));
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        // A server that knows no ranges sends it all.
        let whole = self.transfer.body(response, name.limit_bytes() as usize, &what).await?;
        cut_out(name, &whole, &range).map(one_piece)
    }

    /// Takes in a list of objects.
    async fn take_list(&self, what: &str, response: Response) -> Result<Vec<Listed>> {
        let response = self.accept(what, response).await?;
        let text = self.transfer.body(response, MAX_LIST_BYTES, what).await?;
        serde_json::from_slice(&text)
            .or_error(ErrorKind::NotFound, || format!("{} lists no objects", self.base))
    }

    async fn put(&self, name: &ObjectName, bytes: Bytes, epoch: Epoch) -> Result<()> {
        let what = format!("write {name}");
        let request = self.client.put(self.url(name)).header(EPOCH_HEADER, epoch.to_string());
        let response = self.transfer.upload(&what, request, bytes).await?;
        self.accept(&what, response).await.map(drop)
    }
}

/// What the server says when it refuses.
#[derive(Deserialize)]
struct ErrorAnswer {
    error: ErrorBody,
}

#[derive(Deserialize)]
struct ErrorBody {
    kind: ErrorKind,
    message: String,
    #[serde(default)]
    causes: Vec<String>,
    hint: Option<String>,
}

impl From<ErrorBody> for Error {
    fn from(body: ErrorBody) -> Self {
        let ErrorBody { kind, message, causes, hint } = body;
        let causes = causes.into_iter().take(MAX_CAUSES);
        let texts = std::iter::once(message).chain(causes).collect::<Vec<_>>();
        let chain = texts.into_iter().rev().fold(None, |inner: Option<Self>, text| {
            let outer = Self::new(kind, text);
            Some(match inner {
                Some(inner) => outer.with_source(inner),
                None => outer,
            })
        });
        let error = chain.expect("the message at least is in the chain");
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

fn read_of(name: &ObjectName) -> String {
    format!("read {name}")
}

fn cut_out(name: &ObjectName, whole: &Bytes, range: &Range<u64>) -> Result<Bytes> {
    if (whole.len() as u64) < range.end {
        return Err(too_short(name, whole.len() as u64, range.end));
    }
    Ok(whole.slice(range.start as usize..range.end as usize))
}

#[async_trait]
impl Backend for Http {
    async fn read(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes> {
        if range.as_ref().is_some_and(Range::is_empty) {
            return Ok(Bytes::new());
        }
        let response = self.get(name, range.as_ref()).await?;
        self.take(name, range, response).await
    }

    async fn stream(&self, name: &ObjectName, range: Range<u64>) -> Result<Pieces> {
        let response = self.get(name, Some(&range)).await?;
        self.take_pieces(name, range, response).await
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        let what = format!("look at {name}");
        let response = self.transfer.send(&what, self.client.head(self.url(name))).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let response = self.accept(&what, response).await?;
        // The length of the body that a GET would have; the body of this answer is empty.
        let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        length.and_then(|text| text.parse().ok()).map(Some).ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!("the server does not say how long {name} is"),
            )
        })
    }

    async fn write(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        self.put(name, bytes, self.epoch).await
    }

    /// Asks for `<base>/?prefix=<prefix>`, which the Collective server answers with JSON. A static web server cannot list.
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let what = format!("list {prefix}");
        let request = self.client.get(format!("{}/?prefix={prefix}", self.base));
        let response = self.transfer.send(&what, request).await?;
        self.take_list(&what, response).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        let message = format!("{name} cannot be removed over HTTP");
        Err(Error::new(ErrorKind::Invalid, message).with_hint("prune where the repository is"))
    }

    async fn head(&self) -> Result<Option<Version>> {
        match self.read(&ObjectName::Latest, None).await {
            Ok(bytes) => decode_latest(&bytes).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn commit(&self, commit: Commit) -> Result<()> {
        self.put(&ObjectName::Manifest(commit.version), commit.manifest, commit.epoch).await
    }
}

#[cfg(test)]
mod tests {
    use collective_model::Error;

    use super::{ErrorAnswer, MAX_CAUSES};

    #[test]
    fn causes_without_end_are_cut_and_do_not_overflow_the_stack() {
        let causes = vec!["\"\""; 200_000].join(",");
        let text = format!(
            r#"{{"error":{{"kind":"denied","message":"no","causes":[{causes}],"hint":null}}}}"#
        );
        let answer: ErrorAnswer = serde_json::from_str(&text).unwrap();
        assert_eq!(Error::from(answer.error).chain().matches(": ").count(), MAX_CAUSES);
    }
}
