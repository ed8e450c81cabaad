//! The server from outside, through the client that hosts and commands use: every test runs on SQLite and on a private
//! PostgreSQL cluster.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by failing")]

#[path = "server/cluster.rs"]
mod cluster;
#[path = "../../repository/tests/repository/s3_server.rs"]
mod s3_server;
#[path = "server/world.rs"]
mod world;

#[path = "server/session.rs"]
mod session;

#[path = "server/lock.rs"]
mod lock;

#[path = "server/repository.rs"]
mod repository;

#[path = "server/secrets.rs"]
mod secrets;

#[path = "server/root.rs"]
mod root;

#[path = "server/upkeep.rs"]
mod upkeep;

#[path = "server/popularity.rs"]
mod popularity;
