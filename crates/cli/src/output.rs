//! The only way to stdout: lines and tables for people, one JSON object a line for programs.
//!
//! A verb says everything once, as a value that serialises, with the text that a person reads beside it. Notes on
//! the way go to stderr and only to people. A reader that went away (`| head`) is no error; a full disk is, and is
//! told at the end.

use std::io::{ErrorKind as Io, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use collective_model::{IoResultExt as _, Result};
use serde::Serialize;

use crate::progress::Meter;

/// Where a command's answers go.
#[derive(Clone, Debug)]
pub struct Output {
    json: bool,
    failure: Arc<Mutex<Option<std::io::Error>>>,
}

/// One line of `--json`: what kind of object it is, and the object.
#[derive(Serialize)]
struct Tagged<'a, T> {
    #[serde(rename = "type")]
    tag: &'a str,
    #[serde(flatten)]
    value: &'a T,
}

impl Output {
    /// Makes the output of a command; `json` as the user asked.
    pub fn new(json: bool) -> Self {
        Self { json, failure: Arc::default() }
    }

    /// Tells whether a program reads.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Says one thing: an object for programs, a text for people (nothing if it is empty).
    pub fn say<T: Serialize>(&self, tag: &str, value: &T, text: impl FnOnce() -> String) {
        if self.json {
            self.object(tag, value);
        } else {
            self.text(&text());
        }
    }

    /// Writes an object for programs; people do not see it.
    pub fn object<T: Serialize>(&self, tag: &str, value: &T) {
        if self.json {
            let line = serde_json::to_string(&Tagged { tag, value })
                .expect("our own wire types have text keys and no failing part");
            self.write(&(line + "\n"));
        }
    }

    /// Writes a text for people, as it is, and ends its line.
    pub fn text(&self, text: &str) {
        match text.strip_suffix('\n').unwrap_or(text) {
            "" => {}
            text => self.write(&format!("{text}\n")),
        }
    }

    /// Writes bytes as they are: what a command in an appliance printed.
    pub fn bytes(&self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        self.keep(out.write_all(bytes).and_then(|()| out.flush()));
    }

    /// Tells people something on the way, on stderr.
    pub fn note(&self, text: &str) {
        if !self.json {
            // stderr may be closed; a note is not worth failing for.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
    }

    /// Makes the meter of one long piece of work.
    pub fn meter(&self, label: &str) -> Meter {
        Meter::new(label, self, std::io::stderr().is_terminal())
    }

    /// Tells whether everything that was said could be written.
    pub fn checked(&self) -> Result<()> {
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => Ok(()),
            Some(error) => Err(error).or_io(|| "cannot write the answer to stdout".to_owned()),
        }
    }

    fn write(&self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Keeps the first failure for the end, so that a verb need not ask after each line.
    fn keep(&self, result: std::io::Result<()>) {
        if let Err(error) = result
            && error.kind() != Io::BrokenPipe
        {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }
}
