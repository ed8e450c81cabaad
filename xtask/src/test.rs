//! Everything that `make test` runs once the packages are there: the cheapest check first.
//!
//! Each step is one command that a developer can also run alone. The tests run as cargo's runner runs them, so the
//! last lines are its own.

use std::process::Command;

use anyhow::{Result, bail};

use crate::root;

/// The steps in order; each is the arguments of one `cargo` call.
const STEPS: [&[&str]; 4] = [
    &["fmt", "--all", "--check"],
    &["xtask", "tidy"],
    &["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"],
    &["test", "--workspace"],
];

/// Runs all steps and stops at the first that fails.
pub fn run() -> Result<()> {
    // Cargo starts what it has built by way of this.
    let runner = format!("target.\"cfg(unix)\".runner={:?}", root::SUDO);
    let through_sudo = if root::is_root()? { vec![] } else { vec!["--config", &runner] };
    // Tests of the whole wait for guests, servers and limits of time more than they compute.
    let threads = 2 * std::thread::available_parallelism()?.get();
    for step in STEPS {
        let shown = format!("cargo {}", step.join(" "));
        crate::report(&format!("==> {shown}"));
        let more = if step[0] == "test" { &through_sudo[..] } else { &[] };
        let mut command = Command::new(env!("CARGO"));
        if std::env::var_os("RUST_TEST_THREADS").is_none() {
            command.env("RUST_TEST_THREADS", threads.to_string());
        }
        if !command.args(more).args(step).status()?.success() {
            bail!("`{shown}` failed");
        }
    }
    Ok(())
}
