//! A version as a disk that can be read now (DESIGN 4.1, 4.5, 4.6).
//!
//! A guest's read goes down this list until it is answered: [`Export`] speaks NBD to QEMU, [`VersionDisk`] knows where
//! blocks lie, [`Cache`] holds frames on the local disk, [`Fetcher`] brings what is missing, for ever if need be.
//! Everything is read-only: what a guest writes goes to layers that are QEMU's. [`Recorder`] writes down what a
//! start touches, and [`VersionDisk::replay`] brings that before the guest asks; [`ReadMap`] knows what a guest read.
//!
//! This crate knows nothing of machines, users or servers.

#![warn(missing_docs)]

mod cache;
mod export;
mod fetcher;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod heard;
mod nowait;
mod raw_file;
mod read_map;
mod recorder;
mod source;
#[cfg(test)]
mod storm;
mod version_disk;

pub use cache::{
    CACHE_CAPACITY_MINIMUM_BYTES, Cache, CacheOptions, CacheRead, CacheReport, CacheStats,
};
pub use export::Export;
pub use fetcher::{Dropped, FetchSettings, FetchStats, Fetcher, Late, Reason, SourceStats};
pub use heard::{Heard, Listener};
pub use raw_file::RawFile;
pub use read_map::{BlockSet, ReadMap};
pub use recorder::Recorder;
pub use source::{Source, StatusExtent};
pub use version_disk::{DiskStats, VersionDisk};
