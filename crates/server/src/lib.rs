//! The provider's side: accounts, entitlements, locks and repositories over HTTPS (DESIGN 4.8 to 4.10).
//!
//! A server is a directory: its certificate authority, the SQLite database (unless there is a PostgreSQL), the objects of
//! repositories (unless there is an S3 store), and the administrators' socket. It keeps nothing in memory that matters, so it may be killed at any instant. Who asks
//! is in `caller`, what may be asked in `routes`, what it does unasked in `upkeep`, what hosts tell of appliances in `popularity`; the rules of locks and of guesses are pure.

mod answer;
mod authority;
mod caller;
mod database;
mod files;
mod guesses;
mod listener;
mod lock;
mod objects;
mod popularity;
mod range;
mod routes;
mod server;
mod state;
mod untaken;
mod upkeep;

pub use server::{Server, ServerOptions};
pub use upkeep::UpkeepSettings;
