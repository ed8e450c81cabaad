//! A local image as a source: for recorded starts, and to measure against.
//!
//! What the page cache holds is read at once; what would wait for the disk goes to a thread that may. Holes of the file
//! are shown as zeros. The file must not change while it is served.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{Error, ErrorKind, IoResultExt, Result, ResultExt};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::nowait;
use crate::source::{Source, StatusExtent, push_extent};

/// Extents found in one look at the file, at most; who asks for more asks again.
const EXTENTS: usize = 1024;

/// A raw image file, served as it is.
#[derive(Clone, Debug)]
pub struct RawFile {
    file: Arc<File>,
    size_bytes: u64,
}

impl RawFile {
    /// Opens an image for reading.
    ///
    /// # Errors
    /// `NotFound`, `Denied` and the like, naming the file.
    pub fn open(path: &Path) -> Result<Self> {
        let message = || format!("cannot open the image {}", path.display());
        let file = File::open(path).or_io(message)?;
        let metadata = file.metadata().or_io(message)?;
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::Invalid, message()).with_hint("it is not a file"));
        }
        Ok(Self { file: Arc::new(file), size_bytes: metadata.len() })
    }

    fn extents(&self, mut offset: u64, end: u64) -> Result<Vec<StatusExtent>> {
        let mut extents = Vec::new();
        while offset < end && extents.len() < EXTENTS {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
                Err(Errno::NXIO) => end,
                data => data.map_err(std::io::Error::from).or_io(|| "cannot find holes".into())?,
            };
            if data > offset {
                let until = data.min(end);
                push_extent(&mut extents, StatusExtent { length: until - offset, zero: true });
                offset = until;
                continue;
            }
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(offset))
                .map_err(std::io::Error::from)
                .or_io(|| "cannot find holes".into())?;
            let until = hole.min(end);
            push_extent(&mut extents, StatusExtent { length: until - offset, zero: false });
            offset = until;
        }
        Ok(extents)
    }
}

#[async_trait]
impl Source for RawFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> bool {
        nowait::read_exact_at(&self.file, buffer, offset)
    }

    async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        let file = Arc::clone(&self.file);
        tokio::task::spawn_blocking(move || {
            let mut data = vec![0; length];
            file.read_exact_at(&mut data, offset).or_io(|| "cannot read the image".to_owned())?;
            Ok(Bytes::from(data))
        })
        .await
        .or_error(ErrorKind::Internal, || "reading the image was cut short".to_owned())?
    }

    async fn status(&self, offset: u64, length: u64) -> Result<Vec<StatusExtent>> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.extents(offset, offset + length))
            .await
            .or_error(ErrorKind::Internal, || "looking for holes was cut short".to_owned())?
    }
}
