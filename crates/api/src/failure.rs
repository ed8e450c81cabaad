//! How an error crosses the wire: `{"error": {"kind", "message", "causes", "hint"}}`, the same from server and host.
//!
//! The status of the response stands for the kind, but the body is believed first: a proxy in between may have
//! its own opinion of statuses. Causes become plain texts on the way, and stay apart from the message.

use std::error::Error as StdError;

use collective_model::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

/// Signs of a foreign body that are quoted in an error, at most: more would be a web page on a terminal.
const QUOTED_SIGNS: usize = 200;

/// The body of every response that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: Failure,
}

/// Causes that are kept at most of what another side says: each lies within the one before, and thousands would overflow
/// the stack of who drops them.
const MAX_CAUSES: usize = 32;

/// An error as it is sent and kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What the caller can do about it.
    pub kind: ErrorKind,
    /// What happened, naming the thing.
    pub message: String,
    /// What led to it, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        let hint = error.hint().map(str::to_owned);
        Self { kind: error.kind(), message: error.to_string(), causes, hint }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let causes = failure.causes.into_iter().take(MAX_CAUSES);
        let cause = causes.rev().fold(None, |inner: Option<Self>, text| {
            let outer = Self::new(failure.kind, text);
            Some(match inner {
                Some(inner) => outer.with_source(inner),
                None => outer,
            })
        });
        let mut error = Self::new(failure.kind, failure.message);
        if let Some(cause) = cause {
            error = error.with_source(cause);
        }
        match failure.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

/// Reads the error out of a response that is not a success, whoever made it.
#[must_use]
pub fn of_response(status: u16, body: &[u8]) -> Error {
    if let Ok(body) = serde_json::from_slice::<ErrorBody>(body) {
        return Error::from(body.error).as_answer();
    }
    let text = String::from_utf8_lossy(body);
    let quoted: String = text.chars().take(QUOTED_SIGNS).collect();
    let error = Error::new(
        ErrorKind::of_http_status(status),
        format!("answered with status {status}: {}", quoted.trim()),
    );
    // A proxy says so of a server that it cannot reach.
    let is_away = status >= 500 || status == 408;
    if is_away { error } else { error.as_answer() }
}

#[cfg(test)]
mod tests {
    use collective_model::{Error, ErrorKind};

    use super::{ErrorBody, Failure, of_response};

    #[test]
    fn an_error_keeps_kind_causes_and_hint_across_the_wire() {
        let inner = Error::new(ErrorKind::Conflict, "held by `attic`").with_hint("break it");
        let sent = inner.context("cannot lock").context("cannot start `debian`");
        let body = serde_json::to_vec(&ErrorBody { error: Failure::from(&sent) }).unwrap();
        let back = of_response(409, &body);
        assert_eq!((back.kind(), back.hint()), (ErrorKind::Conflict, Some("break it")));
        assert_eq!(back.chain(), sent.chain());
    }

    #[test]
    fn causes_without_end_are_cut_and_do_not_overflow_the_stack() {
        let causes = vec!["and so on".to_owned(); 200_000];
        let failure =
            Failure { kind: ErrorKind::Conflict, message: "no".to_owned(), causes, hint: None };
        let body = serde_json::to_vec(&ErrorBody { error: failure }).unwrap();
        let chain = of_response(409, &body).chain();
        assert_eq!(chain.matches("and so on").count(), super::MAX_CAUSES);
    }

    #[test]
    fn a_foreign_body_is_quoted_and_judged_by_its_status() {
        let error = of_response(504, b"<html>gateway</html>");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("gateway"), "{error}");
    }

    #[test]
    fn a_server_that_refuses_is_told_from_a_proxy_that_cannot_reach_it() {
        let busy = Error::new(ErrorKind::Unavailable, "too many wrong passwords");
        let body = serde_json::to_vec(&ErrorBody { error: Failure::from(&busy) }).unwrap();
        assert!(of_response(503, &body).is_answer());
        assert!(of_response(503, &body).context("cannot log in").is_answer());
        assert!(of_response(429, b"slow down").is_answer());
        for status in [408, 500, 502, 503, 504] {
            assert!(!of_response(status, b"<html>").is_answer(), "{status}");
        }
    }
}
