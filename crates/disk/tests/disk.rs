//! The crate as its users see it: each module checks one part against the world outside.

#![expect(clippy::unwrap_used, reason = "what fails here fails its test")]

#[path = "disk/export.rs"]
mod export;
#[path = "disk/hostile.rs"]
mod hostile;
#[path = "disk/mirrors.rs"]
mod mirrors;
#[path = "disk/root.rs"]
mod root;
#[path = "disk/support.rs"]
mod support;
#[path = "disk/version.rs"]
mod version;
#[path = "disk/weather.rs"]
mod weather;
#[path = "disk/web.rs"]
mod web;
