//! A version open for reading: its manifest, the maps of its disks, and the frames that they name.
//!
//! Opening a disk reads the directory of its index, which for most disks is all of it. Frames are fetched by [`FrameRef`], so that a cache
//! can stand in between; frames that lie near each other in a pack come in one read. Every byte that is handed out was
//! checked against a hash that the publisher signed.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use collective_model::{BlockRange, Digest, DiskRole, Error, ErrorKind, Result, ResultExt};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use crate::backend::{Backend, ObjectName, Pieces, read_checked};
use crate::descriptor::Descriptor;
use crate::frame::FrameRef;
use crate::index::{IndexReader, IndexSource};
use crate::manifest::Manifest;
use crate::repository::Repository;
use crate::sealer::Sealer;
use crate::trace::Trace;

/// Bytes between two frames that are rather read and thrown away than asked for apart: what a slow line moves in one round trip.
const MAX_GAP_BYTES: u64 = 64 << 10;

/// Bytes read at once: what bounds the memory of a fetch, and what is lost when the line breaks.
const MAX_READ_BYTES: u64 = 8 << 20;

/// Reads under way at once in one fetch.
const READS_AT_ONCE: usize = 4;

/// Frames of one read that are decoded at once.
const DECODED_AT_ONCE: usize = 4;

/// A version that was opened; its manifest was checked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct VersionReader {
    repository: Repository,
    manifest: Arc<Manifest>,
}

impl VersionReader {
    pub(crate) fn new(repository: Repository, manifest: Manifest) -> Self {
        Self { repository, manifest: Arc::new(manifest) }
    }

    /// Returns the manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Opens a disk.
    ///
    /// # Errors
    /// `NotFound` if the version has no such disk; `Denied` without the secret of a private repository; `Corrupt`, naming the index.
    pub async fn disk(&self, role: DiskRole) -> Result<DiskReader> {
        self.repository.sealer().check_open()?;
        let size_bytes = self.manifest.disk(role)?.size_bytes;
        let index = Arc::new(self.index(role).await?);
        Ok(DiskReader { repository: self.repository.clone(), index, size_bytes })
    }

    /// Checks the stored bytes of a disk's index, which needs no secret.
    ///
    /// # Errors
    /// As [`disk`](Self::disk); `Corrupt` for the first page that is damaged, with no second read where a copy is at fault.
    pub async fn check_stored_index(&self, role: DiskRole) -> Result<()> {
        self.index(role).await?.check_stored().await
    }

    async fn index(&self, role: DiskRole) -> Result<IndexReader> {
        let disk = self.manifest.disk(role)?.clone();
        let packs = self.manifest.packs.iter().map(|pack| pack.id).collect();
        let source = IndexSource { version: self.manifest.version, disk, packs };
        let backend = self.repository.backend().clone();
        IndexReader::open(backend, self.repository.sealer().clone(), source).await
    }

    /// Reads the trace of a disk; an empty one if none was recorded.
    ///
    /// # Errors
    /// As [`disk`](Self::disk).
    pub async fn trace(&self, role: DiskRole) -> Result<Trace> {
        let disk = self.manifest.disk(role)?;
        let Some((name, entry)) = disk.trace_name(self.manifest.version).zip(disk.trace.as_ref())
        else {
            return Ok(Trace::default());
        };
        if entry.bytes > name.limit_bytes() {
            let message = format!("{name} has {} bytes, which is too many", entry.bytes);
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let backend = &**self.repository.backend();
        let trace = read_checked(backend, &name, || async {
            let stored = backend.read(&name, Some(0..entry.bytes)).await?;
            Trace::open(&stored, &entry.hash, self.repository.sealer())
        });
        trace.await.map_err(|error| error.context(name.to_string()))
    }
}

/// One disk of a version: its map, and the door to its frames. Cheap to clone.
#[derive(Clone)]
pub struct DiskReader {
    repository: Repository,
    index: Arc<IndexReader>,
    size_bytes: u64,
}

/// A run of blocks of the disk that is all zero, or in one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where on the disk it is.
    pub range: BlockRange,
    /// What is there.
    pub what: ExtentData,
}

/// What is in an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentData {
    /// Zeros.
    Zero,
    /// Blocks of a frame.
    Frame {
        /// The frame.
        frame: FrameRef,
        /// The block of the frame that is the first of the extent.
        first: u32,
    },
}

impl DiskReader {
    /// Returns the size of the disk.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn index(&self) -> &IndexReader {
        &self.index
    }

    /// Says where the blocks of a range are: extents in the order of the disk, without a gap, none beyond its end.
    ///
    /// # Errors
    /// `Corrupt` or `Unavailable` if a page of the index cannot be had.
    pub async fn map(&self, range: BlockRange) -> Result<Vec<Extent>> {
        let all = BlockRange::covering(0, self.size_bytes);
        let range = range.intersection(all);
        let mut extents = Vec::new();
        let mut end = range.start;
        let zero_until = |extents: &mut Vec<Extent>, from: u64, to: u64| {
            if from < to {
                let range = BlockRange::new(from, to - from);
                extents.push(Extent { range, what: ExtentData::Zero });
            }
        };
        for mapped in self.index.map(range).await? {
            zero_until(&mut extents, end, mapped.range.start);
            end = mapped.range.end();
            let what = ExtentData::Frame { frame: mapped.frame, first: mapped.first };
            extents.push(Extent { range: mapped.range, what });
        }
        zero_until(&mut extents, end, range.end());
        Ok(extents)
    }

    /// Fetches frames, in the order asked for: plain bytes, checked. Neighbours in a pack come in one read.
    ///
    /// # Errors
    /// `Corrupt`, naming pack and place; `Unavailable`.
    pub async fn fetch(&self, frames: &[FrameRef]) -> Result<Vec<Bytes>> {
        let mut plains = vec![Bytes::new(); frames.len()];
        let mut arriving = self.fetch_each(frames);
        while let Some((place, plain)) = arriving.try_next().await? {
            plains[place] = plain;
        }
        Ok(plains)
    }

    /// Fetches frames, and gives each as soon as it is there, with its place among those asked for. Neighbours in a pack
    /// come in one read.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch); what came before stands.
    pub fn fetch_each(&self, frames: &[FrameRef]) -> FramesArriving {
        self.repository.fetch_each_frame(frames)
    }

    /// Fetches frames as [`fetch_each`](Self::fetch_each) does from a copy of the repository, whoever keeps that: it shows the same packs,
    /// and what it gives is checked as anything else.
    ///
    /// # Errors
    /// `NotFound` if the copy lacks the pack, or the end of it; `Corrupt` only if bytes that came are not the frame's; else
    /// what kept them away.
    pub fn fetch_each_from(&self, copy: &Arc<dyn Backend>, frames: &[FrameRef]) -> FramesArriving {
        let place = Place { backend: Arc::clone(copy), is_copy: true };
        place.fetch_each(frames, self.repository.sealer())
    }

    /// Returns what the repository of the disk is.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor {
        self.repository.descriptor()
    }

    /// Fetches one frame.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub async fn fetch_one(&self, frame: &FrameRef) -> Result<Bytes> {
        let range = frame.offset..frame.end();
        let stored =
            self.repository.backend().read(&ObjectName::Pack(frame.pack), Some(range)).await?;
        // One frame takes less than a millisecond: not worth the way to another thread and back.
        frame.decode(&stored, self.repository.sealer())
    }
}

impl Repository {
    /// Fetches frames as [`DiskReader::fetch_each`] does. A read that fails ends, and the others go on.
    pub(crate) fn fetch_each_frame(&self, frames: &[FrameRef]) -> FramesArriving {
        let place = Place { backend: Arc::clone(self.backend()), is_copy: false };
        place.fetch_each(frames, self.sealer())
    }
}

/// Where frames are read from.
#[derive(Clone)]
struct Place {
    backend: Arc<dyn Backend>,
    /// Whether it is a copy, which may lack what the repository has.
    is_copy: bool,
}

impl Place {
    fn fetch_each(&self, frames: &[FrameRef], sealer: &Arc<Sealer>) -> FramesArriving {
        let reads =
            plan_reads(frames).into_iter().map(|read| self.fetch_read(read, frames, sealer));
        stream::iter(reads.collect::<Vec<_>>()).flatten_unordered(READS_AT_ONCE).boxed()
    }

    /// Carries out one read, and decodes each frame where it holds up nobody while the next one comes.
    fn fetch_read(
        &self,
        read: FrameRead,
        frames: &[FrameRef],
        sealer: &Arc<Sealer>,
    ) -> FramesArriving {
        let wanted = read.places.iter().map(|place| (*place, frames[*place])).collect();
        let cutter = Cutter {
            place: self.clone(),
            begun: None,
            gathered: BytesMut::new(),
            offset: read.range.start,
            read,
            wanted,
        };
        let sealer = Arc::clone(sealer);
        let stored = stream::try_unfold(cutter, |mut cutter| async move {
            Ok(cutter.next().await?.map(|stored| (stored, cutter)))
        });
        let decode = move |(place, frame, stored): (usize, FrameRef, Bytes)| {
            let sealer = sealer.clone();
            let decoding =
                tokio::task::spawn_blocking(move || Ok((place, frame.decode(&stored, &sealer)?)));
            async move {
                decoding
                    .await
                    .or_error(ErrorKind::Internal, || "decoding was broken off".to_owned())?
            }
        };
        stored.map_ok(decode).try_buffered(DECODED_AT_ONCE).boxed()
    }

    /// What a backend finds wrong is the length of an object: a copy that is too short lacks what comes after.
    fn blame(&self, error: Error) -> Error {
        if self.is_copy && error.kind() == ErrorKind::Corrupt {
            return Error::new(ErrorKind::NotFound, "the copy has another length")
                .with_source(error);
        }
        error
    }
}

/// Frames as they come, each with its place among those asked for.
pub type FramesArriving = BoxStream<'static, Result<(usize, Bytes)>>;

/// Cuts the pieces of one read into the frames that it is made for.
struct Cutter {
    place: Place,
    read: FrameRead,
    /// Frames that are still to come, in the order of the pack.
    wanted: VecDeque<(usize, FrameRef)>,
    begun: Option<Pieces>,
    /// What came and was not used yet.
    gathered: BytesMut,
    /// Where that begins in the pack.
    offset: u64,
}

impl Cutter {
    async fn next(&mut self) -> Result<Option<(usize, FrameRef, Bytes)>> {
        let Some((place, frame)) = self.wanted.pop_front() else { return Ok(None) };
        self.gather(frame.end()).await?;
        let skipped = usize::try_from(frame.offset - self.offset).unwrap_or(usize::MAX);
        let _ = self.gathered.split_to(skipped.min(self.gathered.len()));
        self.offset = frame.offset;
        // A backend that gave too few bytes gives a frame that does not have its hash. A frame that is asked for twice
        // is cut out twice.
        let length = self.gathered.len().min(frame.stored_bytes as usize);
        if self.place.is_copy && length < frame.stored_bytes as usize {
            let message = format!("{} ends too soon", ObjectName::Pack(frame.pack));
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        Ok(Some((place, frame, Bytes::copy_from_slice(&self.gathered[..length]))))
    }

    /// Reads until what is before `end` is there, or there is no more.
    async fn gather(&mut self, end: u64) -> Result<()> {
        if self.begun.is_none() {
            let name = ObjectName::Pack(self.read.pack);
            let begun = self.place.backend.stream(&name, self.read.range.clone()).await;
            self.begun = Some(begun.map_err(|error| self.place.blame(error))?);
        }
        while self.offset + (self.gathered.len() as u64) < end
            && let Some(pieces) = &mut self.begun
            && let Some(piece) = pieces.try_next().await.map_err(|error| self.place.blame(error))?
        {
            self.gathered.extend_from_slice(&piece);
        }
        Ok(())
    }
}

impl fmt::Debug for DiskReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DiskReader").field(&self.index).finish()
    }
}

/// One read of a pack, and the frames that it is made for, by their places among those asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FrameRead {
    pack: Digest,
    range: Range<u64>,
    places: Vec<usize>,
}

/// Puts frames together into as few reads as the bounds allow.
fn plan_reads(frames: &[FrameRef]) -> Vec<FrameRead> {
    let mut order: Vec<usize> = (0..frames.len()).collect();
    order.sort_by_key(|place| (frames[*place].pack, frames[*place].offset));
    let mut reads: Vec<FrameRead> = Vec::new();
    for place in order {
        let frame = &frames[place];
        match reads.last_mut() {
            Some(read)
                if read.pack == frame.pack
                    && frame.offset <= read.range.end + MAX_GAP_BYTES
                    && frame.end() - read.range.start <= MAX_READ_BYTES =>
            {
                read.range.end = read.range.end.max(frame.end());
                read.places.push(place);
            }
            _ => reads.push(FrameRead {
                pack: frame.pack,
                range: frame.offset..frame.end(),
                places: vec![place],
            }),
        }
    }
    reads
}

#[cfg(test)]
mod tests {
    use collective_model::Digest;

    use super::{MAX_READ_BYTES, plan_reads};
    use crate::frame::{Codec, FrameRef};

    fn frame(pack: u8, offset: u64, stored_bytes: u32) -> FrameRef {
        let (hash, pack) = (Digest([0; 32]), Digest([pack; 32]));
        FrameRef { hash, pack, offset, stored_bytes, blocks: 1, codec: Codec::Raw }
    }

    fn check(frames: &[FrameRef], expected: &[(u8, std::ops::Range<u64>, &[usize])]) {
        let planned: Vec<_> = plan_reads(frames)
            .into_iter()
            .map(|read| (read.pack.0[0], read.range, read.places))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(pack, range, places)| (*pack, range.clone(), places.to_vec()))
            .collect();
        assert_eq!(planned, expected);
    }

    #[test]
    fn neighbours_come_in_one_read_whatever_order_they_are_asked_for_in() {
        let frames = [frame(1, 300, 100), frame(1, 64, 136), frame(1, 200, 100)];
        check(&frames, &[(1, 64..400, &[1, 2, 0])]);
    }

    #[test]
    fn a_frame_that_is_asked_for_twice_is_read_once() {
        check(&[frame(1, 64, 10), frame(1, 64, 10)], &[(1, 64..74, &[0, 1])]);
    }

    #[test]
    fn other_packs_far_frames_and_large_reads_stand_apart() {
        check(&[frame(1, 64, 10), frame(2, 74, 10)], &[(1, 64..74, &[0]), (2, 74..84, &[1])]);
        check(
            &[frame(1, 64, 10), frame(1, 200_000, 10)],
            &[(1, 64..74, &[0]), (1, 200_000..200_010, &[1])],
        );
        let mib = 1 << 20;
        let frames: Vec<_> = (0..20).map(|at| frame(1, at * mib, mib as u32)).collect();
        let reads = plan_reads(&frames);
        assert_eq!(reads.len(), 3);
        assert!(reads.iter().all(|read| read.range.end - read.range.start <= MAX_READ_BYTES));
    }
}
