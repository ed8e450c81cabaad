//! Where the objects of all repositories are: directories of the server's own, or an S3 store.
//!
//! Each repository has a place named by its id. A place without a row in the database goes only if there is nothing in it yet: with the
//! wrong database every place would look forgotten. A place in S3 is marked with the server's fingerprint, since the lock on the server's
//! directory does not reach there.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use collective_api::trust::Fingerprint;
use collective_model::{Error, ErrorKind, IoResultExt, RepositoryId, Result, ResultExt};
use collective_repository::Descriptor;
use collective_repository::backend::{Backend, Bucket, Directory, ObjectName, Receive};

use crate::files::make_private_directory;

/// The directory of repositories in the server's own.
const REPOSITORIES: &str = "repositories";
/// How a directory is called while it is being removed.
const REMOVED_PREFIX: &str = ".removed-";

/// Keeps repositories.
#[derive(Debug)]
pub enum Objects {
    Directory(PathBuf),
    S3(Bucket),
}

impl Objects {
    /// Opens the bucket if there is one, else a directory in the server's own.
    pub async fn open(bucket: Option<Bucket>, dir: &Path, owner: &Fingerprint) -> Result<Self> {
        let Some(bucket) = bucket else {
            let path = dir.join(REPOSITORIES);
            make_private_directory(&path)?;
            return Ok(Self::Directory(path));
        };
        bucket.claim(&owner.to_string()).await?;
        Ok(Self::S3(bucket))
    }

    /// Opens a repository. One that is not there is an error now or, in S3, at its first use.
    pub fn repository(&self, id: RepositoryId) -> Result<Arc<dyn Receive>> {
        Ok(match self {
            Self::Directory(path) => Arc::new(Directory::open(path.join(id.to_string()))?),
            Self::S3(bucket) => Arc::new(bucket.repository(&id.to_string())),
        })
    }

    /// Makes the place of a repository. One that a crash left is taken over.
    pub async fn create(&self, descriptor: &Descriptor) -> Result<()> {
        let id = descriptor.id;
        if let Self::Directory(path) = self {
            let path = path.join(id.to_string());
            let made = tokio::task::spawn_blocking(move || Directory::create(path)).await;
            made.or_error(ErrorKind::Internal, || "file work was broken off".to_owned())??;
        }
        self.repository(id)?.write(&ObjectName::Descriptor, descriptor.encode().into()).await
    }

    /// Tells whether there is a place for a repository.
    pub async fn exists(&self, id: RepositoryId) -> Result<bool> {
        match self {
            Self::Directory(path) => Ok(path.join(id.to_string()).exists()),
            Self::S3(bucket) => {
                let objects = bucket.repository(&id.to_string());
                Ok(objects.size(&ObjectName::Descriptor).await?.is_some())
            }
        }
    }

    /// Removes a repository with all its objects. It may have been begun before.
    pub async fn remove(&self, id: RepositoryId) -> Result<()> {
        let path = match self {
            Self::S3(bucket) => return bucket.repository(&id.to_string()).remove_all().await,
            Self::Directory(path) => path.join(id.to_string()),
        };
        let removed = path.with_file_name(format!("{REMOVED_PREFIX}{id}"));
        let failed = || format!("cannot remove the objects of repository {id}");
        // The rename takes it away from running requests at once; both steps may find the other's work done by an earlier try.
        for done in
            [tokio::fs::rename(&path, &removed).await, tokio::fs::remove_dir_all(&removed).await]
        {
            match done {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                done => done.or_io(failed)?,
            }
        }
        Ok(())
    }

    /// Removes what a crash left of repositories that were just being made or removed: what no row names, and has no versions.
    pub async fn sweep(&self, known: &HashSet<RepositoryId>) -> Result<()> {
        let path = match self {
            Self::S3(bucket) => return sweep_bucket(bucket, known).await,
            Self::Directory(path) => path,
        };
        let failed = || format!("cannot list {}", path.display());
        let mut entries = tokio::fs::read_dir(path).await.or_io(failed)?;
        while let Some(entry) = entries.next_entry().await.or_io(failed)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(REMOVED_PREFIX) {
                tokio::fs::remove_dir_all(entry.path()).await.or_io(failed)?;
            } else if name.parse().is_ok_and(|id| !known.contains(&id)) {
                remove_unborn(&entry.path()).await?;
            }
        }
        Ok(())
    }
}

/// The error for a repository that the database knows and that is not here.
pub fn missing(id: RepositoryId) -> Error {
    let message = format!("the objects of repository {id} are not here");
    Error::new(ErrorKind::NotFound, message)
        .with_hint("copy them from where the server kept them before, and start it again")
}

async fn sweep_bucket(bucket: &Bucket, known: &HashSet<RepositoryId>) -> Result<()> {
    for name in bucket.repositories().await? {
        if !name.parse().is_ok_and(|id| !known.contains(&id)) {
            continue;
        }
        let objects = bucket.repository(&name);
        match objects.list("").await?[..] {
            [] => {}
            [ref only] if only.name == ObjectName::Descriptor => objects.remove_all().await?,
            _ => tracing::warn!("{objects:?} is of no repository of this database"),
        }
    }
    Ok(())
}

/// Removes a directory that no row names if there is nothing in it but what is there before the first upload.
async fn remove_unborn(path: &Path) -> Result<()> {
    let failed = || format!("cannot remove {}", path.display());
    let mut files = Vec::new();
    let mut entries = tokio::fs::read_dir(path).await.or_io(failed)?;
    while let Some(entry) = entries.next_entry().await.or_io(failed)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        let unborn = name == ObjectName::Descriptor.to_string() || name.starts_with('.');
        if !unborn || !entry.file_type().await.or_io(failed)?.is_file() {
            tracing::warn!("{} is of no repository of this database", path.display());
            return Ok(());
        }
        files.push(entry.path());
    }
    for file in files {
        tokio::fs::remove_file(file).await.or_io(failed)?;
    }
    tokio::fs::remove_dir(path).await.or_io(failed)
}
