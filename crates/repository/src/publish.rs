//! Publishing: the one door through which bytes come into a repository.
//!
//! A [`Publication`] says for each disk what is new and what it is based on. Pieces are planned (holes found, the order of packs chosen),
//! go through the pipeline (read, hash, look up, compress, pack, store) with some old blocks that leave their packs, and are put
//! together with what else shows of the base into a flattened index. Order makes it atomic: packs, then index and traces, then the commit of the signed manifest, which is the
//! publication. A failure at any point leaves the head where it was and garbage that nobody finds.

mod assemble;
mod known;
mod pipeline;
mod plan;
mod repack;
mod unfinished;

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use collective_model::{
    BLOCK_BYTES, BlockRange, Digest, DiskRole, Epoch, Error, ErrorKind, Hardware, Monitor, Result,
    ResultExt, Timestamp, Version,
};
use futures::stream::{self, StreamExt, TryStreamExt};

use self::assemble::{PlacedRun, index_of, needed_packs, uncovered};
use self::pipeline::{Pipeline, StoredRuns};
use self::plan::{Batch, plan_disk};
use crate::backend::{Commit, ObjectName, PartKind};
use crate::index::Index;
use crate::keys::SigningKey;
use crate::manifest::{self, DiskManifest, Manifest, PackEntry, TraceEntry, check_disk_size};
use crate::repository::Repository;
use crate::sealer::Purpose;
use crate::trace::Trace;

/// Packs of an earlier attempt that are looked for at once.
const LOOKS_AT_ONCE: usize = 8;

pub(crate) use known::TableCache;
pub(crate) use unfinished::Unfinished;

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
    /// Packs known to be damaged: blocks that are found in them are stored again.
    pub distrusted: Vec<Digest>,
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
    /// What is read most besides, the most first: it lies in packs behind what the trace has.
    pub popular: Vec<BlockRange>,
}

impl Publication {
    /// Makes one of disks without a machine, under no lock; what else there is to say is set.
    #[must_use]
    pub fn new(parent: Option<Version>, time: Timestamp, disks: Vec<DiskSource>) -> Self {
        Self {
            parent,
            epoch: Epoch::default(),
            time,
            hardware: None,
            notes: String::new(),
            id: String::new(),
            disks,
            sink: None,
            distrusted: Vec::new(),
        }
    }
}

impl DiskSource {
    /// Makes one that shows its pieces, and zeros elsewhere.
    #[must_use]
    pub const fn new(role: DiskRole, size_bytes: u64, pieces: Vec<Piece>) -> Self {
        Self { role, size_bytes, base: None, pieces, trace: None, popular: Vec::new() }
    }
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
    /// Bytes in blocks that were read and are neither zero nor stored already.
    pub changed_bytes: u64,
    /// Bytes in blocks that were stored already and moved to a new pack.
    pub moved_bytes: u64,
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
    /// Publishes a version: stores what is new of its disks, then its index and traces, then moves the head to it, all or nothing.
    ///
    /// What a publication that fails has stored is found by nobody and swept by a later prune, unless it is noted
    /// ([`note_unfinished_in`](Self::note_unfinished_in)) and the next attempt comes soon.
    ///
    /// # Errors
    /// `Conflict` if the parent is not the head, the lock is over, or somebody else publishes first; `Denied` if the key is not the
    /// publisher's; `Invalid` for disks out of bounds and files cut short; `Unavailable` if the repository is away or full.
    pub async fn publish(
        &self,
        publication: Publication,
        signer: &SigningKey,
        watch: &dyn Monitor,
    ) -> Result<Published> {
        let draft = self.draft(&publication, signer).await?;
        let mut plans = Vec::new();
        for source in &publication.disks {
            plans.push(self.plan(source).await?);
        }
        let read_bytes = plans.iter().map(|plan| plan.read_bytes).sum();
        let candidates = self.candidate_packs(publication.parent, &plans).await?;
        let left = self.repack(&mut plans, &candidates).await?;
        // What moves must not be found where it moves away from.
        let stay = candidates
            .iter()
            .rev()
            .filter(|pack| !left.contains(&pack.id) && !publication.distrusted.contains(&pack.id));
        let unfinished = self.unfinished_packs(&publication, &candidates).await?;
        let newest_first: Vec<PackEntry> = unfinished.iter().rev().chain(stay).copied().collect();
        let known = self.tables().load(&**self.backend(), &newest_first, read_bytes).await?;

        let mut pipeline = Pipeline::new(self, known, publication.sink.clone(), watch);
        pipeline.total_bytes = read_bytes;
        pipeline.is_update = publication.parent.is_some();
        let mut disks = Vec::new();
        for (source, plan) in publication.disks.iter().zip(plans) {
            let stored = pipeline.store(plan.batches, source.size_bytes).await?;
            disks.push(StoredDisk { runs: plan.shown, stored, trace: plan.trace });
        }
        let stored = pipeline.finish().await?;

        let placed: Vec<PlacedDisk> = publication
            .disks
            .iter()
            .zip(disks)
            .map(|(source, mut disk)| {
                disk.runs.extend(stored.places(&disk.stored));
                PlacedDisk { source, runs: disk.runs, trace: disk.trace }
            })
            .collect();
        let packs = needed_packs(
            candidates.iter().chain(&unfinished).chain(&stored.packs),
            placed.iter().flat_map(|disk| &disk.runs),
        );
        let mut manifest = Manifest { packs, ..draft };
        let mut stats = stored.stats;
        for disk in placed {
            let entry = self.write_disk(disk, &manifest, &mut stats).await?;
            manifest.disks.push(entry);
        }
        let published = self.commit(&manifest, signer, &mut stats).await?;
        self.unfinished().inspect(|unfinished| unfinished.clear());
        Ok(published)
    }

    /// Checks all that can be checked before the first byte is read, and begins the manifest.
    async fn draft(&self, publication: &Publication, signer: &SigningKey) -> Result<Manifest> {
        let descriptor = self.descriptor();
        if signer.publisher() != descriptor.publisher {
            let message = format!("the key {} may not publish here", signer.publisher());
            return Err(Error::new(ErrorKind::Denied, message));
        }
        self.sealer().check_open()?;
        let draft = Manifest {
            format: manifest::FORMAT,
            repository: descriptor.id,
            version: Version::after(publication.parent),
            parent: publication.parent,
            time: publication.time,
            notes: publication.notes.clone(),
            id: publication.id.clone(),
            epoch: publication.epoch,
            hardware: publication.hardware.clone(),
            disks: Vec::new(),
            packs: Vec::new(),
        };
        draft.check()?;
        for (at, source) in publication.disks.iter().enumerate() {
            check_disk_size(source.role, source.size_bytes)?;
            let twice = publication.disks[..at].iter().any(|other| other.role == source.role);
            if twice || source.role == DiskRole::Ephemeral {
                let message = format!("a version may not have this {} disk", source.role);
                return Err(Error::new(ErrorKind::Invalid, message));
            }
        }
        let head = self.head().await?;
        if head != publication.parent {
            let shown = |version: Option<Version>| {
                version.map_or("nothing".to_owned(), |version| format!("version {version}"))
            };
            let message = format!(
                "cannot publish after {}: the latest is {}",
                shown(publication.parent),
                shown(head)
            );
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        Ok(draft)
    }

    /// Plans a disk: what its base shows, and what must be read.
    async fn plan(&self, source: &DiskSource) -> Result<PlannedDisk> {
        let mut base = Base::default();
        if let Some(version) = source.base {
            let reader = self.version(version).await?;
            base.index = reader.disk(source.role).await?.index().load().await?;
            base.trace = reader.trace(source.role).await?;
            base.packs.clone_from(&reader.manifest().packs);
        }
        let trace = source.trace.clone().unwrap_or(base.trace);
        let (task_source, task_trace) = (source.clone(), trace.clone());
        // Asking files for their holes may take as long as reading them.
        let plan = tokio::task::spawn_blocking(move || plan_disk(&task_source, &task_trace.ranges))
            .await
            .or_error(ErrorKind::Internal, || "planning was broken off".to_owned())??;
        let blocks = source.size_bytes.div_ceil(BLOCK_BYTES);
        let shown = uncovered(&base.index, &plan.covered, blocks);
        Ok(PlannedDisk {
            shown,
            batches: plan.batches,
            read_bytes: plan.read_bytes,
            trace,
            base_packs: base.packs,
        })
    }

    /// Returns every pack that parent and bases reach, oldest first.
    async fn candidate_packs(
        &self,
        parent: Option<Version>,
        plans: &[PlannedDisk],
    ) -> Result<Vec<PackEntry>> {
        let mut packs = Vec::new();
        if let Some(parent) = parent {
            packs.clone_from(&self.version(parent).await?.manifest().packs);
        }
        let mut seen: HashSet<Digest> = packs.iter().map(|pack| pack.id).collect();
        let others: Vec<PackEntry> = plans
            .iter()
            .flat_map(|plan| &plan.base_packs)
            .filter(|pack| seen.insert(pack.id))
            .copied()
            .collect();
        // A base older than the parent: what only it reaches was published before.
        Ok(others.into_iter().chain(packs).collect())
    }

    /// Returns the packs that an earlier attempt has stored, as far as they are still there.
    async fn unfinished_packs(
        &self,
        publication: &Publication,
        candidates: &[PackEntry],
    ) -> Result<Vec<PackEntry>> {
        let Some(unfinished) = self.unfinished() else { return Ok(Vec::new()) };
        let reached: HashSet<Digest> =
            candidates.iter().map(|pack| pack.id).chain(publication.distrusted.clone()).collect();
        let mut packs = unfinished.packs(SystemTime::now().into());
        packs.retain(|pack| !reached.contains(&pack.id));
        let looks = packs.into_iter().map(|pack| async move {
            let size = self.backend().size(&ObjectName::Pack(pack.id)).await?;
            Ok::<_, Error>((size == Some(pack.bytes)).then_some(pack))
        });
        let there: Vec<_> = stream::iter(looks).buffered(LOOKS_AT_ONCE).try_collect().await?;
        Ok(there.into_iter().flatten().collect())
    }

    /// Writes index and trace of a disk.
    async fn write_disk(
        &self,
        disk: PlacedDisk<'_>,
        manifest: &Manifest,
        stats: &mut PublishStats,
    ) -> Result<DiskManifest> {
        let PlacedDisk { source, runs, trace } = disk;
        let index = index_of(runs, &manifest.packs);
        let blocks = source.size_bytes.div_ceil(BLOCK_BYTES);
        let encoded = index.encode(blocks, &manifest.packs, self.sealer())?;
        let mut written = DiskManifest {
            role: source.role,
            size_bytes: source.size_bytes,
            data_bytes: index.data_bytes(),
            index: encoded.entry,
            trace: None,
        };
        stats.stored_bytes += encoded.bytes.len() as u64;
        let name = written.index_name(manifest.version);
        self.backend().write(&name, encoded.bytes.into()).await?;
        if !trace.ranges.is_empty() {
            let stored = self.sealer().seal_small(Purpose::Trace, &trace.encode())?;
            let hash = Digest(*blake3::hash(&stored).as_bytes());
            written.trace = Some(TraceEntry { bytes: stored.len() as u64, hash });
            stats.stored_bytes += stored.len() as u64;
            let name = ObjectName::part(manifest.version, source.role, PartKind::Trace, &hash);
            self.backend().write(&name, stored.into()).await?;
        }
        Ok(written)
    }

    async fn commit(
        &self,
        manifest: &Manifest,
        signer: &SigningKey,
        stats: &mut PublishStats,
    ) -> Result<Published> {
        manifest.check()?;
        let bytes = manifest.sign(signer);
        let version = manifest.version;
        if bytes.len() as u64 > ObjectName::Manifest(version).limit_bytes() {
            let message = format!("the manifest has {} bytes, which is too many", bytes.len());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        stats.stored_bytes += bytes.len() as u64;
        let commit = Commit { version, manifest: bytes.clone(), epoch: manifest.epoch };
        if let Err(error) = self.backend().commit(commit.clone()).await {
            // The answer may have been lost, or the head have moved and not be durable: it is said again.
            let again = self.backend().commit(commit).await;
            let is_conflict = |again: &Error| again.kind() == ErrorKind::Conflict;
            if !again.as_ref().is_err_and(is_conflict) || !self.is_ours(version, &bytes).await {
                again.map_err(|_| error)?;
            }
        }
        self.remember(version);
        Ok(Published { version, stats: *stats })
    }

    /// Tells whether a commit that seemed to fail was carried out all the same: the answer may have been lost.
    async fn is_ours(&self, version: Version, manifest: &Bytes) -> bool {
        let at_head = self.head().await.is_ok_and(|head| head == Some(version));
        let stored = self.backend().read(&ObjectName::Manifest(version), None).await;
        at_head && stored.is_ok_and(|stored| stored == *manifest)
    }
}

/// What a disk is based on.
#[derive(Default)]
struct Base {
    index: Index,
    trace: Trace,
    packs: Vec<PackEntry>,
}

/// A disk before its blocks are read.
struct PlannedDisk {
    /// What shows of its base.
    shown: Vec<PlacedRun>,
    batches: Vec<Batch>,
    read_bytes: u64,
    trace: Trace,
    base_packs: Vec<PackEntry>,
}

/// A disk whose blocks went through the pipeline.
struct StoredDisk {
    runs: Vec<PlacedRun>,
    stored: StoredRuns,
    trace: Trace,
}

/// A disk of which all places are known.
struct PlacedDisk<'a> {
    source: &'a DiskSource,
    runs: Vec<PlacedRun>,
    trace: Trace,
}
