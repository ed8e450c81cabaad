//! The repository from outside: what is published is what is read, whatever happens in between.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

#[path = "repository/world.rs"]
mod world;

#[path = "repository/registry.rs"]
mod registry;
#[path = "repository/s3_server.rs"]
mod s3_server;

#[path = "repository/backends.rs"]
mod backends;
#[path = "repository/damage.rs"]
mod damage;
#[path = "repository/frozen.rs"]
mod frozen;
#[path = "repository/http.rs"]
mod http;
#[path = "repository/mirror.rs"]
mod mirror;
#[path = "repository/oci.rs"]
mod oci;
#[path = "repository/power.rs"]
mod power;
#[path = "repository/prune.rs"]
mod prune;
#[path = "repository/publish.rs"]
mod publish;
#[path = "repository/reference.rs"]
mod reference;
#[path = "repository/repack.rs"]
mod repack;
#[path = "repository/s3.rs"]
mod s3;
#[path = "repository/stall.rs"]
mod stall;
#[path = "repository/storm.rs"]
mod storm;
#[path = "repository/trim.rs"]
mod trim;
#[path = "repository/unfinished.rs"]
mod unfinished;
