//! One upload of a user disk: a publication put together from layers, from the appliance's template or from an old version.
//!
//! It holds a copy of the record and changes nothing on this host; whether it was committed is found out by its id,
//! whatever becomes of this task.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use collective_model::{
    BLOCK_BYTES, BlockRange, DiskRole, Error, ErrorKind, IoResultExt, Monitor, Result, Silent,
    Version,
};
use collective_repository::{
    DiskReader, DiskSource, Extent, ExtentData, FrameSink, Piece, PieceData, Publication,
    Repository, VersionReader, retention,
};
use collective_vm::layer::{self, LayerData};

use crate::core::Core;
use crate::now;
use crate::operation::Handle;
use crate::paths::InstancePaths;
use crate::record;
use crate::session::Session;
use crate::subscription::{Subscription, What};

/// Blocks of a template that are copied at once: 16 MiB.
const COPIED_BLOCKS: u64 = 4096;

/// An upload, with everything it needs.
pub(super) struct Upload {
    pub(super) core: Arc<Core>,
    pub(super) session: Arc<Session>,
    pub(super) disk: Subscription,
    pub(super) template: Option<VersionReader>,
    pub(super) paths: InstancePaths,
    pub(super) watch: Option<Handle>,
}

impl Upload {
    /// Publishes and returns the version.
    pub(super) async fn run(self, what: What) -> Result<Version> {
        let disk = &self.disk;
        let publishing = disk.publishing.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Internal, "an upload has no publication recorded")
        })?;
        let repository = self.core.repository(&self.session, &disk.repository, disk.epoch).await?;
        let replica = self.core.paths.replica(disk.repository.id);
        repository.note_unfinished_in(replica.join("unfinished"));
        let source = match what {
            What::Template => self.template().await?,
            What::Layers(count) => self.layers(&repository, count).await?,
            What::Undo(version) => old(&repository, version).await?,
        };
        let publication = Publication {
            epoch: disk.epoch,
            notes: match what {
                What::Template => retention::notes_of_beginning().to_owned(),
                What::Layers(_) => String::new(),
                What::Undo(version) => retention::notes_of_undo(version),
            },
            id: publishing.id.clone(),
            sink: Some(Arc::new(self.core.cache.clone()) as Arc<dyn FrameSink>),
            ..Publication::new(disk.base, now(), vec![source])
        };
        let signer = self.session.repository_secret(disk.repository.id).signing_key();
        let monitor: &dyn Monitor = match &self.watch {
            Some(handle) => handle,
            None => &Silent,
        };
        let published = repository.publish(publication, &signer, monitor).await?;
        Ok(published.version)
    }

    async fn layers(&self, repository: &Repository, count: usize) -> Result<DiskSource> {
        let base = self.disk.base.ok_or_else(|| {
            Error::new(ErrorKind::Internal, "layers of a user disk lie on no version")
        })?;
        let mut source = old(repository, base).await?;
        for number in self.disk.layers.iter().take(count) {
            source.pieces.extend(pieces(&self.paths.user_layer(*number)).await?);
        }
        Ok(source)
    }

    /// Copies the template's data into a file beside the layers, and publishes that.
    async fn template(&self) -> Result<DiskSource> {
        let version = self.template.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "the user disk is made at the next start")
        })?;
        let reader = version.disk(DiskRole::User).await?;
        record::make_directory(&self.paths.layers())?;
        let file = tempfile::tempfile_in(self.paths.layers())
            .or_io(|| "cannot make room for the user disk's template".to_owned())?;
        let file = Arc::new(file);
        let ranges = copy(&reader, &file).await?;
        let piece = |range: BlockRange| Piece {
            range,
            what: PieceData::File { file: Arc::clone(&file), offset: range.offset_bytes() },
        };
        Ok(DiskSource::new(
            DiskRole::User,
            reader.size_bytes(),
            ranges.into_iter().map(piece).collect(),
        ))
    }
}

/// A user disk as it was in a version, with nothing new yet.
async fn old(repository: &Repository, version: Version) -> Result<DiskSource> {
    let reader = repository.version(version).await?;
    let size_bytes = reader.manifest().disk(DiskRole::User)?.size_bytes;
    Ok(DiskSource {
        base: Some(version),
        ..DiskSource::new(DiskRole::User, size_bytes, Vec::new())
    })
}

/// What a closed layer holds, read from its file.
async fn pieces(path: &Path) -> Result<Vec<Piece>> {
    let file = Arc::new(File::open(path).or_io(|| format!("cannot open {}", path.display()))?);
    let extents = layer::map(path).await?;
    let piece = |extent: layer::LayerExtent| Piece {
        range: extent.range,
        what: match extent.what {
            LayerData::Zero => PieceData::Zero,
            LayerData::Data { file_offset } => {
                PieceData::File { file: Arc::clone(&file), offset: file_offset }
            }
        },
    };
    Ok(extents.into_iter().map(piece).collect())
}

/// Writes what a version's disk holds into a file of the same shape; returns the ranges that hold something.
async fn copy(reader: &DiskReader, file: &File) -> Result<Vec<BlockRange>> {
    let blocks = reader.size_bytes().div_ceil(BLOCK_BYTES);
    let mut ranges = Vec::new();
    let mut start = 0;
    while start < blocks {
        let part = BlockRange::new(start, COPIED_BLOCKS.min(blocks - start));
        for extent in reader.map(part).await? {
            if copy_extent(reader, file, &extent).await? {
                ranges.push(extent.range);
            }
        }
        start = part.end();
    }
    Ok(ranges)
}

async fn copy_extent(reader: &DiskReader, file: &File, extent: &Extent) -> Result<bool> {
    let ExtentData::Frame { frame, first } = &extent.what else { return Ok(false) };
    let plain = reader.fetch_one(frame).await?;
    let from = usize::try_from(u64::from(*first) * BLOCK_BYTES).unwrap_or(usize::MAX);
    let length = usize::try_from(extent.range.length_bytes()).unwrap_or(usize::MAX);
    let bytes = plain.get(from..from.saturating_add(length)).ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, "a frame of the user disk's template is too short")
    })?;
    file.write_all_at(bytes, extent.range.offset_bytes())
        .or_io(|| "cannot write the user disk's template".to_owned())?;
    Ok(true)
}
