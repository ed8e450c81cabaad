//! Objects in memory: the twin of the other backends in tests, with a clock that tests set.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{Epoch, Error, ErrorKind, Result, Timestamp, Version};

use super::{
    Backend, Commit, Listed, ObjectName, Pieces, check_commit, check_limit, decode_latest,
    encode_latest, not_found, one_piece, too_short,
};
use crate::manifest::Manifest;

/// Keeps objects in memory. Nothing is bounded but by the memory there is: for tests and small tools.
#[derive(Debug, Default)]
pub struct Memory {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Stored>,
    now: Timestamp,
}

#[derive(Clone, Debug)]
struct Stored {
    name: ObjectName,
    bytes: Bytes,
    modified: Timestamp,
}

impl Memory {
    /// Makes an empty backend whose clock stands at 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the clock that dates what is written from now on.
    pub fn set_now(&self, now: Timestamp) {
        self.lock().now = now;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single step, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn get(&self, name: &ObjectName) -> Result<&Stored> {
        self.objects.get(&name.to_string()).ok_or_else(|| not_found(name))
    }

    fn put(&mut self, name: ObjectName, bytes: Bytes) {
        let modified = self.now;
        self.objects.insert(name.to_string(), Stored { name, bytes, modified });
    }

    fn head(&self) -> Result<Option<Version>> {
        match self.get(&ObjectName::Latest) {
            Ok(stored) => decode_latest(&stored.bytes).map(Some),
            Err(_) => Ok(None),
        }
    }

    fn commit(&mut self, commit: Commit) -> Result<()> {
        let head = self.head()?;
        let epoch = match head {
            Some(head) => Manifest::peek(&self.get(&ObjectName::Manifest(head))?.bytes)?.epoch,
            None => Epoch::default(),
        };
        check_commit(head, epoch, &commit)?;
        for object in Manifest::peek(&commit.manifest)?.objects() {
            self.get(&object.name).map_err(|_| missing(&object.name))?;
        }
        self.put(ObjectName::Manifest(commit.version), commit.manifest);
        self.put(ObjectName::Latest, encode_latest(commit.version).into());
        Ok(())
    }
}

/// The refusal of a commit that names an object which is not there.
pub(super) fn missing(name: &ObjectName) -> Error {
    Error::new(ErrorKind::Conflict, format!("the version names {name}, which is not stored"))
        .with_hint("publish again")
}

#[async_trait]
impl Backend for Memory {
    async fn read(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes> {
        let stored = self.lock().get(name)?.clone();
        let size_bytes = stored.bytes.len() as u64;
        let Some(range) = range else {
            check_limit(name, size_bytes)?;
            return Ok(stored.bytes);
        };
        if range.end > size_bytes {
            return Err(too_short(name, size_bytes, range.end));
        }
        Ok(stored.bytes.slice(range.start as usize..range.end as usize))
    }

    async fn stream(&self, name: &ObjectName, range: Range<u64>) -> Result<Pieces> {
        self.read(name, Some(range)).await.map(one_piece)
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        Ok(self.lock().get(name).ok().map(|stored| stored.bytes.len() as u64))
    }

    async fn write(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        self.lock().put(*name, bytes);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let state = self.lock();
        let matching = state.objects.range(prefix.to_owned()..);
        let listed =
            matching.take_while(|(text, _)| text.starts_with(prefix)).map(|(_, stored)| {
                let (name, modified) = (stored.name, stored.modified);
                Listed { name, size_bytes: stored.bytes.len() as u64, modified }
            });
        Ok(listed.collect())
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.lock().objects.remove(&name.to_string());
        Ok(())
    }

    async fn head(&self) -> Result<Option<Version>> {
        self.lock().head()
    }

    async fn commit(&self, commit: Commit) -> Result<()> {
        self.lock().commit(commit)
    }
}
