//! Which disks are published, and for what machine: from a build's directory, or from image files, converted.

use std::path::{Path, PathBuf};

use clap::Args;
use collective_host::publisher::Images;
use collective_model::{Hardware, Result};
use collective_vm::image::{BuiltAppliance, convert};

use crate::text::{self, Size};

/// The disks, and what the machine has.
#[derive(Args, Debug)]
pub struct ImageArguments {
    /// Image of a system disk: raw, qcow2, vmdk or vdi
    #[arg(value_name = "IMAGE", required_unless_present = "built")]
    image: Option<PathBuf>,
    /// Directory that `collective appliance build` wrote, instead of an image
    #[arg(long, value_name = "DIR", conflicts_with = "image")]
    built: Option<PathBuf>,
    /// Image of an empty, formatted user disk, from which everybody's begins
    #[arg(long, value_name = "FILE", conflicts_with = "built")]
    user_disk: Option<PathBuf>,
    /// Processors of the machine
    #[arg(
        long,
        value_name = "COUNT",
        value_parser = text::count::<u32>,
        allow_negative_numbers = true
    )]
    processors: Option<u32>,
    /// Memory of the machine
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Give the machine no network card
    #[arg(long)]
    no_network: bool,
    /// Size of an ephemeral disk
    #[arg(long, value_name = "SIZE")]
    ephemeral: Option<Size>,
}

impl ImageArguments {
    /// Finds the disks; image files are converted into `work`.
    pub async fn read(&self, work: &Path) -> Result<Images> {
        let mut images = match (&self.built, &self.image) {
            (Some(directory), _) => {
                let built = BuiltAppliance::open(directory)?;
                Images { system: built.system, user: built.user, hardware: built.hardware }
            }
            (None, image) => {
                let given = image.as_deref().unwrap_or(Path::new(""));
                let system = work.join("system.raw");
                convert(given, &system).await?;
                let user = match &self.user_disk {
                    Some(file) => {
                        let user = work.join("user.raw");
                        convert(file, &user).await?;
                        Some(user)
                    }
                    None => None,
                };
                Images { system, user, hardware: Hardware::default() }
            }
        };
        self.adjust(&mut images.hardware);
        images.hardware.check()?;
        Ok(images)
    }

    fn adjust(&self, hardware: &mut Hardware) {
        if let Some(processors) = self.processors {
            hardware.processors = processors;
        }
        if let Some(Size(bytes)) = self.memory {
            hardware.memory_mib = bytes >> 20;
        }
        if self.no_network {
            hardware.network = false;
        }
        if let Some(Size(bytes)) = self.ephemeral {
            hardware.ephemeral_bytes = bytes;
        }
    }
}
