//! `collective exit-codes`: what a script can tell from the exit code. A topic of the help that is a verb, so that both
//! `collective help exit-codes` and `collective exit-codes --json` give it.

use clap::Args;
use collective_model::{ErrorKind, Result};
use serde::Serialize;

use crate::context::Context;
use crate::table::{draw, figures, words};
use crate::wait::INTERRUPTED;

/// What a script can tell from the exit code
///
/// The code of a command that failed says what kind of failure it was, and so what can be done:
///
///   0    it is done
///   1    a fault of Collective itself
///   2    the request or the input makes no sense: change it
///   3    not allowed, or not logged in
///   4    there is no such thing
///   5    somebody or something stands in the way: decide, then try again
///   6    cannot be reached, or has no room, now: try again later
///   7    stored or received bytes are damaged, and were not used
///   127  `exec`: there is no such program in the appliance
///   130  interrupted with Ctrl-C; what a daemon had begun goes on
///
/// `collective exec` that ran its command ends with the exit code of that command.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment, after_help = "Example:\n  collective exit-codes --json")]
pub struct Arguments {}

#[derive(Serialize)]
struct ExitCode {
    exit_code: u8,
    kind: Option<ErrorKind>,
    meaning: &'static str,
}

/// Where a code comes from: done, a kind of error, or what shells expect.
#[derive(Clone, Copy)]
enum Code {
    Done,
    Error(ErrorKind),
    Shell(u8),
}

impl Code {
    fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Error(kind) => kind.exit_code(),
            Self::Shell(code) => code,
        }
    }

    fn kind(self) -> Option<ErrorKind> {
        match self {
            Self::Error(kind) => Some(kind),
            Self::Done | Self::Shell(_) => None,
        }
    }
}

const MEANINGS: [(Code, &str); 10] = [
    (Code::Done, "it is done"),
    (Code::Error(ErrorKind::Internal), "a fault of Collective itself"),
    (Code::Error(ErrorKind::Invalid), "the request or the input makes no sense: change it"),
    (Code::Error(ErrorKind::Denied), "not allowed, or not logged in"),
    (Code::Error(ErrorKind::NotFound), "there is no such thing"),
    (
        Code::Error(ErrorKind::Conflict),
        "somebody or something stands in the way: decide, then try again",
    ),
    (
        Code::Error(ErrorKind::Unavailable),
        "cannot be reached, or has no room, now: try again later",
    ),
    (Code::Error(ErrorKind::Corrupt), "stored or received bytes are damaged, and were not used"),
    (Code::Shell(NO_PROGRAM), "`exec`: there is no such program in the appliance"),
    (Code::Shell(INTERRUPTED), "interrupted with Ctrl-C; what a daemon had begun goes on"),
];

/// What a shell says of a program that is not there; the host answers `exec` with it.
const NO_PROGRAM: u8 = 127;

pub fn run(Arguments {}: &Arguments, context: &Context) -> Result<()> {
    let mut rows = Vec::new();
    for (code, meaning) in MEANINGS {
        let (exit_code, kind) = (code.number(), code.kind());
        context.output.object("exit_code", &ExitCode { exit_code, kind, meaning });
        rows.push(vec![exit_code.to_string(), meaning.to_owned()]);
    }
    if !context.output.is_json() {
        context.output.text(&draw(&[figures("CODE"), words("MEANING")], rows, ""));
    }
    context.output.checked()
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::{Arguments, MEANINGS};

    #[test]
    fn the_help_has_a_line_for_every_code() {
        let help = Arguments::augment_args(clap::Command::new("x")).render_long_help().to_string();
        for (code, meaning) in MEANINGS {
            let line = format!("  {:<5}{meaning}", code.number());
            assert!(help.contains(&line), "{line}\n{help}");
        }
    }
}
