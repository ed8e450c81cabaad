//! `collective exit-codes`: what a script can tell from the exit code. A topic of the help that is a verb, so that both
//! `collective help exit-codes` and `collective exit-codes --json` give it.

use clap::Args;
use collective_model::{ErrorKind, Result};
use serde::Serialize;

use crate::context::Context;
use crate::table::{draw, figures, words};

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

const MEANINGS: [(Option<ErrorKind>, &str); 8] = [
    (None, "it is done"),
    (Some(ErrorKind::Internal), "a fault of Collective itself"),
    (Some(ErrorKind::Invalid), "the request or the input makes no sense: change it"),
    (Some(ErrorKind::Denied), "not allowed, or not logged in"),
    (Some(ErrorKind::NotFound), "there is no such thing"),
    (Some(ErrorKind::Conflict), "somebody or something stands in the way: decide, then try again"),
    (Some(ErrorKind::Unavailable), "cannot be reached, or has no room, now: try again later"),
    (Some(ErrorKind::Corrupt), "stored or received bytes are damaged, and were not used"),
];

pub fn run(Arguments {}: &Arguments, context: &Context) -> Result<()> {
    let mut rows = Vec::new();
    for (kind, meaning) in MEANINGS {
        let exit_code = kind.map_or(0, ErrorKind::exit_code);
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
    use collective_model::ErrorKind;

    use super::{Arguments, MEANINGS};

    #[test]
    fn the_help_has_a_line_for_every_code() {
        let help = Arguments::augment_args(clap::Command::new("x")).render_long_help().to_string();
        for (kind, meaning) in MEANINGS {
            let code = kind.map_or(0, ErrorKind::exit_code);
            assert!(help.contains(&format!("{code}    {meaning}")), "{code} {meaning}\n{help}");
        }
    }
}
