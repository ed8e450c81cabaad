//! Everything that `make test` runs once the packages are there: the cheapest check first.
//!
//! Each step is one command that a developer can also run alone. The tests run as cargo's runner runs them, so the
//! last lines are its own.

use std::process::Command;

use anyhow::{Result, bail};

/// The steps in order; each is the arguments of one `cargo` call.
const STEPS: [&[&str]; 4] = [
    &["fmt", "--all", "--check"],
    &["xtask", "tidy"],
    &["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"],
    &["test", "--workspace"],
];

/// Runs all steps and stops at the first that fails.
pub fn run() -> Result<()> {
    for step in STEPS {
        let shown = format!("cargo {}", step.join(" "));
        crate::report(&format!("==> {shown}"));
        if !Command::new(env!("CARGO")).args(step).status()?.success() {
            bail!("`{shown}` failed");
        }
    }
    Ok(())
}
