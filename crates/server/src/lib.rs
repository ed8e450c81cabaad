//! The provider's side: accounts, entitlements, locks and repositories over HTTPS (DESIGN 4.8 to 4.10).
mod authority;
mod database;
mod files;
mod guesses;
mod lock;
