//! The nouns of Collective as plain types (DESIGN section 2, `docs/glossary.md`).
//!
//! Everything here is pure: no file, socket, clock or random source. Other crates add behaviour; this one fixes
//! what a name may look like, how large a block is and which few kinds of error there are, so that they
//! mean the same everywhere. Wire types live in `api`, formats at rest with the crate that owns the file.

pub mod block;
pub mod digest;
pub mod error;
pub mod hardware;
pub mod id;
pub mod monitor;
pub mod quantity;
pub mod region;
pub mod time;
pub mod version;

pub use block::{BLOCK_BYTES, BlockRange};
pub use digest::Digest;
pub use error::{Error, ErrorKind, IoResultExt, Result, ResultExt};
pub use hardware::{DiskRole, Hardware};
pub use id::{
    ApplianceName, DeviceId, GroupName, HostId, HostName, OperationId, RepositoryId,
    SubscriptionId, UserName,
};
pub use monitor::{Monitor, Progress, Silent};
pub use quantity::ByteCount;
pub use region::Regions;
pub use time::Timestamp;
pub use version::{Epoch, Version};
