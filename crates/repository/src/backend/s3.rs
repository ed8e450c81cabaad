//! Objects in an S3 store, of Amazon's or anybody else's making that has conditional puts (`If-Match`, `If-None-Match`).
//!
//! ```text
//! objects there? ─▶ create manifest <n>, unless there is one ─▶ move `latest` from <n-1> to <n>, unless it moved
//! ```
//!
//! The creation of a manifest decides who publishes a version: of several writers one makes it. Whoever finds it made while `latest` is
//! behind, because its writer died in between or is not there yet, moves `latest` first and then hears that the version is taken. So no
//! manifest is ever replaced, and `latest` never goes back. Packs are written again even if they are there: their date tells a prune
//! that somebody has just stored them. Commits and prunes of one process keep out of each other's way by [`Exclusive`]; of
//! several, only [`Bucket::claim`] keeps them apart.

mod bucket;
mod incoming;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{Epoch, Error, ErrorKind, Result, Timestamp, Version};
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{
    Error as StoreError, GetOptions, GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    UpdateVersion,
};
use tokio::sync::Mutex;

pub use bucket::Bucket;

use super::memory::missing;
use super::{
    Backend, Commit, Exclusive, Incoming, Listed, ObjectName, Pieces, Receive, check_commit,
    check_limit, decode_latest, encode_latest, gather, gather_range, not_found, too_short,
};
use crate::manifest::Manifest;
use incoming::{IncomingParts, PART_BYTES};

/// Requests of one commit or removal that are under way at once.
const REQUESTS: usize = 16;

/// Keeps the objects of one repository below a prefix of a bucket. Cheap to clone.
#[derive(Clone)]
pub struct S3 {
    store: Arc<AmazonS3>,
    root: String,
    /// How the place is called in messages.
    shown: String,
    turn: Arc<Mutex<()>>,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The store knows the credentials.
        write!(f, "S3 {{ {} }}", self.shown)
    }
}

/// `latest` as it was read, and by what it is told from any other.
struct Latest {
    version: Version,
    tag: UpdateVersion,
}

impl S3 {
    /// Removes every object of the repository, known or not.
    ///
    /// # Errors
    /// `Unavailable`; then some are left, and it can be done again.
    pub async fn remove_all(&self) -> Result<()> {
        let failed = |error| self.failed("cannot remove objects", error);
        let found = self.store.list(Some(&Path::from(self.root.as_str())));
        found
            .map_err(failed)
            .try_for_each_concurrent(REQUESTS, |found| async move {
                match self.store.delete(&found.location).await {
                    Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
                    Err(error) => Err(failed(error)),
                }
            })
            .await
    }

    fn path(&self, name: &ObjectName) -> Path {
        Path::from(format!("{}/{name}", self.root))
    }

    /// Turns what the store said into an error: its kind by what a caller can do.
    fn failed(&self, what: &str, error: StoreError) -> Error {
        bucket::failed(&format!("{what} in {}", self.shown), error)
    }

    /// Asks for an object or a range of it.
    async fn get(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<GetResult> {
        let needed = range.as_ref().map(|range| range.end);
        let options = GetOptions { range: range.map(Into::into), ..GetOptions::default() };
        let error = match self.store.get_opts(&self.path(name), options).await {
            Ok(answer) => return Ok(answer),
            Err(StoreError::NotFound { .. }) => return Err(not_found(name)),
            Err(error) => self.failed(&format!("cannot read {name}"), error),
        };
        // Stores say in many ways that a range begins behind the end.
        match (needed, self.size(name).await) {
            (Some(needed), Ok(Some(size_bytes))) if size_bytes < needed => {
                Err(too_short(name, size_bytes, needed))
            }
            _ => Err(error),
        }
    }

    /// The pieces of an answer of `limit` bytes at most; more is `Corrupt`.
    fn pieces(&self, name: ObjectName, answer: GetResult, limit: u64) -> Pieces {
        let this = self.clone();
        let pieces = answer.into_stream().scan(limit, move |left, piece| {
            let piece = match piece {
                Ok(piece) => match left.checked_sub(piece.len() as u64) {
                    Some(rest) => {
                        *left = rest;
                        Ok(piece)
                    }
                    None => {
                        let message = format!("{name} is longer than {limit} bytes");
                        Err(Error::new(ErrorKind::Corrupt, message))
                    }
                },
                Err(error) => Err(this.failed(&format!("cannot read all of {name}"), error)),
            };
            std::future::ready(Some(piece))
        });
        pieces.boxed()
    }

    async fn latest(&self) -> Result<Option<Latest>> {
        let name = ObjectName::Latest;
        let answer = match self.get(&name, None).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            answer => answer?,
        };
        let tag = UpdateVersion {
            e_tag: answer.meta.e_tag.clone(),
            version: answer.meta.version.clone(),
        };
        let bytes = gather(self.pieces(name, answer, name.limit_bytes())).await?;
        Ok(Some(Latest { version: decode_latest(&bytes)?, tag }))
    }

    /// Makes an object unless there is one; tells whether it did.
    async fn put_if(&self, name: &ObjectName, bytes: Bytes, mode: PutMode) -> Result<bool> {
        let options = PutOptions::from(mode);
        match self.store.put_opts(&self.path(name), bytes.into(), options).await {
            Ok(_) => Ok(true),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(false),
            Err(error) => Err(self.failed(&format!("cannot write {name}"), error)),
        }
    }

    /// Moves `latest` to a version whose manifest is there; another may have done so.
    async fn move_latest(&self, from: Option<Latest>, to: Version) -> Result<()> {
        let mode = from.map_or(PutMode::Create, |latest| PutMode::Update(latest.tag));
        if self.put_if(&ObjectName::Latest, encode_latest(to).into(), mode).await? {
            return Ok(());
        }
        match self.latest().await? {
            Some(latest) if latest.version >= to => Ok(()),
            _ => {
                let message = format!("`latest` in {} changed while it was moved", self.shown);
                Err(Error::new(ErrorKind::Conflict, message).with_hint("try again"))
            }
        }
    }

    /// Tells whether what could not be created is what was to be created.
    async fn is_there(&self, name: &ObjectName, bytes: &Bytes) -> Result<bool> {
        match self.read(name, None).await {
            Ok(there) => Ok(there == bytes),
            // The store knows of another who writes it, and has not decided yet.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let message = format!("{name} is being written by somebody else");
                Err(Error::new(ErrorKind::Unavailable, message).with_hint("try again"))
            }
            Err(error) => Err(error),
        }
    }

    async fn check_objects(&self, commit: &Commit) -> Result<()> {
        stream::iter(Manifest::peek(&commit.manifest)?.objects())
            .map(Ok)
            .try_for_each_concurrent(REQUESTS, |object| async move {
                let size_bytes = self.size(&object.name).await?;
                size_bytes.map(drop).ok_or_else(|| missing(&object.name))
            })
            .await
    }
}

#[async_trait]
impl Backend for S3 {
    async fn read(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes> {
        let Some(range) = range else {
            let answer = self.get(name, None).await?;
            check_limit(name, answer.meta.size)?;
            return gather(self.pieces(*name, answer, name.limit_bytes())).await;
        };
        gather_range(name, range.clone(), self.stream(name, range).await?).await
    }

    async fn stream(&self, name: &ObjectName, range: Range<u64>) -> Result<Pieces> {
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let answer = self.get(name, Some(range.clone())).await?;
        Ok(self.pieces(*name, answer, range.end - range.start))
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        match self.store.head(&self.path(name)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(&format!("cannot look at {name}"), error)),
        }
    }

    async fn write(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        let mut incoming = self.receive(*name).await?;
        for start in (0..bytes.len()).step_by(PART_BYTES) {
            let end = bytes.len().min(start + PART_BYTES);
            incoming = incoming.append(bytes.slice(start..end)).await?;
        }
        incoming.keep().await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        // The store knows whole directories only; the rest of the prefix filters.
        let below = prefix.rsplit_once('/').map_or("", |(directories, _)| directories);
        let below = Path::from(format!("{}/{below}", self.root));
        let mut found = self.store.list(Some(&below));
        let mut listed = Vec::new();
        while let Some(found) = found.next().await {
            let found = found.map_err(|error| self.failed("cannot list objects", error))?;
            let location = found.location.as_ref();
            let relative = location.strip_prefix(&self.root).and_then(|it| it.strip_prefix('/'));
            let Some(relative) = relative.filter(|it| it.starts_with(prefix)) else { continue };
            let Ok(name) = relative.parse() else { continue };
            let modified = Timestamp(found.last_modified.timestamp_millis());
            listed.push(Listed { name, size_bytes: found.size, modified });
        }
        listed.sort_by_key(|listed: &Listed| listed.name.to_string());
        Ok(listed)
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        match self.store.delete(&self.path(name)).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(&format!("cannot remove {name}"), error)),
        }
    }

    async fn head(&self) -> Result<Option<Version>> {
        Ok(self.latest().await?.map(|latest| latest.version))
    }

    async fn commit(&self, commit: Commit) -> Result<()> {
        let _turn = self.turn.lock().await;
        let latest = self.latest().await?;
        let head = latest.as_ref().map(|latest| latest.version);
        let epoch = match head {
            Some(head) => {
                Manifest::peek(&self.read(&ObjectName::Manifest(head), None).await?)?.epoch
            }
            None => Epoch::default(),
        };
        check_commit(head, epoch, &commit)?;
        self.check_objects(&commit).await?;
        let name = ObjectName::Manifest(commit.version);
        let created = self.put_if(&name, commit.manifest.clone(), PutMode::Create).await?;
        // Ours is what is there also if the answer to an earlier try got lost.
        let is_ours = created || self.is_there(&name, &commit.manifest).await?;
        self.move_latest(latest, commit.version).await?;
        if is_ours { Ok(()) } else { check_commit(Some(commit.version), Epoch::default(), &commit) }
    }

    async fn exclusive(&self) -> Result<Exclusive> {
        Ok(Exclusive::of(Arc::clone(&self.turn).lock_owned().await))
    }
}

#[async_trait]
impl Receive for S3 {
    async fn receive(&self, name: ObjectName) -> Result<Box<dyn Incoming>> {
        Ok(Box::new(IncomingParts::new(self.clone(), name)))
    }
}
