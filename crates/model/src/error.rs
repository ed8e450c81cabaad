//! One error for the whole house: what the caller can do, what happened, what to try, and the cause.
//!
//! Callers decide by [`ErrorKind`] only; it maps to an HTTP status and to the exit code of the command, here and
//! nowhere else. The message names the thing; the cause is kept apart and is printed once, by whoever talks
//! to the user; so is the hint. See `docs/decisions/0002-one-error.md`.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request or the input makes no sense: change it.
    Invalid,
    /// Not allowed, or not known who asks: log in, or ask an administrator.
    Denied,
    /// There is no such thing.
    NotFound,
    /// Somebody or something else stands in the way: decide, then try again.
    Conflict,
    /// Cannot be reached, or has no room, now: try again later.
    Unavailable,
    /// Stored or received bytes are damaged, and were not used.
    Corrupt,
    /// A fault of Collective itself.
    Internal,
}

/// Every kind with the HTTP status and the exit code that stand for it.
const KINDS: [(ErrorKind, u16, u8); 7] = [
    (ErrorKind::Invalid, 400, 2),
    (ErrorKind::Denied, 403, 3),
    (ErrorKind::NotFound, 404, 4),
    (ErrorKind::Conflict, 409, 5),
    (ErrorKind::Unavailable, 503, 6),
    (ErrorKind::Corrupt, 502, 7),
    (ErrorKind::Internal, 500, 1),
];

impl ErrorKind {
    /// Returns the HTTP status that carries this kind.
    #[must_use]
    pub fn http_status(self) -> u16 {
        self.row().1
    }

    /// Returns the exit code of a command that failed this way.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        self.row().2
    }

    /// Returns the kind that an HTTP status of somebody else's making stands for.
    #[must_use]
    pub fn of_http_status(status: u16) -> Self {
        match status {
            401 => Self::Denied,
            410 => Self::NotFound,
            412 => Self::Conflict,
            408 | 429 | 502 | 504 | 507 => Self::Unavailable,
            _ => KINDS
                .iter()
                .find(|row| row.1 == status)
                .map_or(if status < 500 { Self::Invalid } else { Self::Unavailable }, |row| row.0),
        }
    }

    fn row(self) -> (Self, u16, u8) {
        KINDS.into_iter().find(|row| row.0 == self).expect("the table has a row for every kind")
    }
}

/// What went wrong, for the caller to act on and for people to read.
pub struct Error(Box<Parts>);

struct Parts {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    is_answer: bool,
}

impl Error {
    /// Makes an error; `message` names the thing and does not repeat a cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self(Box::new(Parts { kind, message, hint: None, source: None, is_answer: false }))
    }

    /// Adds one line that says what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Puts `message` in front: this error becomes the cause, its kind and hint stay.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Self {
        let (kind, hint, is_answer) = (self.kind(), self.0.hint.clone(), self.is_answer());
        let mut outer = Self::new(kind, message).with_source(self);
        outer.0.is_answer = is_answer;
        outer.0.hint = hint;
        outer
    }

    /// Marks it as what the other side answered: whatever the kind, that side is there.
    #[must_use]
    pub fn as_answer(mut self) -> Self {
        self.0.is_answer = true;
        self
    }

    /// Tells whether the other side answered so; else nobody did.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        self.0.is_answer
    }

    /// Returns what the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns what to do next, if there is something to say.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Returns the message and all its causes in one line, as logs want it.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.0.message.clone();
        let mut source = self.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind(), self.chain())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// Turns foreign errors into ours at the place that knows what was being done.
pub trait ResultExt<T> {
    /// Gives a foreign error a kind and a message; it becomes the cause.
    fn or_error(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E> ResultExt<T> for std::result::Result<T, E>
where
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    fn or_error(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::new(kind, message()).with_source(source))
    }
}

/// As [`ResultExt`], for I/O errors, which know their kind: a full disk, a missing file and a refused permission
/// are told apart.
pub trait IoResultExt<T> {
    /// Gives an I/O error a message; it becomes the cause.
    fn or_io(self, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoResultExt<T> for std::io::Result<T> {
    fn or_io(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::new(io_kind(source.kind()), message()).with_source(source))
    }
}

fn io_kind(kind: std::io::ErrorKind) -> ErrorKind {
    use std::io::ErrorKind as Io;
    match kind {
        Io::NotFound => ErrorKind::NotFound,
        Io::PermissionDenied => ErrorKind::Denied,
        Io::AlreadyExists | Io::AddrInUse => ErrorKind::Conflict,
        Io::InvalidInput | Io::NotADirectory | Io::IsADirectory | Io::AddrNotAvailable => {
            ErrorKind::Invalid
        }
        Io::InvalidData | Io::UnexpectedEof => ErrorKind::Corrupt,
        Io::StorageFull
        | Io::QuotaExceeded
        | Io::ConnectionRefused
        | Io::ConnectionReset
        | Io::ConnectionAborted
        | Io::NotConnected
        | Io::BrokenPipe
        | Io::TimedOut
        | Io::ReadOnlyFilesystem => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, ErrorKind, IoResultExt, KINDS};

    #[test]
    fn every_kind_has_its_own_exit_code_and_comes_back_from_its_status() {
        let mut codes: Vec<u8> = KINDS.iter().map(|row| row.2).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), KINDS.len());
        for (kind, status, code) in KINDS {
            assert_eq!((kind.http_status(), kind.exit_code()), (status, code));
        }
        assert_eq!(ErrorKind::of_http_status(404), ErrorKind::NotFound);
        assert_eq!(ErrorKind::of_http_status(429), ErrorKind::Unavailable);
    }

    #[test]
    fn a_full_disk_is_unavailable_and_keeps_its_cause() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Err::<(), _>(full).or_io(|| "cannot write pack 12".to_owned()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.chain().starts_with("cannot write pack 12: "), "{}", error.chain());
    }

    #[test]
    fn context_keeps_kind_and_hint() {
        let error = Error::new(ErrorKind::NotFound, "version 9 does not exist")
            .with_hint("see `collective versions`")
            .context("cannot undo `debian`");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.hint(), Some("see `collective versions`"));
        assert_eq!(error.chain(), "cannot undo `debian`: version 9 does not exist");
    }
}
