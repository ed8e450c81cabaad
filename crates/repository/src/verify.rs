//! Verification: reads everything that a version reaches, and says what is damaged.
//!
//! From each manifest down: signature, index, trace, then every pack that any version reaches, once, whole. Without the secret of a private
//! repository all stored bytes are still checked against the hashes that the publisher signed; with it (and in public
//! ones) frames are opened too, and their blocks checked against the tables by which publishers find them. Damage is no
//! error but the result; one pack at a time is in memory.

use std::collections::BTreeMap;

use collective_model::{
    BLOCK_BYTES, Digest, Error, ErrorKind, Monitor, Progress, Result, ResultExt, Version,
};

use crate::backend::ObjectName;
use crate::descriptor::Descriptor;
use crate::frame::FrameRef;
use crate::index::Index;
use crate::manifest::{DiskManifest, PackEntry};
use crate::pack::{PackTable, check_header};
use crate::reader::VersionReader;
use crate::repository::Repository;
use crate::sealer::Sealer;

/// What verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong; empty if all is well.
    pub damages: Vec<Damage>,
}

/// One damaged object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Its name.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// What versions say of a pack that they reach.
struct ReachedPack {
    entry: PackEntry,
    /// The frames that indexes name in it, by their offsets; empty where indexes cannot be read.
    frames: BTreeMap<u64, FrameRef>,
}

/// A verification under way.
struct Verifier<'a> {
    repository: &'a Repository,
    watch: &'a dyn Monitor,
    report: VerifyReport,
    packs: BTreeMap<Digest, ReachedPack>,
}

impl Repository {
    /// Reads every object that a version reaches and checks all of it.
    ///
    /// # Errors
    /// If the repository cannot be read now; damage is no error but in the report.
    pub async fn verify(&self, watch: &dyn Monitor) -> Result<VerifyReport> {
        let report = VerifyReport::default();
        let mut verifier = Verifier { repository: self, watch, report, packs: BTreeMap::new() };
        verifier.run().await?;
        Ok(verifier.report)
    }
}

impl Verifier<'_> {
    async fn run(&mut self) -> Result<()> {
        self.descriptor().await?;
        let versions = self.repository.versions().await;
        let Some(versions) = self.intact(&ObjectName::Latest, versions)? else { return Ok(()) };
        self.report.objects += u64::from(!versions.is_empty());
        let head = self.repository.head().await?;
        if head.is_some_and(|head| !versions.contains(&head)) {
            self.damage(&ObjectName::Latest, "it names a version that is not there".to_owned());
        }
        for version in versions {
            self.version(version).await?;
        }
        let packs = std::mem::take(&mut self.packs);
        let total_bytes = self.report.bytes + packs.values().map(|it| it.entry.bytes).sum::<u64>();
        for pack in packs.into_values() {
            self.pack(pack).await?;
            self.watch.progress(Progress {
                done_bytes: self.report.bytes,
                total_bytes: Some(total_bytes),
                moved_bytes: self.report.bytes,
            });
        }
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
            self.count(bytes as u64);
            if descriptor != *self.repository.descriptor() {
                self.damage(&name, "it is not what it was".to_owned());
            }
        }
        Ok(())
    }

    async fn version(&mut self, version: Version) -> Result<()> {
        let name = ObjectName::Manifest(version);
        let opened = self.repository.version(version).await;
        let Some(reader) = self.intact(&name, opened)? else { return Ok(()) };
        self.count(self.repository.backend().size(&name).await?.unwrap_or_default());
        for entry in &reader.manifest().packs {
            let reached = self
                .packs
                .entry(entry.id)
                .or_insert_with(|| ReachedPack { entry: *entry, frames: BTreeMap::new() });
            if reached.entry != *entry {
                let what = "versions disagree about the size or table of a pack".to_owned();
                self.damage(&ObjectName::Pack(entry.id), what);
            }
        }
        for disk in &reader.manifest().disks {
            self.disk(&reader, disk).await?;
        }
        Ok(())
    }

    async fn disk(&mut self, reader: &VersionReader, disk: &DiskManifest) -> Result<()> {
        let version = reader.manifest().version;
        if let Some(name) = disk.trace_name(version) {
            let read = match self.repository.sealer().check_open() {
                Ok(()) => reader.trace(disk.role).await.map(|_| ()),
                Err(_) => self.check_stored_trace(&name, disk).await,
            };
            if self.intact(&name, read)?.is_some() {
                self.count(disk.trace.as_ref().map_or(0, |trace| trace.bytes));
            }
        }
        let name = disk.index_name(version);
        let read = match self.repository.sealer().check_open() {
            Ok(()) => load_index(reader, disk).await,
            Err(_) => reader.check_stored_index(disk.role).await.map(|()| Index::default()),
        };
        let Some(index) = self.intact(&name, read)? else { return Ok(()) };
        self.count(disk.index.bytes);
        for frame in index.frames {
            let reached =
                self.packs.get_mut(&frame.pack).expect("an index knows listed packs only");
            let known = reached.frames.entry(frame.offset).or_insert(frame);
            if *known != frame {
                self.damage(&name, format!("its frame at {} of a pack is another", frame.offset));
            }
        }
        Ok(())
    }

    async fn check_stored_trace(&self, name: &ObjectName, disk: &DiskManifest) -> Result<()> {
        let Some(entry) = &disk.trace else { return Ok(()) };
        let stored = self.repository.backend().read(name, Some(0..entry.bytes)).await?;
        if *blake3::hash(&stored).as_bytes() == entry.hash.0 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Corrupt, "its bytes do not have the hash of the manifest"))
    }

    async fn pack(&mut self, pack: ReachedPack) -> Result<()> {
        let name = ObjectName::Pack(pack.entry.id);
        let backend = self.repository.backend();
        let checked = match backend.read(&name, Some(0..pack.entry.bytes)).await {
            Ok(bytes) => {
                let repository = self.repository.clone();
                tokio::task::spawn_blocking(move || {
                    check_pack(&bytes, &pack, repository.descriptor(), repository.sealer())
                        .map(|()| bytes.len() as u64)
                })
                .await
                .or_error(ErrorKind::Internal, || "verification was broken off".to_owned())?
            }
            Err(error) => Err(error),
        };
        if let Some(bytes) = self.intact(&name, checked)? {
            self.count(bytes);
        }
        Ok(())
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
        self.report.damages.push(Damage { object: name.to_string(), what });
    }

    fn count(&mut self, bytes: u64) {
        self.report.objects += 1;
        self.report.bytes += bytes;
    }
}

async fn load_index(reader: &VersionReader, disk: &DiskManifest) -> Result<Index> {
    let index = reader.disk(disk.role).await?.index().load().await?;
    if index.data_bytes() == disk.data_bytes {
        return Ok(index);
    }
    Err(Error::new(ErrorKind::Corrupt, "it maps more or less data than the manifest says"))
}

/// Checks all of a pack.
fn check_pack(
    bytes: &[u8],
    pack: &ReachedPack,
    descriptor: &Descriptor,
    sealer: &Sealer,
) -> Result<()> {
    // The parts first, because they can say where the damage is; the hash of the whole cannot.
    let table = check_structure(bytes, &pack.entry, descriptor)?;
    let readable = sealer.check_open().is_ok();
    let mut block_hashes = table.block_hashes.iter();
    for entry in &table.frames {
        let frame = entry.in_pack(pack.entry.id);
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
    if *blake3::hash(bytes).as_bytes() != pack.entry.id.0 {
        return Err(Error::new(ErrorKind::Corrupt, "its bytes do not have the hash of its name"));
    }
    for (offset, frame) in &pack.frames {
        let found = table.frames.binary_search_by_key(offset, |entry| entry.offset);
        if found.is_err() || found.is_ok_and(|at| table.frames[at].in_pack(frame.pack) != *frame) {
            let what = format!("an index names a frame at {offset} that the table does not have");
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
    }
    Ok(())
}

fn check_structure(bytes: &[u8], entry: &PackEntry, descriptor: &Descriptor) -> Result<PackTable> {
    let damaged = || "it is damaged".to_owned();
    check_header(bytes, descriptor).or_error(ErrorKind::Corrupt, damaged)?;
    let tail = bytes.len().checked_sub(entry.table_bytes as usize);
    let tail = tail.and_then(|start| bytes.get(start..)).unwrap_or_default();
    PackTable::decode_trusted_tail(tail, entry).or_error(ErrorKind::Corrupt, damaged)
}
