//! What programs say to each other: wire types, their conversions, and the clients of server and host.
//!
//! `host` is the daemon's API on its Unix socket with its client; `failure` is how errors cross any wire.

#![warn(missing_docs)]

pub mod failure;
pub mod host;

pub use host::HostClient;
