//! The project's own checks and long runs: `cargo xtask <task>`.
//!
//! `tidy` holds the rules of STYLE.md that a compiler does not; `test` is all that `make test` runs after the packages
//! are installed; `demo` does the main job with the built command, as a person would type it. Each task is a module.

mod demo;
mod root;
mod test;
mod tidy;

use std::process::ExitCode;

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    let result = match task.as_str() {
        "tidy" => tidy::run(),
        "test" => test::run(),
        "demo" => demo::run(),
        _ => {
            report("usage: cargo xtask tidy | test | demo");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a main talks to the person who ran it")]
fn report(line: &str) {
    eprintln!("{line}");
}
