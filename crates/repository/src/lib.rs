//! Versions of disks at rest: published, fetched, verified and pruned (DESIGN 4.2 to 4.4).
//!
//! A [`Repository`] is a set of named objects behind a [`Backend`](backend::Backend): a signed manifest for each version, an index
//! that maps the blocks of its disks into frames, and packs that hold the frames. Bytes on the way out pass one
//! door: the manifest is signed, it names the hash of the index, the index names the hash of every frame; what does
//! not fit is [`Corrupt`](collective_model::ErrorKind::Corrupt) and never served. Bytes on the way in pass one too: [`Repository::publish`].
//! `docs/formats/repository.md` has every structure to the byte.
//!
//! This crate knows nothing of QEMU, of caches or of who may do what; the clock comes in as an argument.
#![warn(missing_docs)]

pub mod backend;
mod codec;
mod copy;
pub mod descriptor;
mod filter;
mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod index;
pub mod keys;
pub mod manifest;
mod pack;
mod prune;
mod publish;
mod reader;
mod repository;
pub mod retention;
mod sealer;
mod trace;
pub mod trim;
mod verify;

#[cfg(test)]
mod at_size;

pub use copy::CopyStats;
pub use descriptor::{Descriptor, Kind, Trust};
pub use frame::{Codec, FrameRef, MAX_FRAME_BLOCKS};
pub use index::WHOLE_INDEX_BYTES;
pub use keys::{PublisherKey, RepositorySecret, SigningKey};
pub use manifest::{DiskManifest, Manifest};
pub use prune::{PruneOptions, PruneReport};
pub use publish::{DiskSource, FrameSink, Piece, PieceData, Publication, PublishStats, Published};
pub use reader::{DiskReader, Extent, ExtentData, FramesArriving, VersionReader};
pub use repository::Repository;
pub use retention::Retention;
pub use trace::Trace;
pub use verify::{Damage, MAX_DAMAGES, Verification, VerifyReport, VerifyState};
