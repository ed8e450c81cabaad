//! How an error leaves the server: as `api::failure` writes it, with the status of its kind.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use collective_api::failure::{ErrorBody, Failure};
use collective_model::{Error, ErrorKind};

/// What a handler returns.
pub type Answer<T> = Result<T, Refusal>;

/// An error on its way out.
#[derive(Debug)]
pub struct Refusal(Error);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let error = self.0;
        let status = StatusCode::from_u16(error.kind().http_status())
            .expect("the table of kinds has valid statuses");
        let mut failure = Failure::from(&error);
        if error.kind() == ErrorKind::Internal {
            tracing::error!("{}", error.chain());
            // The causes name our files and statements: they are for the log.
            failure.causes.clear();
        }
        (status, Json(ErrorBody { error: failure })).into_response()
    }
}
