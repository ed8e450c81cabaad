//! The `collective` command.
//!
//! It only talks: every verb reads its arguments, asks a library, the host daemon or the server, and shows what came
//! back. One file per verb stands in `verbs/`; `arguments` is the tree that holds them, `output` is the only way to
//! stdout, `failure` the only way an error reaches a person, `prompt` the only place that asks, and this file
//! the only one that reads the environment, through `arguments` and `directories`.

mod arguments;
mod context;
mod daemon;
mod directories;
mod failure;
mod output;
mod progress;
mod prompt;
mod table;
mod text;
mod verbs;
mod wait;

use std::process::ExitCode;

use arguments::Parsed;
use collective_model::{Error, ErrorKind};
use failure::show;
use output::Output;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let output = Output::new(arguments::wants_json(&words));
    let command = match arguments::parse(&words) {
        Ok(Parsed::Command(command)) => command,
        Ok(Parsed::Text(text)) => {
            output.text(&text);
            return ExitCode::SUCCESS;
        }
        Ok(Parsed::VerbMissing(help)) => {
            let missing = Error::new(ErrorKind::Invalid, "a verb is missing");
            output.note(&help);
            return show(&missing, &output);
        }
        Err(error) => return show(&error, &output),
    };
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing has installed another provider before");
    let context = context::Context::new(&command, output.clone());
    let result =
        verbs::run(command.verb, &context).and_then(|code| output.checked().map(|()| code));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => show(&error, &output),
    }
}
