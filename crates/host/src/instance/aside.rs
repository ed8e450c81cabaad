//! What can no longer be published: another host took the lock, or the user disk was deleted at the server. It is named, lies
//! aside in `kept/` and is deleted by nobody.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use collective_model::{Error, ErrorKind, IoResultExt, Result};

use super::owner::Owner;
use crate::record;
use crate::remote::Subscribed;
use crate::subscription::Subscription;

impl Owner {
    /// Takes note of the user disk that the server has. If that is another than the one here, which was deleted there, what
    /// is here and in no backup goes aside.
    pub(super) fn subscribed(&mut self, entry: &Subscribed) -> Result<()> {
        let (id, descriptor) = (entry.id, entry.descriptor.clone());
        match &self.disk {
            Some(disk) if disk.id == id => return Ok(()),
            Some(disk) if disk.layers.is_empty() => {}
            Some(_) => {
                self.lose("the user disk was deleted at the server, and a new one is there")?;
                self.keep_aside()?;
            }
            None => {
                self.disk = Some(Subscription::new(id, descriptor));
                return self.store_disk();
            }
        }
        self.change_disk(|disk| disk.replaced(id, descriptor))
    }

    /// Notes that what is here can no longer be published, and tells those who wait for it.
    pub(super) fn lose(&mut self, why: &str) -> Result<()> {
        tracing::warn!("{}: {why}", self.what());
        self.change_disk(|disk| disk.lose(why.to_owned()))?;
        self.notice = Some(why.to_owned());
        self.show();
        for (_, handle, _) in self.backup.waiting.drain(..) {
            handle.end(Err::<(), _>(lost(why)));
        }
        Ok(())
    }

    /// Moves the layers aside.
    pub(super) fn keep_aside(&mut self) -> Result<()> {
        let Some(disk) = &self.disk else { return Ok(()) };
        let (name, directory) = self.place_aside(&disk.layers)?;
        record::make_directory(&directory)?;
        for number in &disk.layers {
            let file = directory.join(crate::paths::user_layer_name(*number));
            record::rename(&self.paths.user_layer(*number), &file)?;
        }
        tracing::warn!("{}: unpublished layers are kept in {}", self.what(), directory.display());
        self.notice = Some(format!(
            "changes that could not be backed up are kept in {}",
            directory.display()
        ));
        self.change_disk(|disk| disk.kept_aside(name))
    }

    /// Finds a directory for layers: one that is not there, or holds some of these layers since a crash half way.
    fn place_aside(&self, layers: &[u64]) -> Result<(String, PathBuf)> {
        let is_begun = |directory: &Path| -> std::io::Result<bool> {
            let mut held = std::fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name()));
            let moved = |name: &OsStr| {
                let is = |layer: &u64| {
                    name == crate::paths::user_layer_name(*layer).as_str()
                        && !self.paths.user_layer(*layer).exists()
                };
                layers.iter().any(is)
            };
            held.try_fold(true, |all, name: std::io::Result<_>| Ok(all && moved(&name?)))
        };
        for number in 1_u64.. {
            let directory = self.paths.kept().join(number.to_string());
            match is_begun(&directory) {
                Ok(false) => {}
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error)
                        .or_io(|| format!("cannot look into {}", directory.display()));
                }
                _ => return Ok((number.to_string(), directory)),
            }
        }
        Err(Error::new(ErrorKind::Internal, "there is no number left for a directory"))
    }
}

/// The error of whoever wants to publish a disk whose lock is another's now.
pub(super) fn lost(why: &str) -> Error {
    Error::new(ErrorKind::Conflict, why)
        .with_hint("the changes are kept on this host: see `collective status`")
}
