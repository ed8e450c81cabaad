//! A backend that misbehaves on command: what tests wrap around another to make bad days happen.
//!
//! Each call is shown to a script, which answers with a [`Fault`] or lets it pass. Calls are counted, so that tests can also say
//! how many round trips a thing may take.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{Error, ErrorKind, Result, Timestamp, Version};

use super::{Backend, Commit, Exclusive, Listed, ObjectName, Pieces, one_piece};

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallKind {
    /// `read`
    Read,
    /// `size`
    Size,
    /// `write`
    Write,
    /// `list`
    List,
    /// `delete`
    Delete,
    /// `head`
    Head,
    /// `commit`
    Commit,
}

/// One call, as the script sees it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// How many calls there were before.
    pub number: u64,
    /// What it does.
    pub kind: CallKind,
    /// The object that it is about, if it is about one.
    pub name: Option<ObjectName>,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It goes through.
    Pass,
    /// It fails as `Unavailable` and changes nothing.
    Refuse,
    /// It is carried out, but the caller hears `Unavailable`: the answer got lost.
    LoseAnswer,
    /// The byte at this place of what was read (counted round) has all its bits turned.
    Flip(usize),
    /// What was read loses its last bytes, silently.
    Shorten(usize),
    /// A read goes through after such a time.
    Stall(Duration),
}

type Script = Box<dyn Fn(Call) -> Fault + Send + Sync>;

/// Passes calls on to another backend as a script wants it.
pub struct Faulty {
    inner: Arc<dyn Backend>,
    script: Script,
    calls: AtomicU64,
}

impl Faulty {
    /// Wraps a backend.
    pub fn new(
        inner: Arc<dyn Backend>,
        script: impl Fn(Call) -> Fault + Send + Sync + 'static,
    ) -> Self {
        Self { inner, script: Box::new(script), calls: AtomicU64::new(0) }
    }

    /// Returns how many calls there were.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    fn next(&self, kind: CallKind, name: Option<&ObjectName>) -> Fault {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        (self.script)(Call { number, kind, name: name.copied() })
    }

    /// Runs a call that changes something.
    async fn change(
        &self,
        fault: Fault,
        call: impl Future<Output = Result<()>> + Send,
    ) -> Result<()> {
        match fault {
            Fault::Refuse => Err(refused()),
            Fault::LoseAnswer => call.await.and(Err(refused())),
            _ => call.await,
        }
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Faulty").field(&self.inner).finish()
    }
}

fn refused() -> Error {
    Error::new(ErrorKind::Unavailable, "the test took the backend away")
}

fn distort(bytes: Bytes, fault: Fault) -> Bytes {
    match fault {
        Fault::Flip(at) if !bytes.is_empty() => {
            let mut copy = bytes.to_vec();
            let at = at % copy.len();
            copy[at] = !copy[at];
            copy.into()
        }
        Fault::Shorten(by) => bytes.slice(..bytes.len().saturating_sub(by)),
        _ => bytes,
    }
}

#[async_trait]
impl Backend for Faulty {
    async fn read(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes> {
        match self.next(CallKind::Read, Some(name)) {
            Fault::Refuse | Fault::LoseAnswer => Err(refused()),
            Fault::Stall(time) => {
                tokio::time::sleep(time).await;
                self.inner.read(name, range).await
            }
            fault => Ok(distort(self.inner.read(name, range).await?, fault)),
        }
    }

    async fn stream(&self, name: &ObjectName, range: Range<u64>) -> Result<Pieces> {
        self.read(name, Some(range)).await.map(one_piece)
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        match self.next(CallKind::Size, Some(name)) {
            Fault::Refuse | Fault::LoseAnswer => Err(refused()),
            _ => self.inner.size(name).await,
        }
    }

    async fn write(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        let fault = self.next(CallKind::Write, Some(name));
        self.change(fault, self.inner.write(name, bytes)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        match self.next(CallKind::List, None) {
            Fault::Refuse | Fault::LoseAnswer => Err(refused()),
            _ => self.inner.list(prefix).await,
        }
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        let fault = self.next(CallKind::Delete, Some(name));
        self.change(fault, self.inner.delete(name)).await
    }

    async fn head(&self) -> Result<Option<Version>> {
        match self.next(CallKind::Head, None) {
            Fault::Refuse | Fault::LoseAnswer => Err(refused()),
            _ => self.inner.head().await,
        }
    }

    async fn commit(&self, commit: Commit) -> Result<()> {
        let fault = self.next(CallKind::Commit, Some(&ObjectName::Manifest(commit.version)));
        self.change(fault, self.inner.commit(commit)).await
    }

    async fn exclusive(&self) -> Result<Exclusive> {
        self.inner.exclusive().await
    }

    async fn remove_leftovers(&self, before: Timestamp) -> Result<u64> {
        self.inner.remove_leftovers(before).await
    }
}
