//! An object on its way into an S3 store: one put if it is small, else parts, sent one after the other as they fill.
//!
//! Parts are no object until the store is told to join them. What is given up tells it to throw them away; what a crash leaves is the
//! store's to expire (a life-cycle rule for incomplete uploads, which the guide asks for).

use std::fmt;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use collective_model::Result;
use object_store::{MultipartUpload, ObjectStoreExt};

use super::S3;
use crate::backend::{Incoming, ObjectName};

/// Bytes of a part: the least that every store takes, since each upload under way has one in memory.
pub(super) const PART_BYTES: usize = 5 << 20;

/// An object that becomes one of a store.
pub(super) struct IncomingParts {
    s3: S3,
    name: ObjectName,
    gathered: BytesMut,
    upload: Option<Box<dyn MultipartUpload>>,
}

impl fmt::Debug for IncomingParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IncomingParts {{ {} in {:?} }}", self.name, self.s3)
    }
}

impl IncomingParts {
    pub(super) fn new(s3: S3, name: ObjectName) -> Self {
        Self { s3, name, gathered: BytesMut::new(), upload: None }
    }

    /// Sends what was gathered as a part.
    async fn send(&mut self, part: Bytes) -> Result<()> {
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => {
                let path = self.s3.path(&self.name);
                let begun = self.s3.store.put_multipart(&path).await;
                self.upload.insert(begun.map_err(|error| failed(&self.s3, &self.name, error))?)
            }
        };
        let sent = upload.put_part(part.into()).await;
        sent.map_err(|error| failed(&self.s3, &self.name, error))
    }
}

fn failed(s3: &S3, name: &ObjectName, error: object_store::Error) -> collective_model::Error {
    s3.failed(&format!("cannot store {name}"), error)
}

#[async_trait]
impl Incoming for IncomingParts {
    async fn append(mut self: Box<Self>, mut piece: Bytes) -> Result<Box<dyn Incoming>> {
        // More than one part has to be there before the first is sent: what fits into one is put as it is.
        while self.gathered.len() + piece.len() > PART_BYTES {
            let fitting = piece.split_to(PART_BYTES - self.gathered.len());
            let part = if self.gathered.is_empty() {
                fitting
            } else {
                self.gathered.extend_from_slice(&fitting);
                self.gathered.split().freeze()
            };
            self.send(part).await?;
        }
        self.gathered.extend_from_slice(&piece);
        Ok(self)
    }

    async fn keep(mut self: Box<Self>) -> Result<()> {
        let last = self.gathered.split().freeze();
        if self.upload.is_none() {
            let put = self.s3.store.put(&self.s3.path(&self.name), last.into()).await;
            return put.map(drop).map_err(|error| failed(&self.s3, &self.name, error));
        }
        self.send(last).await?;
        let upload = self.upload.as_mut().expect("it was begun");
        let joined = upload.complete().await;
        joined.map_err(|error| failed(&self.s3, &self.name, error))?;
        self.upload = None;
        Ok(())
    }
}

impl Drop for IncomingParts {
    fn drop(&mut self) {
        let (Some(mut upload), Ok(runtime)) =
            (self.upload.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let shown = format!("{self:?}");
        runtime.spawn(async move {
            if let Err(error) = upload.abort().await {
                tracing::debug!("the parts of {shown} are left to expire: {error}");
            }
        });
    }
}
