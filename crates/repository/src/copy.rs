//! Copying a version into another backend: what is there already is not sent again, and the commit comes last.
//!
//! Nothing is unpacked: the copy has the same bytes, and so the same signature. It can be broken off anywhere and repeated.
//!
//! A copy that others publish to, or that is somebody's repository, takes versions one after the other. A *mirror* only shows
//! what is here: it takes whatever versions it lacks, also where some between them were removed.

use bytes::Bytes;
use collective_model::{Error, ErrorKind, Monitor, Progress, Result, Version};
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::backend::{Backend, Commit, ObjectName, encode_latest};
use crate::manifest::NeededObject;
use crate::reader::VersionReader;
use crate::repository::Repository;

/// Objects on their way at once; each is in memory as a whole.
const COPIES: usize = 2;

/// What a copy took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// Bytes that the version needs.
    pub needed_bytes: u64,
    /// Bytes of them that were not there yet.
    pub copied_bytes: u64,
}

impl Repository {
    /// Returns the versions that a copy lacks whose head is `head`, in the order in which it takes them. An empty copy begins
    /// where nothing is missing any more up to the head.
    ///
    /// # Errors
    /// `Conflict` if the one that the copy has to have next is not here.
    pub async fn versions_after(&self, head: Option<Version>) -> Result<Vec<Version>> {
        let mut versions = Vec::new();
        let mut next = self.head().await?;
        // Downwards, so that no more is looked for than is to be copied.
        while let Some(version) = next.filter(|version| Some(*version) > head) {
            if self.backend().size(&ObjectName::Manifest(version)).await?.is_none() {
                break;
            }
            versions.push(version);
            next = version.previous();
        }
        if let (Some(head), Some(needed)) = (head, next.filter(|next| Some(*next) > head)) {
            let message = format!(
                "version {needed}, which a copy that ends with version {head} has to have first, was removed"
            );
            return Err(
                Error::new(ErrorKind::Conflict, message).with_hint("copy to another, empty place")
            );
        }
        versions.reverse();
        Ok(versions)
    }

    /// Copies a version to where its repository has been made, after the versions that are there.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged here; `Conflict` if it cannot be the next version there.
    pub async fn copy_version(
        &self,
        version: Version,
        to: &dyn Backend,
        monitor: &dyn Monitor,
    ) -> Result<CopyStats> {
        let reader = self.version(version).await?;
        let stats = self.copy_objects(&reader, to, monitor).await?;
        let manifest = self.backend().read(&ObjectName::Manifest(version), None).await?;
        to.commit(Commit { version, manifest, epoch: reader.manifest().epoch }).await?;
        Ok(stats)
    }

    /// Returns the versions that a mirror lacks or does not show yet, oldest first.
    ///
    /// # Errors
    /// As [`head`](Self::head), and what the mirror says.
    pub async fn versions_missing(&self, mirror: &dyn Backend) -> Result<Vec<Version>> {
        let (head, mut missing) = (mirror.head().await?, Vec::new());
        for version in self.versions().await? {
            // One beyond its head was broken off before the last step.
            if Some(version) > head || mirror.size(&ObjectName::Manifest(version)).await?.is_none()
            {
                missing.push(version);
            }
        }
        Ok(missing)
    }

    /// Brings a version to a mirror where the descriptor of this repository is: its packs, then its manifest, then `latest`, if that is
    /// older there. Nobody else may write to the mirror meanwhile ([`Backend::exclusive`]).
    ///
    /// # Errors
    /// `Corrupt` if it is damaged here.
    pub async fn mirror_version(
        &self,
        version: Version,
        mirror: &dyn Backend,
        monitor: &dyn Monitor,
    ) -> Result<CopyStats> {
        let reader = self.version(version).await?;
        let stats = self.copy_objects(&reader, mirror, monitor).await?;
        let name = ObjectName::Manifest(version);
        mirror.write(&name, self.backend().read(&name, None).await?).await?;
        if mirror.head().await? < Some(version) {
            mirror.write(&ObjectName::Latest, encode_latest(version).into()).await?;
        }
        Ok(stats)
    }

    /// Copies all that a version needs beside its manifest.
    async fn copy_objects(
        &self,
        reader: &VersionReader,
        to: &dyn Backend,
        monitor: &dyn Monitor,
    ) -> Result<CopyStats> {
        let objects = reader.manifest().objects();
        let total_bytes = objects.iter().map(|object| object.size_bytes).sum();
        let mut stats = CopyStats { needed_bytes: total_bytes, copied_bytes: 0 };
        let mut done_bytes = 0;
        let mut copies = stream::iter(objects)
            .map(|object| async move {
                let is_new = self.copy_object(&object, to).await?;
                Ok::<_, Error>((object.size_bytes, is_new))
            })
            .buffer_unordered(COPIES);
        while let Some((size_bytes, is_new)) = copies.try_next().await? {
            done_bytes += size_bytes;
            stats.copied_bytes += if is_new { size_bytes } else { 0 };
            let (total_bytes, moved_bytes) = (Some(total_bytes), stats.copied_bytes);
            monitor.progress(Progress { done_bytes, total_bytes, moved_bytes });
        }
        Ok(stats)
    }

    /// Copies an object, unless it is there already; tells whether it did.
    async fn copy_object(&self, object: &NeededObject, to: &dyn Backend) -> Result<bool> {
        let NeededObject { name, size_bytes } = object;
        if to.size(name).await? == Some(*size_bytes) {
            return Ok(false);
        }
        let bytes = self.backend().read(name, None).await?;
        check(object, &bytes)?;
        to.write(name, bytes).await?;
        Ok(true)
    }
}

/// Checks what can be told from the name; all else is checked by who reads the copy.
fn check(object: &NeededObject, bytes: &Bytes) -> Result<()> {
    let is_right = match object.name {
        ObjectName::Pack(id) => *blake3::hash(bytes).as_bytes() == id.0,
        _ => true,
    };
    if is_right && bytes.len() as u64 == object.size_bytes {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, format!("{} is damaged", object.name)))
}
