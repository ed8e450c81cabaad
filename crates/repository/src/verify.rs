//! Verification: reads everything that versions reach, step by step, and says what is damaged.
//!
//! ```text
//! manifests ──▶ packs, each once, whole, in the order of their ids ──▶ traces and indexes, version by version
//! ```
//!
//! Without the secret of a private repository all stored bytes are still checked against the hashes that the publisher signed; with it
//! (and in public ones) frames are opened too, their blocks checked against the tables by which publishers find them, and the frames
//! that indexes name against those that packs have. Damage is no error but the result. Each step reads one object, so that whoever
//! takes the steps decides how fast; a [`VerifyState`] can be kept, and gone on from after a restart. What is published meanwhile waits
//! for the next verification, and what is pruned meanwhile is no damage.
//!
//! In memory are one pack or the manifest of one version; of each pack some 150 bytes, of each frame 8. Indexes are read by pages.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use collective_model::{
    BLOCK_BYTES, Digest, Error, ErrorKind, Monitor, Progress, Result, ResultExt, Version,
};
use serde::{Deserialize, Serialize};

use crate::backend::ObjectName;
use crate::descriptor::Descriptor;
use crate::frame::FrameRef;
use crate::manifest::{DiskManifest, PackEntry};
use crate::pack::{PackTable, check_header};
use crate::reader::VersionReader;
use crate::repository::Repository;
use crate::sealer::Sealer;

/// Damages that are named; of further ones it is only known how many there are.
pub const MAX_DAMAGES: usize = 1000;

/// Frames that are remembered to compare indexes with packs: 128 MiB, 4 TiB of data. What indexes say of frames beyond is checked when these are read.
const MAX_FRAMES_COMPARED: usize = 1 << 24;

/// Packs of manifests that are kept from the first reading to the second: 1 MB.
const MAX_KEPT_PACKS: usize = 10_000;

/// What verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong, at most [`MAX_DAMAGES`]; empty if all is well.
    pub damages: Vec<Damage>,
    /// Damages beyond these.
    pub further_damages: u64,
}

/// One damaged object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Its name.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// How far a verification is, and what it found until then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyState {
    place: Place,
    /// What was found until now.
    pub report: VerifyReport,
}

/// What was done last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Place {
    #[default]
    Beginning,
    Pack(Digest),
    Version(Version),
}

/// A verification under way.
#[derive(Debug)]
pub struct Verification {
    repository: Repository,
    state: VerifyState,
    /// Versions whose manifests are still to be read.
    manifests: VecDeque<Version>,
    /// Versions whose indexes are still to be read; with their manifests as far as these are few.
    versions: VecDeque<(Version, Option<VersionReader>)>,
    kept_packs: usize,
    /// Every pack that a version reaches, and those of them that are still to be looked at.
    packs: BTreeMap<Digest, PackEntry>,
    packs_left: VecDeque<Digest>,
    /// Packs whose frames are not known: damaged, missing, or beyond what is remembered.
    unknown: BTreeSet<Digest>,
    missing: BTreeSet<Digest>,
    /// Of each frame that packs have, what [`fingerprint`] makes of it.
    frames: Vec<u64>,
}

impl Repository {
    /// Reads every object that a version reaches and checks all of it.
    ///
    /// # Errors
    /// If the repository cannot be read now; damage is no error but in the report.
    pub async fn verify(&self, watch: &dyn Monitor) -> Result<VerifyReport> {
        let mut verification = self.verification(VerifyState::default()).await?;
        while verification.step().await? {
            let done_bytes = verification.state().report.bytes;
            let total_bytes = Some(verification.total_bytes());
            watch.progress(Progress { done_bytes, total_bytes, moved_bytes: done_bytes });
        }
        Ok(verification.state.report)
    }

    /// Begins a verification, or goes on with one.
    ///
    /// # Errors
    /// If the repository cannot be read now.
    pub async fn verification(&self, state: VerifyState) -> Result<Verification> {
        let mut verification = Verification {
            repository: self.clone(),
            state,
            manifests: VecDeque::new(),
            versions: VecDeque::new(),
            kept_packs: 0,
            packs: BTreeMap::new(),
            packs_left: VecDeque::new(),
            unknown: BTreeSet::new(),
            missing: BTreeSet::new(),
            frames: Vec::new(),
        };
        verification.begin().await?;
        Ok(verification)
    }
}

impl Verification {
    /// Returns how far it is, to be kept if it may have to go on later.
    #[must_use]
    pub fn state(&self) -> &VerifyState {
        &self.state
    }

    /// Returns about how many bytes are read in all, as far as it is known.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let left = self.packs_left.iter().filter_map(|id| self.packs.get(id));
        self.state.report.bytes + left.map(|pack| pack.bytes).sum::<u64>()
    }

    /// Checks the next object; returns false when there is none left, and the report is complete.
    ///
    /// # Errors
    /// As [`Repository::verify`]; it can be tried again.
    pub async fn step(&mut self) -> Result<bool> {
        if let Some(version) = self.manifests.front().copied() {
            let reader = self.manifest(version).await?;
            self.versions.push_back((version, reader));
            self.manifests.pop_front();
            if self.manifests.is_empty() {
                self.packs_left = self.packs.keys().copied().collect();
            }
        } else if let Some(id) = self.packs_left.front().copied() {
            let entry = self.packs[&id];
            if self.state.place < Place::Pack(id) {
                self.pack(&entry).await?;
                self.state.place = Place::Pack(id);
            } else {
                self.table_again(&entry).await?;
            }
            self.packs_left.pop_front();
            if self.packs_left.is_empty() {
                self.frames.sort_unstable();
            }
        } else if let Some((version, reader)) = self.versions.front().cloned() {
            if self.state.place < Place::Version(version) {
                self.version(version, reader).await?;
                self.state.place = Place::Version(version);
            }
            self.versions.pop_front();
        } else {
            self.missing_packs().await?;
            return Ok(false);
        }
        Ok(true)
    }

    async fn begin(&mut self) -> Result<()> {
        if self.state.place == Place::Beginning {
            self.state = VerifyState::default();
        }
        self.descriptor().await?;
        let versions = self.repository.versions().await;
        let Some(versions) = self.intact(&ObjectName::Latest, versions)? else { return Ok(()) };
        if self.state.place == Place::Beginning {
            self.state.report.objects += u64::from(!versions.is_empty());
        }
        let head = self.repository.head().await?;
        if head.is_some_and(|head| !versions.contains(&head)) {
            self.damage(&ObjectName::Latest, "it names a version that is not there".to_owned());
        }
        self.manifests = versions.into();
        Ok(())
    }

    /// The descriptor was read when the repository was opened; it may have been damaged since.
    async fn descriptor(&mut self) -> Result<()> {
        let name = ObjectName::Descriptor;
        let read = match self.repository.backend().read(&name, None).await {
            Ok(bytes) => Descriptor::decode(&bytes).map(|descriptor| (descriptor, bytes.len())),
            Err(error) => Err(error),
        };
        if let Some((descriptor, bytes)) = self.intact(&name, read)? {
            if self.state.place == Place::Beginning {
                self.count(bytes as u64);
            }
            if descriptor != *self.repository.descriptor() {
                self.damage(&name, "it is not what it was".to_owned());
            }
        }
        Ok(())
    }

    /// Reads a manifest; returns it if there is room to keep it.
    async fn manifest(&mut self, version: Version) -> Result<Option<VersionReader>> {
        let Some(reader) = self.open(version).await? else { return Ok(None) };
        if self.state.place == Place::Beginning {
            let size = self.repository.backend().size(&ObjectName::Manifest(version)).await?;
            self.count(size.unwrap_or_default());
        }
        for entry in &reader.manifest().packs {
            if *self.packs.entry(entry.id).or_insert(*entry) != *entry {
                let what = "versions disagree about the size or table of a pack".to_owned();
                self.damage(&ObjectName::Pack(entry.id), what);
            }
        }
        let packs = reader.manifest().packs.len();
        let is_kept = self.kept_packs + packs <= MAX_KEPT_PACKS;
        self.kept_packs += if is_kept { packs } else { 0 };
        Ok(is_kept.then_some(reader))
    }

    /// Opens a version, unless its manifest is damaged or it was pruned meanwhile.
    async fn open(&mut self, version: Version) -> Result<Option<VersionReader>> {
        let opened = self.repository.version(version).await;
        if opened.is_err() && self.is_gone(version).await? {
            return Ok(None);
        }
        self.intact(&ObjectName::Manifest(version), opened)
    }

    async fn is_gone(&self, version: Version) -> Result<bool> {
        let size = self.repository.backend().size(&ObjectName::Manifest(version)).await?;
        Ok(size.is_none())
    }

    async fn version(&mut self, version: Version, kept: Option<VersionReader>) -> Result<()> {
        let reader = if kept.is_some() { kept } else { self.open(version).await? };
        let Some(reader) = reader else { return Ok(()) };
        for disk in &reader.manifest().disks {
            if let Some(name) = disk.trace_name(version) {
                let read = self.trace(&reader, disk, &name).await;
                self.part(&name, read).await?;
            }
            let name = disk.index_name(version);
            let read = self.index(&reader, disk).await;
            self.part(&name, read).await?;
        }
        Ok(())
    }

    /// Notes how a part of a version is, unless the version was pruned while it was read.
    async fn part(&mut self, name: &ObjectName, read: Result<u64>) -> Result<()> {
        let version = name.version().expect("parts are of a version");
        if read.is_err() && self.is_gone(version).await? {
            return Ok(());
        }
        let bytes = self.intact(name, read)?;
        bytes.into_iter().for_each(|bytes| self.count(bytes));
        Ok(())
    }

    async fn trace(
        &self,
        reader: &VersionReader,
        disk: &DiskManifest,
        name: &ObjectName,
    ) -> Result<u64> {
        let Some(entry) = &disk.trace else { return Ok(0) };
        if self.is_readable() {
            reader.trace(disk.role).await?;
            return Ok(entry.bytes);
        }
        let stored = self.repository.backend().read(name, Some(0..entry.bytes)).await?;
        if *blake3::hash(&stored).as_bytes() == entry.hash.0 {
            return Ok(entry.bytes);
        }
        Err(Error::new(ErrorKind::Corrupt, "its bytes do not have the hash of the manifest"))
    }

    async fn index(&self, reader: &VersionReader, disk: &DiskManifest) -> Result<u64> {
        if !self.is_readable() {
            reader.check_stored_index(disk.role).await?;
            return Ok(disk.index.bytes);
        }
        let mut stranger = None;
        let opened = reader.disk(disk.role).await?;
        let data_bytes = opened
            .index()
            .check(|frame| {
                let is_known = self.unknown.contains(&frame.pack)
                    || !self.packs.contains_key(&frame.pack)
                    || self.frames.binary_search(&fingerprint(frame)).is_ok();
                stranger = stranger.or((!is_known).then_some(*frame));
            })
            .await?;
        if let Some(frame) = stranger {
            let what = format!(
                "it names a frame at {} of pack {} that is not there",
                frame.offset, frame.pack
            );
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        if data_bytes != disk.data_bytes {
            let what = "it maps more or less data than the manifest says";
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        Ok(disk.index.bytes)
    }

    async fn pack(&mut self, entry: &PackEntry) -> Result<()> {
        let name = ObjectName::Pack(entry.id);
        let checked = match self.repository.backend().read(&name, Some(0..entry.bytes)).await {
            Ok(bytes) => {
                let (repository, entry) = (self.repository.clone(), *entry);
                tokio::task::spawn_blocking(move || {
                    check_pack(&bytes, &entry, repository.descriptor(), repository.sealer())
                })
                .await
                .or_error(ErrorKind::Internal, || "verification was broken off".to_owned())?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.missing.insert(entry.id);
                self.unknown.insert(entry.id);
                return Ok(());
            }
            Err(error) => Err(error),
        };
        match self.intact(&name, checked)? {
            Some(table) => {
                self.count(entry.bytes);
                self.remember(entry, &table);
            }
            None => drop(self.unknown.insert(entry.id)),
        }
        Ok(())
    }

    /// Reads the table of a pack that was checked before a restart. What is wrong with it now is for the next verification.
    async fn table_again(&mut self, entry: &PackEntry) -> Result<()> {
        let start = entry.bytes.saturating_sub(u64::from(entry.table_bytes));
        let name = ObjectName::Pack(entry.id);
        match self.repository.backend().read(&name, Some(start..entry.bytes)).await {
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            Ok(tail) => match PackTable::decode_trusted_tail(&tail, entry) {
                Ok(table) => self.remember(entry, &table),
                Err(_) => drop(self.unknown.insert(entry.id)),
            },
            Err(_) => drop(self.unknown.insert(entry.id)),
        }
        Ok(())
    }

    fn remember(&mut self, entry: &PackEntry, table: &PackTable) {
        if !self.is_readable() {
            return;
        }
        if self.frames.len() + table.frames.len() > MAX_FRAMES_COMPARED {
            self.unknown.insert(entry.id);
            return;
        }
        let frames = table.frames.iter().map(|frame| fingerprint(&frame.in_pack(entry.id)));
        self.frames.extend(frames);
    }

    /// A pack that is not there is damage if a version that is there reaches it; a prune may have been faster than we.
    async fn missing_packs(&mut self) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let mut lost = BTreeSet::new();
        for version in self.repository.versions().await? {
            if let Ok(reader) = self.repository.version(version).await {
                let packs = reader.manifest().packs.iter().map(|pack| pack.id);
                lost.extend(packs.filter(|id| self.missing.contains(id)));
            }
        }
        self.missing.clear();
        for id in lost {
            self.damage(&ObjectName::Pack(id), format!("{} does not exist", ObjectName::Pack(id)));
        }
        Ok(())
    }

    fn is_readable(&self) -> bool {
        self.repository.sealer().check_open().is_ok()
    }

    /// Turns what is wrong with an object into a line of the report; what cannot be known now stays an error.
    fn intact<T>(&mut self, name: &ObjectName, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Invalid
                ) =>
            {
                self.damage(name, error.chain());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn damage(&mut self, name: &ObjectName, what: String) {
        let report = &mut self.state.report;
        let damage = Damage { object: name.to_string(), what };
        // A manifest is read several times.
        if report.damages.contains(&damage) {
        } else if report.damages.len() < MAX_DAMAGES {
            report.damages.push(damage);
        } else {
            report.further_damages += 1;
        }
    }

    fn count(&mut self, bytes: u64) {
        self.state.report.objects += 1;
        self.state.report.bytes += bytes;
    }
}

/// What stands for a frame with everything that is said of it.
fn fingerprint(frame: &FrameRef) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&frame.pack.0).update(&frame.hash.0).update(&frame.offset.to_le_bytes());
    hasher.update(&frame.stored_bytes.to_le_bytes()).update(&frame.blocks.to_le_bytes());
    let hash = hasher.update(&[frame.codec.code()]).finalize();
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 of 32 bytes are 8 bytes"))
}

/// Checks all of a pack; returns what is in it.
fn check_pack(
    bytes: &[u8],
    pack: &PackEntry,
    descriptor: &Descriptor,
    sealer: &Sealer,
) -> Result<PackTable> {
    // The parts first, because they can say where the damage is; the hash of the whole cannot.
    let table = check_structure(bytes, pack, descriptor)?;
    let readable = sealer.check_open().is_ok();
    let mut block_hashes = table.block_hashes.iter();
    for entry in &table.frames {
        let frame = entry.in_pack(pack.id);
        let hashes = block_hashes.by_ref().take(entry.blocks as usize);
        let stored = &bytes[frame.offset as usize..frame.end() as usize];
        if !readable {
            frame.check_hash(stored)?;
            hashes.for_each(drop);
            continue;
        }
        let plain = frame.decode(stored, sealer)?;
        for (block, hash) in plain.chunks_exact(BLOCK_BYTES as usize).zip(hashes) {
            if sealer.block_hash(block) != *hash {
                let what = format!("the table has a wrong hash for the frame at {}", frame.offset);
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
        }
    }
    if *blake3::hash(bytes).as_bytes() == pack.id.0 {
        return Ok(table);
    }
    Err(Error::new(ErrorKind::Corrupt, "its bytes do not have the hash of its name"))
}

fn check_structure(bytes: &[u8], entry: &PackEntry, descriptor: &Descriptor) -> Result<PackTable> {
    let damaged = || "it is damaged".to_owned();
    check_header(bytes, descriptor).or_error(ErrorKind::Corrupt, damaged)?;
    let tail = bytes.len().checked_sub(entry.table_bytes as usize);
    let tail = tail.and_then(|start| bytes.get(start..)).unwrap_or_default();
    PackTable::decode_trusted_tail(tail, entry).or_error(ErrorKind::Corrupt, damaged)
}
