//! The command as a user runs it: what its help says, how it fails, and what a program reads of it.
//!
//! No test here needs a guest or root; the whole system is tested by `cargo xtask`.

#![expect(clippy::unwrap_used, reason = "what fails here fails its test")]

#[path = "cli/daemons.rs"]
mod daemons;
#[path = "cli/help.rs"]
mod help;
#[path = "cli/logins.rs"]
mod logins;
#[path = "cli/mistakes.rs"]
mod mistakes;
#[path = "../../repository/tests/repository/registry.rs"]
#[expect(dead_code, reason = "the tests of repositories use the rest")]
mod registry;
#[path = "cli/runner.rs"]
mod runner;
#[path = "../../repository/tests/repository/s3_server.rs"]
#[expect(dead_code, reason = "the tests of repositories use the rest")]
mod s3_server;
#[path = "cli/stores.rs"]
mod stores;
