//! Reads an index: the directory first, pages as they are asked for, each checked against the hash above it.
//!
//! Decoded pages are kept, up to a bound; the ones used longest ago go first. Two readers that want a page at the same
//! time may both read it: pages are small, and a lock held over a read would make everyone wait for the slowest.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use collective_model::{BLOCK_BYTES, BlockRange, Digest, Error, ErrorKind, Result, ResultExt};

use super::directory::{
    Directory, HEADER_BYTES, MAX_DIRECTORY_BYTES, MIN_DIRECTORY_BYTES, PageEntry, check_header,
};
use super::page::{MAX_PAGE_BYTES, decode_extents, decode_frames};
use super::{Index, IndexExtent, IndexSource};
use crate::backend::{Backend, ObjectName, read_checked};
use crate::frame::FrameRef;
use crate::sealer::{Purpose, Sealer};

/// An index object up to this size is read whole, in one round trip: that of a Debian system of 1 GB has 40 to 120 KB. A
/// larger one held up the first byte over DSL for a second and more (docs/performance.md, `open.cold.dsl`).
pub const WHOLE_INDEX_BYTES: u64 = 128 << 10;

/// Decoded pages that are kept for each open disk: at most some 50 MiB.
const MAX_KEPT_PAGES: usize = 512;

/// An index open for reading.
pub(crate) struct IndexReader {
    backend: Arc<dyn Backend>,
    sealer: Arc<Sealer>,
    source: IndexSource,
    name: ObjectName,
    directory: Directory,
    /// The object, if it is small.
    whole: Option<Bytes>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    pages: HashMap<PageId, KeptPage>,
    clock: u64,
}

struct KeptPage {
    page: Page,
    used: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum PageId {
    Frames(usize),
    Extents(usize),
}

#[derive(Clone)]
enum Page {
    Frames(Arc<Vec<FrameRef>>),
    Extents(Arc<Vec<IndexExtent>>),
}

/// An extent with its frame looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub range: BlockRange,
    pub frame: FrameRef,
    pub first: u32,
}

impl IndexReader {
    /// Opens an index: reads and checks its directory. Its pages open for who has the secret only.
    pub async fn open(
        backend: Arc<dyn Backend>,
        sealer: Arc<Sealer>,
        source: IndexSource,
    ) -> Result<Self> {
        let name = source.disk.index_name(source.version);
        let read = || Self::read_directory(&*backend, &source, &name);
        let opened = read_checked(&*backend, &name, read).await;
        let (directory, whole) = opened.map_err(|error| error.context(name.to_string()))?;
        let kept = Mutex::default();
        Ok(Self { backend, sealer, source, name, directory, whole, kept })
    }

    async fn read_directory(
        backend: &dyn Backend,
        source: &IndexSource,
        name: &ObjectName,
    ) -> Result<(Directory, Option<Bytes>)> {
        let entry = &source.disk.index;
        let damaged = || "it is damaged".to_owned();
        let object_bytes = entry.bytes;
        let start = object_bytes
            .checked_sub(u64::from(entry.directory_bytes))
            .filter(|start| *start >= HEADER_BYTES as u64 && object_bytes <= name.limit_bytes())
            .filter(|_| {
                let allowed = MIN_DIRECTORY_BYTES..=MAX_DIRECTORY_BYTES;
                allowed.contains(&(entry.directory_bytes as usize))
            })
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, damaged()))?;
        let (whole, directory) = if object_bytes <= WHOLE_INDEX_BYTES {
            let whole = backend.read(name, Some(0..object_bytes)).await?;
            check_length(&whole, object_bytes)?;
            check_header(&whole).or_error(ErrorKind::Corrupt, damaged)?;
            (Some(whole.clone()), whole.slice(start as usize..))
        } else {
            (None, backend.read(name, Some(start..object_bytes)).await?)
        };
        check_length(&directory, u64::from(entry.directory_bytes))?;
        check_hash(&directory, &entry.hash)?;
        let directory =
            Directory::decode(&directory, object_bytes).or_error(ErrorKind::Corrupt, damaged)?;
        if directory.blocks != source.disk.blocks() {
            let message = "it is of a disk of another size";
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        if let Some(whole) = &whole {
            // Who has it all says now what is damaged, and not when a guest comes there.
            for entry in directory.pages() {
                let range = entry.range();
                check_hash(&whole[range.start as usize..range.end as usize], &entry.hash)
                    .map_err(|error| error.context(format!("page at {}", entry.offset)))?;
            }
        }
        Ok((directory, whole))
    }

    /// Returns the extents that touch a range, in the order of the disk, cut to it.
    pub async fn map(&self, range: BlockRange) -> Result<Vec<Mapped>> {
        let pages = &self.directory.extent_pages;
        let first = pages.partition_point(|page| page.first_block <= range.start).saturating_sub(1);
        let last = pages.partition_point(|page| page.first_block < range.end());
        let mut mapped = Vec::new();
        let mut frames = FrameCursor::default();
        for number in first..last {
            let extents = self.extent_page(number).await?;
            let skip = extents.partition_point(|extent| extent.range().end() <= range.start);
            for extent in extents[skip..].iter().take_while(|extent| extent.start < range.end()) {
                let frame = self.frame(extent, &mut frames).await?;
                let shared = extent.range().intersection(range);
                let first = extent.first + (shared.start - extent.start) as u32;
                mapped.push(Mapped { range: shared, frame, first });
            }
        }
        Ok(mapped)
    }

    /// Reads all of the index.
    pub async fn load(&self) -> Result<Index> {
        let mut index = Index::default();
        for number in 0..self.directory.frame_pages.len() {
            index.frames.extend(self.frame_page(number).await?.iter());
        }
        for number in 0..self.directory.extent_pages.len() {
            for extent in self.extent_page(number).await?.iter() {
                self.check_in_frame(extent, index.frames[extent.frame as usize].blocks)?;
                index.extents.push(*extent);
            }
        }
        Ok(index)
    }

    /// Reads all of the index page by page, keeps none, and shows every frame; returns how many bytes of the disk it maps.
    pub async fn check(&self, mut see: impl FnMut(&FrameRef)) -> Result<u64> {
        let mut blocks = Vec::new();
        for number in 0..self.directory.frame_pages.len() {
            let page = self.read_frame_page(number).await?;
            page.iter().for_each(&mut see);
            blocks.extend(page.iter().map(|frame| frame.blocks as u16));
        }
        let mut mapped = 0;
        for number in 0..self.directory.extent_pages.len() {
            for extent in self.read_extent_page(number).await? {
                self.check_in_frame(&extent, blocks[extent.frame as usize].into())?;
                mapped += u64::from(extent.count);
            }
        }
        Ok(mapped * BLOCK_BYTES)
    }

    async fn frame(&self, extent: &IndexExtent, cursor: &mut FrameCursor) -> Result<FrameRef> {
        let number = extent.frame as usize / self.directory.frames_per_page;
        if cursor.number != Some(number) {
            cursor.page = self.frame_page(number).await?;
            cursor.number = Some(number);
        }
        let frame = cursor.page[extent.frame as usize % self.directory.frames_per_page];
        self.check_in_frame(extent, frame.blocks)?;
        Ok(frame)
    }

    fn check_in_frame(&self, extent: &IndexExtent, frame_blocks: u32) -> Result<()> {
        if extent.first + extent.count <= frame_blocks {
            return Ok(());
        }
        let message =
            format!("{}: the extent at block {} is off its frame", self.name, extent.start);
        Err(Error::new(ErrorKind::Corrupt, message))
    }

    async fn extent_page(&self, number: usize) -> Result<Arc<Vec<IndexExtent>>> {
        let id = PageId::Extents(number);
        if let Some(Page::Extents(page)) = self.kept().get(id) {
            return Ok(page);
        }
        let page = Arc::new(self.read_extent_page(number).await?);
        self.kept().put(id, Page::Extents(page.clone()));
        Ok(page)
    }

    async fn read_extent_page(&self, number: usize) -> Result<Vec<IndexExtent>> {
        let entry = &self.directory.extent_pages[number];
        let plain = self.page_bytes(entry).await?;
        // A page ends where the next one begins.
        let next = self.directory.extent_pages.get(number + 1);
        let limit = next.map_or(self.directory.blocks, |next| next.first_block);
        let (first, frames) = (entry.first_block, self.directory.frames);
        let extents = decode_extents(&plain, entry.rows, first, limit, frames);
        self.intact(entry, extents)
    }

    async fn frame_page(&self, number: usize) -> Result<Arc<Vec<FrameRef>>> {
        let id = PageId::Frames(number);
        if let Some(Page::Frames(page)) = self.kept().get(id) {
            return Ok(page);
        }
        let page = Arc::new(self.read_frame_page(number).await?);
        self.kept().put(id, Page::Frames(page.clone()));
        Ok(page)
    }

    async fn read_frame_page(&self, number: usize) -> Result<Vec<FrameRef>> {
        let entry = &self.directory.frame_pages[number];
        let plain = self.page_bytes(entry).await?;
        let frames = decode_frames(&plain, entry.rows, &self.source.packs);
        self.intact(entry, frames)
    }

    /// Checks every page against its hash, without opening it.
    pub async fn check_stored(&self) -> Result<()> {
        for entry in self.directory.pages() {
            let stored = self.stored(entry.range()).await?;
            check_hash(&stored, &entry.hash).map_err(|error| error.context(self.place(entry)))?;
        }
        Ok(())
    }

    /// Reads the plain bytes of a page.
    async fn page_bytes(&self, entry: &PageEntry) -> Result<Vec<u8>> {
        let opened = read_checked(&*self.backend, &self.name, || async {
            let stored = self.stored(entry.range()).await?;
            check_hash(&stored, &entry.hash)?;
            self.sealer.open_small(Purpose::IndexPage, &stored, MAX_PAGE_BYTES)
        });
        opened.await.map_err(|error| error.context(self.place(entry)))
    }

    async fn stored(&self, range: Range<u64>) -> Result<Bytes> {
        match &self.whole {
            Some(whole) => Ok(whole.slice(range.start as usize..range.end as usize)),
            None => {
                let bytes = self.backend.read(&self.name, Some(range.clone())).await?;
                check_length(&bytes, range.end - range.start)?;
                Ok(bytes)
            }
        }
    }

    fn intact<T>(
        &self,
        entry: &PageEntry,
        decoded: Result<T, crate::codec::Malformed>,
    ) -> Result<T> {
        decoded.or_error(ErrorKind::Corrupt, || self.place(entry))
    }

    fn place(&self, entry: &PageEntry) -> String {
        format!("{}, page at {}", self.name, entry.offset)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Pages are put in whole, so a panic elsewhere leaves nothing half done.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for IndexReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IndexReader({})", self.name)
    }
}

/// The page of frames looked at last: extents mostly walk through one.
#[derive(Default)]
struct FrameCursor {
    number: Option<usize>,
    page: Arc<Vec<FrameRef>>,
}

impl Kept {
    fn get(&mut self, id: PageId) -> Option<Page> {
        self.clock += 1;
        let kept = self.pages.get_mut(&id)?;
        kept.used = self.clock;
        Some(kept.page.clone())
    }

    fn put(&mut self, id: PageId, page: Page) {
        if self.pages.len() >= MAX_KEPT_PAGES {
            let oldest = self.pages.iter().min_by_key(|(_, kept)| kept.used).map(|(id, _)| *id);
            oldest.and_then(|id| self.pages.remove(&id));
        }
        self.pages.insert(id, KeptPage { page, used: self.clock });
    }
}

fn check_length(bytes: &[u8], expected: u64) -> Result<()> {
    if bytes.len() as u64 == expected {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, "it is cut short"))
}

fn check_hash(bytes: &[u8], expected: &Digest) -> Result<()> {
    if *blake3::hash(bytes).as_bytes() == expected.0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, "it is damaged: its bytes do not have their hash"))
}
