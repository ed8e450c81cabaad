//! The administrator's side: makes a version of an appliance out of raw images.
//!
//! ```text
//! images ──trim scan──▶ free blocks become zeros ─┐
//!    └──recorded start──▶ boot trace ─────────────┼──▶ repository.publish, over the head as parent
//! what hosts report of the version before ────────┘
//! ```
//!
//! The recorded start boots the images once, unattended, on throwaway layers; a [`Recorder`] behind the block export notes
//! what is touched and in which order, until the guest's agent answers. Nothing that this start writes is published. A version
//! that does not come up is not published either, unless that is asked for.

mod rehearsal;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use collective_api::server::Popularity;
use collective_model::{
    BLOCK_BYTES, BlockRange, Digest, DiskRole, Error, ErrorKind, Hardware, IoResultExt, Monitor,
    OperationId, Result,
};
use collective_repository::{
    DiskSource, Piece, PieceData, Publication, Published, Repository, SigningKey, trim,
};

pub use rehearsal::Rehearsal;

use crate::popularity;

/// How long a recorded start may take unless the caller says otherwise: a stock system under translation on a busy
/// computer takes two minutes.
pub const START_LIMIT: Duration = Duration::from_secs(600);

/// What is to be published.
#[derive(Clone, Debug)]
pub struct Images {
    /// The system disk, raw and bootable.
    pub system: PathBuf,
    /// The empty user disk, raw, if the appliance has one.
    pub user: Option<PathBuf>,
    /// The machine that it is made for.
    pub hardware: Hardware,
}

/// How it is published.
#[derive(Clone, Debug)]
pub struct PublishOptions {
    /// What the publisher says about the version.
    pub notes: String,
    /// Whether free blocks of the file systems are left out.
    pub trim: bool,
    /// Whether the images are started once to record what a start touches.
    pub rehearse: bool,
    /// How long that start may take.
    pub start_limit: Duration,
    /// Commands that it runs once the system is up, so that what they read is foretold too: applications that many open.
    pub applications: Vec<String>,
    /// Publish although that start failed; without a boot trace, the next starts are slower.
    pub even_if_it_fails: bool,
    /// What hosts report that is read most of the version before, if anybody counted.
    pub popularity: Option<Popularity>,
    /// Packs known to be damaged, of which nothing is used again.
    pub distrusted: Vec<Digest>,
    /// Where throwaway files go: some hundred MiB.
    pub work_dir: PathBuf,
}

impl PublishOptions {
    /// The usual way: trimmed, rehearsed, and refused if it does not start.
    #[must_use]
    pub fn new(work_dir: PathBuf) -> Self {
        Self {
            notes: String::new(),
            trim: true,
            rehearse: true,
            start_limit: START_LIMIT,
            applications: Vec::new(),
            even_if_it_fails: false,
            popularity: None,
            distrusted: Vec::new(),
            work_dir,
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// The version, and what it cost.
    pub published: Published,
    /// Free bytes that were left out.
    pub trimmed_bytes: u64,
    /// The recorded start, if there was one and it came up.
    pub rehearsal: Option<Rehearsal>,
    /// Why the recorded start failed, if it did and publishing went on.
    pub failed_start: Option<Error>,
}

/// Told what is done just now; figures of bytes go to the monitor.
pub trait Watch: Monitor {
    /// Takes a few words for people.
    fn stage(&self, stage: &str);
}

/// Publishes images as the next version of an appliance.
///
/// # Errors
/// `Invalid` for images that cannot be, or that do not start; `Conflict` if another publishes at the same time; what the
/// repository says otherwise. Nothing is published then.
pub async fn publish(
    repository: &Repository,
    signer: &SigningKey,
    images: &Images,
    options: &PublishOptions,
    watch: &dyn Watch,
) -> Result<Report> {
    images.hardware.check()?;
    let parent = repository.head().await?;
    let system = Image::open(&images.system)?;
    let user = images.user.as_deref().map(Image::open).transpose()?;
    let (rehearsal, failed_start) = if options.rehearse {
        let minutes = options.start_limit.as_secs().div_ceil(60);
        watch.stage(&format!("starting it once, to record what it reads; {minutes} min at most"));
        match rehearsal::rehearse(images, options).await {
            Ok(rehearsal) => (Some(rehearsal), None),
            Err(error) if options.even_if_it_fails => (None, Some(error)),
            Err(error) => {
                return Err(error.with_hint("publish it all the same with --even-if-it-fails"));
            }
        }
    } else {
        (None, None)
    };
    watch.stage("looking for free blocks");
    let mut source = system.source(DiskRole::System, options.trim).await?;
    source.trace = rehearsal.as_ref().map(|rehearsal| rehearsal.trace.clone());
    if let Some(counts) = &options.popularity {
        source.trace = source.trace.map(|recorded| popularity::merged(&recorded, counts));
        source.popular = popularity::ranked(counts);
    }
    let mut disks = vec![source];
    if let Some(user) = user {
        disks.push(user.source(DiskRole::User, options.trim).await?);
    }
    let trimmed_bytes = disks.iter().map(trimmed_bytes).sum();
    watch.stage("publishing");
    let publication = Publication {
        hardware: Some(images.hardware.clone()),
        notes: options.notes.clone(),
        id: OperationId(crate::random()).to_string(),
        distrusted: options.distrusted.clone(),
        ..Publication::new(parent, crate::now(), disks)
    };
    let published = repository.publish(publication, signer, &Figures(watch)).await?;
    Ok(Report { published, trimmed_bytes, rehearsal, failed_start })
}

/// Hands figures on to a watch.
struct Figures<'a>(&'a dyn Watch);

impl Monitor for Figures<'_> {
    fn progress(&self, progress: collective_model::Progress) {
        self.0.progress(progress);
    }
}

fn trimmed_bytes(source: &DiskSource) -> u64 {
    let zeros = source.pieces.iter().filter(|piece| matches!(piece.what, PieceData::Zero));
    zeros.map(|piece| piece.range.length_bytes()).sum()
}

/// A raw image of a disk.
struct Image {
    path: PathBuf,
    file: Arc<File>,
    size_bytes: u64,
}

impl Image {
    fn open(path: &Path) -> Result<Self> {
        let failed = || format!("cannot open the image {}", path.display());
        let file = File::open(path).or_io(failed)?;
        let size_bytes = file.metadata().or_io(failed)?.len();
        if size_bytes == 0 || size_bytes % BLOCK_BYTES != 0 {
            let message = format!(
                "the image {} has {size_bytes} bytes, which is not a number of whole blocks",
                path.display()
            );
            return Err(Error::new(ErrorKind::Invalid, message)
                .with_hint("a raw disk image is a multiple of 4096 bytes long"));
        }
        Ok(Self { path: path.to_owned(), file: Arc::new(file), size_bytes })
    }

    /// Everything in the image, and zeros where its file systems say that nothing is.
    async fn source(&self, role: DiskRole, trim: bool) -> Result<DiskSource> {
        let range = BlockRange::covering(0, self.size_bytes);
        let what = PieceData::File { file: Arc::clone(&self.file), offset: 0 };
        let mut pieces = vec![Piece { range, what }];
        if trim {
            pieces.extend(
                self.free_ranges()
                    .await?
                    .into_iter()
                    .map(|range| Piece { range, what: PieceData::Zero }),
            );
        }
        Ok(DiskSource::new(role, self.size_bytes, pieces))
    }

    async fn free_ranges(&self) -> Result<Vec<BlockRange>> {
        let (file, size_bytes) = (Arc::clone(&self.file), self.size_bytes);
        let scanned = tokio::task::spawn_blocking(move || trim::free_ranges(&file, size_bytes));
        let scanned = scanned.await.map_err(|error| {
            Error::new(ErrorKind::Internal, "the scan for free blocks ended early")
                .with_source(error)
        })?;
        scanned.map_err(|error| {
            error.context(format!("cannot scan {} for free blocks", self.path.display()))
        })
    }
}
