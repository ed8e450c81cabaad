//! A repository that is open.
use std::sync::Arc;

use collective_model::{Error, ErrorKind, Result, Version};

use crate::backend::{Backend, ObjectName};
use crate::descriptor::{Descriptor, Trust};
use crate::keys::RepositorySecret;
use crate::reader::VersionReader;

/// A repository that is open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repository {
    backend: Arc<dyn Backend>,
    descriptor: Arc<Descriptor>,
}

impl Repository {
    /// Makes a new repository: writes its descriptor.
    ///
    /// # Errors
    /// `Conflict` if there is one already; `Invalid` if the descriptor is out of bounds.
    pub async fn create(
        backend: Arc<dyn Backend>,
        descriptor: Descriptor,
        secret: Option<RepositorySecret>,
    ) -> Result<Self> {
        descriptor.check()?;
        let _ = secret;
        backend.write(&ObjectName::Descriptor, descriptor.encode().into()).await?;
        Ok(Self { backend, descriptor: Arc::new(descriptor) })
    }

    /// Opens a repository that exists, if it is the one that is trusted.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if it is damaged or another one; `Denied` if the secret is not its own.
    pub async fn open(backend: Arc<dyn Backend>, trust: Trust) -> Result<Self> {
        let bytes = backend.read(&ObjectName::Descriptor, None).await?;
        let descriptor = Descriptor::decode(&bytes)?;
        trust.check(&descriptor)?;
        Ok(Self { backend, descriptor: Arc::new(descriptor) })
    }

    /// Returns what the repository is.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Returns where its objects are.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Returns the highest version; none before the first.
    ///
    /// # Errors
    /// `Corrupt`, `Unavailable`.
    pub async fn head(&self) -> Result<Option<Version>> {
        self.backend.head().await
    }

    /// Returns the versions that can be read, oldest first.
    ///
    /// # Errors
    /// `Corrupt`, `Unavailable`.
    pub async fn versions(&self) -> Result<Vec<Version>> {
        Err(coming())
    }

    /// Opens a version.
    ///
    /// # Errors
    /// `NotFound`, naming the version and the head; `Corrupt`.
    pub async fn version(&self, version: Version) -> Result<VersionReader> {
        let _ = version;
        Err(coming())
    }
}

pub(crate) fn coming() -> Error {
    Error::new(ErrorKind::Internal, "not built yet")
}
