//! A version as a disk that can be read now: the cache, fetching, traces and the NBD export.

#![warn(missing_docs)]

mod cache;
mod export;
mod nowait;
mod raw_file;
mod source;

pub use cache::{CACHE_CAPACITY_MINIMUM_BYTES, Cache, CacheOptions, CacheRead, CacheStats};
pub use export::Export;
pub use raw_file::RawFile;
pub use source::{Source, StatusExtent};
