//! Runs the command in surroundings of its own: an empty home, no daemon, no terminal.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A home without anything in it.
pub struct Home {
    directory: TempDir,
}

/// How a command ended.
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Home {
    pub fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where a host daemon of this home would listen.
    pub fn socket(&self) -> String {
        self.path().join("host.sock").display().to_string()
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        let output = self.command(arguments).output().unwrap();
        Ended {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The command in this home, with nothing on its stdin.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("collective"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path())
            .env("COLLECTIVE_HOST", self.socket())
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }
}

impl Ended {
    /// Reads stdout as one JSON object a line.
    pub fn objects(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| {
                let value: Value = serde_json::from_str(line).unwrap();
                assert!(value["type"].is_string(), "an object without a type: {line}");
                value
            })
            .collect()
    }
}
