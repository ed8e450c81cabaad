//! What needs root, done through sudo where somebody else runs the task: images are made of files of all owners, and tests
//! fill disks and start database servers of other users. What is compiled stays the caller's own.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use anyhow::{Context, Result};

/// How a program is run as root with the caller's environment.
pub const SUDO: [&str; 2] = ["sudo", "--preserve-env"];

/// The user whose process this is.
pub fn user() -> Result<u32> {
    Ok(std::fs::metadata("/proc/self").context("cannot tell whose process this is")?.uid())
}

/// Whether that is root.
pub fn is_root() -> Result<bool> {
    Ok(user()? == 0)
}

/// This program again, as root.
pub fn again() -> Result<Command> {
    let [sudo, environment] = SUDO;
    let mut command = Command::new(sudo);
    command.arg(environment).arg(std::env::current_exe().context("cannot find this program")?);
    Ok(command)
}
