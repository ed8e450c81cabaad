//! A source that somebody listens to: which blocks are read of it, by whoever stands before it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{BlockRange, Result};

use crate::source::{Source, StatusExtent};

/// Who wants to know what is read.
pub trait Listener: Send + Sync {
    /// Blocks were read, or are waited for. Called on the way of every read: returns at once.
    fn heard(&self, range: BlockRange);
}

/// A source and its listener.
pub struct Heard<L> {
    source: Arc<dyn Source>,
    listener: Arc<L>,
}

impl<L: Listener> Heard<L> {
    /// Has `listener` listen to `source`.
    #[must_use]
    pub fn new(source: Arc<dyn Source>, listener: Arc<L>) -> Self {
        Self { source, listener }
    }
}

#[async_trait]
impl<L: Listener> Source for Heard<L> {
    fn size_bytes(&self) -> u64 {
        self.source.size_bytes()
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let read = self.source.read_now(offset, buffer);
        if read {
            self.listener.heard(BlockRange::covering(offset, buffer.len() as u64));
        }
        read
    }

    async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        self.listener.heard(BlockRange::covering(offset, length as u64));
        self.source.read(offset, length).await
    }

    async fn status(&self, offset: u64, length: u64) -> Result<Vec<StatusExtent>> {
        self.source.status(offset, length).await
    }
}
