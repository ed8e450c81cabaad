//! How a failure is shown: `error:`, `cause:` and `hint:` lines on stderr, and the exit code of its kind.
//!
//! With `--json` the same facts are also the last object on stdout, so that a program that reads there sees the end.

use std::error::Error as _;
use std::io::Write as _;
use std::process::ExitCode;

use collective_model::{Error, ErrorKind};
use serde::Serialize;

use crate::output::Output;

/// Causes shown, at most: a chain that is longer says nothing more to a person.
const CAUSES: usize = 8;

/// The object that ends the output of a command that failed.
#[derive(Serialize)]
struct Failure {
    kind: ErrorKind,
    exit_code: u8,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
}

/// Shows an error and returns the exit code that stands for its kind.
pub fn show(error: &Error, output: &Output) -> ExitCode {
    output.object("error", &describe(error));
    // stderr may be closed; there is nobody left to tell.
    let _ = std::io::stderr().lock().write_all(lines(error).as_bytes());
    ExitCode::from(error.kind().exit_code())
}

/// Writes the lines that a person sees.
pub fn lines(error: &Error) -> String {
    let mut text = format!("error: {error}\n");
    for cause in causes(error) {
        text.push_str(&format!("cause: {cause}\n"));
    }
    if let Some(hint) = error.hint() {
        text.push_str(&format!("hint: {hint}\n"));
    }
    text
}

fn describe(error: &Error) -> Failure {
    Failure {
        kind: error.kind(),
        exit_code: error.kind().exit_code(),
        message: error.to_string(),
        causes: causes(error),
        hint: error.hint().map(str::to_owned),
    }
}

/// The causes from the nearest to the first, without those that only repeat what was said.
fn causes(error: &Error) -> Vec<String> {
    let mut said = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source.filter(|_| said.len() <= CAUSES) {
        let text = cause.to_string();
        if !said.iter().any(|earlier| earlier.contains(&text)) {
            said.push(text);
        }
        source = cause.source();
    }
    said.split_off(1)
}

#[cfg(test)]
mod tests {
    use collective_model::{Error, ErrorKind};

    use super::lines;

    #[test]
    fn an_error_its_causes_and_its_hint_have_a_line_each() {
        let error = Error::new(ErrorKind::NotFound, "version 9 does not exist")
            .with_hint("see `collective versions debian`")
            .context("cannot undo `debian`");
        insta::assert_snapshot!(lines(&error), @r"
        error: cannot undo `debian`
        cause: version 9 does not exist
        hint: see `collective versions debian`
        ");
    }

    #[test]
    fn a_cause_that_repeats_the_message_is_left_out() {
        let error = Error::new(ErrorKind::Denied, "log-in refused: wrong password")
            .with_source(Error::new(ErrorKind::Denied, "wrong password"));
        assert_eq!(lines(&error), "error: log-in refused: wrong password\n");
    }
}
