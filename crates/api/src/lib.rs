//! What programs say to each other: wire types, their conversions, and the clients of server and host.
//!
//! `host` is the daemon's API on its Unix socket and `server` the provider's over HTTPS, each with its client; `failure` is how errors
//! cross any wire. `trust`, `identity` and `keybag` are what stands before the first request: which server is the
//! right one, who we are to it, and what a password opens. Nothing here knows what either side does with a request.

#![warn(missing_docs)]

pub mod failure;
pub mod host;
mod http;
pub mod identity;
pub mod keybag;
pub mod secret;
pub mod server;
pub mod trust;

pub use host::HostClient;
pub use server::ServerClient;
