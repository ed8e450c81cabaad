//! What fuzzing may call of this room: the export as a client meets it, and the files of the cache. Not part of the API.
//!
//! Each function takes any bytes and panics where a promise is broken.

pub use crate::cache::fuzzing::cache;
pub use crate::export::fuzzing::nbd;
