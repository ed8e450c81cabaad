//! Writes GRUB into a disk image without a loop device, as `grub-bios-setup` does for a real disk.
//!
//! The boot sector loads the first sector of the core image, whose address it is told; that sector loads the
//! rest, whose address and length stand in a list at its end. Both images come from Debian's `grub-pc-bin`; the offsets below
//! are GRUB's own (`include/grub/i386/pc/boot.h`, `util/setup.c`). The partition table stays as it is.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use collective_model::{Error, ErrorKind, IoResultExt, Result};

/// GRUB's boot sector.
const BOOT_IMAGE: &str = "/usr/lib/grub/i386-pc/boot.img";
const SECTOR_BYTES: usize = 512;
/// The partition table of the boot sector begins here.
const TABLE_OFFSET: usize = 440;
/// The boot sector's own parameters (a BIOS parameter block) end here; they are the disk's, not GRUB's.
const CODE_OFFSET: usize = 0x5a;
/// Where the boot sector keeps the address of the core image.
const CORE_ADDRESS: usize = 0x5c;
/// Where it has a jump that is wanted only for disks that BIOSes number wrongly.
const DRIVE_CHECK: usize = 0x66;
/// Where the core's first sector keeps the address of the rest.
const REST_ADDRESS: usize = 0x1f4;
/// Where it keeps the number of sectors of the rest.
const REST_COUNT: usize = 0x1fc;
/// Sectors of the BIOS boot partition; a core image that is larger would run into the file system.
const MOST_SECTORS: usize = 2000;

/// What the boot loader is written from and to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// The disk, with its partition table.
    pub disk: PathBuf,
    /// GRUB's core image.
    pub core: PathBuf,
    /// The first sector of the BIOS boot partition.
    pub first_sector: u64,
}

/// Writes the boot sector and the core image.
pub(crate) fn install(files: &BootFiles) -> Result<()> {
    let boot = std::fs::read(BOOT_IMAGE).or_io(|| format!("cannot read {BOOT_IMAGE}")).map_err(
        |error| {
            if error.kind() == ErrorKind::NotFound {
                Error::new(ErrorKind::Unavailable, "the boot loader is not installed")
                    .with_source(error)
                    .with_hint("apt-get install grub-pc-bin")
            } else {
                error
            }
        },
    )?;
    let core =
        std::fs::read(&files.core).or_io(|| format!("cannot read {}", files.core.display()))?;
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&files.disk)
        .or_io(|| format!("cannot open {}", files.disk.display()))?;
    let images = patched(boot, core, files.first_sector)?;
    write(&disk, &files.disk, &images, files.first_sector)
}

struct Images {
    boot: Vec<u8>,
    core: Vec<u8>,
}

fn write(disk: &File, path: &Path, images: &Images, first_sector: u64) -> Result<()> {
    let told = || format!("cannot write the boot loader to {}", path.display());
    disk.write_all_at(&images.boot[..3], 0).or_io(told)?;
    let code = &images.boot[CODE_OFFSET..TABLE_OFFSET];
    disk.write_all_at(code, CODE_OFFSET as u64).or_io(told)?;
    disk.write_all_at(&images.core, first_sector * SECTOR_BYTES as u64).or_io(told)
}

/// Tells each image where the next one is.
fn patched(mut boot: Vec<u8>, mut core: Vec<u8>, first_sector: u64) -> Result<Images> {
    core.resize(core.len().next_multiple_of(SECTOR_BYTES), 0);
    let sectors = core.len() / SECTOR_BYTES;
    if boot.len() != SECTOR_BYTES || !(2..=MOST_SECTORS).contains(&sectors) {
        return Err(Error::new(
            ErrorKind::Internal,
            format!("GRUB's images have {} bytes and {sectors} sectors", boot.len()),
        ));
    }
    boot[CORE_ADDRESS..CORE_ADDRESS + 8].copy_from_slice(&first_sector.to_le_bytes());
    boot[DRIVE_CHECK..DRIVE_CHECK + 2].copy_from_slice(&[0x90, 0x90]);
    core[REST_ADDRESS..REST_ADDRESS + 8].copy_from_slice(&(first_sector + 1).to_le_bytes());
    let rest = u16::try_from(sectors - 1).expect("the number of sectors was just bounded");
    core[REST_COUNT..REST_COUNT + 2].copy_from_slice(&rest.to_le_bytes());
    Ok(Images { boot, core })
}

#[cfg(test)]
mod tests {
    use super::patched;

    #[test]
    fn each_image_knows_where_the_next_one_is() {
        let images = patched(vec![0; 512], vec![7; 1300], 34).unwrap();
        assert_eq!(images.boot[0x5c], 34);
        assert_eq!(images.core.len(), 1536);
        assert_eq!((images.core[0x1f4], images.core[0x1fc]), (35, 2));
    }

    #[test]
    fn images_that_are_not_grubs_are_refused() {
        assert!(patched(vec![0; 100], vec![7; 1300], 34).is_err());
        assert!(patched(vec![0; 512], vec![7; 512], 34).is_err());
        assert!(patched(vec![0; 512], vec![7; 2 << 20], 34).is_err());
    }
}
