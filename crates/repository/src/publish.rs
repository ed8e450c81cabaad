//! The one door in.
use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use collective_model::{
    BlockRange, Digest, DiskRole, Epoch, Hardware, Monitor, Result, Timestamp, Version,
};

use crate::{Repository, SigningKey, Trace};

/// A version to publish.
#[derive(Clone)]
pub struct Publication {
    /// The version that it comes after: must be the head; none for the first.
    pub parent: Option<Version>,
    /// The fencing number of the publisher's lock; 0 where there is none.
    pub epoch: Epoch,
    /// The time.
    pub time: Timestamp,
    /// The machine that it is made for.
    pub hardware: Option<Hardware>,
    /// What the publisher says about it.
    pub notes: String,
    /// Drawn by the publisher, to recognise its own version after a crash.
    pub id: String,
    /// Its disks.
    pub disks: Vec<DiskSource>,
    /// Who else wants the frames that are stored.
    pub sink: Option<Arc<dyn FrameSink>>,
}

/// Where the content of a disk comes from.
#[derive(Clone, Debug)]
pub struct DiskSource {
    /// What the disk is for.
    pub role: DiskRole,
    /// Its size.
    pub size_bytes: u64,
    /// The version whose disk of the same role shows where no piece covers; none: zeros.
    pub base: Option<Version>,
    /// What is new; where pieces overlap, the last one counts.
    pub pieces: Vec<Piece>,
    /// The order of a recorded start; none: that of `base`.
    pub trace: Option<Trace>,
}

/// A part of a disk that is new.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where on the disk it is.
    pub range: BlockRange,
    /// What it holds.
    pub what: PieceData,
}

/// What a piece holds.
#[derive(Clone, Debug)]
pub enum PieceData {
    /// Zeros.
    Zero,
    /// Bytes of a file; its holes are zeros.
    File {
        /// The file; must not change while it is published.
        file: Arc<File>,
        /// Where in the file the piece begins.
        offset: u64,
    },
}

/// Takes frames as they are stored, so that a cache need not fetch what its own host published.
pub trait FrameSink: Send + Sync {
    /// Takes a frame and its plain bytes. Called from the task that publishes: returns soon.
    fn frame(&self, hash: Digest, plain: &Bytes);
}

/// A version that was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its number.
    pub version: Version,
    /// What it took.
    pub stats: PublishStats,
}

/// What a publication took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublishStats {
    /// Bytes read from the pieces (holes are not read).
    pub read_bytes: u64,
    /// Bytes in blocks that differ from the base, zeros included where they were cleared.
    pub changed_bytes: u64,
    /// Bytes written to the repository.
    pub stored_bytes: u64,
    /// Bytes in blocks that were read and found stored already.
    pub reused_bytes: u64,
    /// New frames.
    pub frames: u64,
    /// New packs.
    pub packs: u64,
}

impl Repository {
    /// Publishes a version.
    ///
    /// # Errors
    /// `Conflict` if the parent is not the head or the lock is over; `Denied` if the key is not the publisher's.
    pub async fn publish(
        &self,
        publication: Publication,
        signer: &SigningKey,
        watch: &dyn Monitor,
    ) -> Result<Published> {
        let _ = (publication, signer, watch);
        Err(crate::repository::coming())
    }
}
