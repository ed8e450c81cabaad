//! Tells what kind of disk file something is from its first bytes, without trusting a name or another tool.
//!
//! Guessing formats has a history of holes: a guest that writes a qcow2 header with a backing file into its raw disk
//! must never make the host open that file. So the format is decided here once and told to `qemu-img`, and whatever
//! points to another file is refused before any tool opens it. A raw disk must show a partition table, a file system or a
//! boot sector, and must be as long as that says. Pure; layouts are those of QEMU's `docs/interop/qcow2.txt`,
//! `block/vmdk.c`, `block/vdi.c`, UEFI 2.10 section 5 and each file system's own header.

use std::fmt;

use collective_model::{Error, ErrorKind, Result};

/// Bytes of the beginning that [`recognise`] wants: enough for every signature below.
pub(crate) const HEAD_BYTES: usize = 128 << 10;
const SECTOR: u64 = 512;

/// A kind of disk file that can be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// The disk, byte for byte.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// VMware's, one sparse file.
    Vmdk,
    /// VirtualBox's.
    Vdi,
}

impl DiskFormat {
    /// Returns the name that QEMU has for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
        }
    }
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A signature: where it is and what it is.
struct Mark {
    offset: usize,
    bytes: &'static [u8],
    name: &'static str,
}

const fn mark(offset: usize, bytes: &'static [u8], name: &'static str) -> Mark {
    Mark { offset, bytes, name }
}

/// What people confuse with a disk; each with what to do.
const NOT_DISKS: [Mark; 11] = [
    mark(0, b"\x1f\x8b", "compressed with gzip: unpack it first"),
    mark(0, b"\xfd7zXZ\0", "compressed with xz: unpack it first"),
    mark(0, b"BZh", "compressed with bzip2: unpack it first"),
    mark(0, b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    mark(0, b"PK\x03\x04", "a zip archive: unpack it first"),
    mark(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    mark(257, b"ustar", "a tar archive (an .ova is one): unpack it and take the disk in it"),
    mark(0, b"# Disk DescriptorFile", "a list of vmdk files, not a disk: make one file of them"),
    mark(0, b"vhdxfile", "a vhdx file: convert it with qemu-img first"),
    mark(0, b"conectix", "a vhd file: convert it with qemu-img first"),
    mark(0, b"QED\0", "a qed file: convert it with qemu-img first"),
];

/// What shows that a raw file is a disk.
const RAW_DISKS: [Mark; 11] = [
    mark(510, b"\x55\xaa", "boot sector or partition table"),
    mark(512, b"EFI PART", "GPT"),
    mark(4096, b"EFI PART", "GPT of 4 KiB sectors"),
    mark(1080, b"\x53\xef", "ext file system"),
    mark(0, b"XFSB", "XFS"),
    mark(0x10040, b"_BHRfS_M", "btrfs"),
    mark(0, b"hsqs", "squashfs"),
    mark(0, b"LUKS\xba\xbe", "LUKS"),
    mark(4086, b"SWAPSPACE2", "swap space"),
    mark(32769, b"CD001", "ISO 9660"),
    mark(512, b"LABELONE", "LVM"),
];

/// Decides what the file is from its first bytes (up to [`HEAD_BYTES`]) and its size.
///
/// # Errors
/// `Invalid`, saying what it is instead, or what is wrong with it; the caller names the file.
pub(crate) fn recognise(head: &[u8], size_bytes: u64) -> Result<DiskFormat> {
    if size_bytes == 0 {
        return Err(invalid("it is empty"));
    }
    if head.starts_with(b"QFI\xfb") {
        check_qcow2(head)?;
        return Ok(DiskFormat::Qcow2);
    }
    if head.starts_with(b"KDMV") {
        check_vmdk(head)?;
        return Ok(DiskFormat::Vmdk);
    }
    if has(head, 0x40, b"\x7f\x10\xda\xbe") {
        check_vdi(head)?;
        return Ok(DiskFormat::Vdi);
    }
    if let Some(other) = NOT_DISKS.iter().find(|mark| has(head, mark.offset, mark.bytes)) {
        return Err(invalid(format!("it is {}", other.name)));
    }
    check_raw(head, size_bytes)?;
    Ok(DiskFormat::Raw)
}

fn check_qcow2(head: &[u8]) -> Result<()> {
    const EXTERNAL_DATA: u64 = 1 << 2;
    const CORRUPT: u64 = 1 << 1;
    let version = be32(head, 4).ok_or_else(cut_off)?;
    let backing = be64(head, 8).ok_or_else(cut_off)?;
    be64(head, 64).ok_or_else(cut_off)?;
    if !matches!(version, 2 | 3) {
        return Err(invalid(format!("it is a qcow file of version {version}, not 2 or 3")));
    }
    if backing != 0 {
        return Err(invalid("it is a qcow2 layer over another file, not a whole disk")
            .with_hint("merge it first: qemu-img convert -O qcow2 LAYER WHOLE"));
    }
    let features = if version == 3 { be64(head, 72).ok_or_else(cut_off)? } else { 0 };
    if features & EXTERNAL_DATA != 0 {
        return Err(invalid("it is a qcow2 file that keeps its data in another file")
            .with_hint("make one file of them: qemu-img convert -O qcow2 FILE WHOLE"));
    }
    if features & CORRUPT != 0 {
        return Err(invalid("it is a qcow2 file that is marked as damaged")
            .with_hint("try to repair a copy: qemu-img check -r all COPY"));
    }
    Ok(())
}

fn check_vmdk(head: &[u8]) -> Result<()> {
    let capacity = le64(head, 12).ok_or_else(cut_off)?;
    let descriptor = le64(head, 28).ok_or_else(cut_off)?;
    let length = le64(head, 36).ok_or_else(cut_off)?;
    let offset = usize::try_from(descriptor.saturating_mul(SECTOR)).unwrap_or(usize::MAX);
    let length = usize::try_from(length.saturating_mul(SECTOR)).unwrap_or(usize::MAX);
    if capacity == 0 {
        return Err(invalid("it is a vmdk file that only lists other files"));
    }
    // A descriptor that cannot be seen whole could name a parent unseen.
    let text = if descriptor == 0 {
        &[][..]
    } else {
        head.get(offset..offset.saturating_add(length))
            .ok_or_else(|| invalid("it is a vmdk file with its description out of place"))?
    };
    let text = String::from_utf8_lossy(text);
    if text.lines().any(|line| line.trim_start().starts_with("parentFileNameHint")) {
        return Err(invalid("it is a vmdk layer over another file, not a whole disk"));
    }
    Ok(())
}

fn check_vdi(head: &[u8]) -> Result<()> {
    let kind = le32(head, 0x4c).ok_or_else(cut_off)?;
    match kind {
        1 | 2 => Ok(()),
        _ => Err(invalid("it is a vdi layer over another file, not a whole disk")),
    }
}

fn check_raw(head: &[u8], size_bytes: u64) -> Result<()> {
    if !RAW_DISKS.iter().any(|mark| has(head, mark.offset, mark.bytes)) {
        return Err(invalid("it is not an image of a disk")
            .with_hint("a raw disk has a partition table, a file system or a boot sector"));
    }
    if !size_bytes.is_multiple_of(SECTOR) {
        return Err(invalid(format!(
            "it is cut off: {size_bytes} bytes are not a whole number of sectors"
        )));
    }
    let needed = needed_bytes(head);
    if needed > size_bytes {
        return Err(invalid(format!(
            "it is cut off: it has {size_bytes} bytes of a disk of at least {needed}"
        )));
    }
    Ok(())
}

/// Returns how long the disk must be by what its own tables say; 0 if they do not say.
fn needed_bytes(head: &[u8]) -> u64 {
    let gpt = [SECTOR, 4096].into_iter().find(|sector| has(head, *sector as usize, b"EFI PART"));
    if let Some(sector) = gpt {
        // The header tells where its copy is: in the last sector of the disk.
        let backup = le64(head, sector as usize + 32).unwrap_or(0);
        return backup.saturating_add(1).saturating_mul(sector);
    }
    if has(head, 1080, b"\x53\xef") {
        let low = le32(head, 1024 + 4).unwrap_or(0);
        let wide = le32(head, 1024 + 96).unwrap_or(0) & 0x80 != 0;
        let high = if wide { le32(head, 1024 + 0x150).unwrap_or(0) } else { 0 };
        let shift = le32(head, 1024 + 24).unwrap_or(0).min(6);
        let blocks = u64::from(high) << 32 | u64::from(low);
        return blocks.saturating_mul(1024 << shift);
    }
    if has(head, 510, b"\x55\xaa") && !is_fat_or_ntfs(head) { partitions_end(head) } else { 0 }
}

/// A file system's boot sector has code where a partition table would be.
fn is_fat_or_ntfs(head: &[u8]) -> bool {
    has(head, 3, b"NTFS    ") || has(head, 54, b"FAT") || has(head, 82, b"FAT32")
}

fn partitions_end(head: &[u8]) -> u64 {
    let entries = (0..4).map(|index| 446 + 16 * index);
    // An entry whose flag is neither 0 nor 0x80 is boot code, not a table.
    if entries.clone().any(|at| head.get(at).is_none_or(|flag| flag & 0x7f != 0)) {
        return 0;
    }
    entries
        .filter(|at| head.get(at + 4).is_some_and(|kind| *kind != 0))
        .map(|at| {
            let start = u64::from(le32(head, at + 8).unwrap_or(0));
            let count = u64::from(le32(head, at + 12).unwrap_or(0));
            (start + count) * SECTOR
        })
        .max()
        .unwrap_or(0)
}

fn has(head: &[u8], offset: usize, bytes: &[u8]) -> bool {
    head.get(offset..).is_some_and(|rest| rest.starts_with(bytes))
}

fn field<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..)?.first_chunk().copied()
}

fn be32(head: &[u8], at: usize) -> Option<u32> {
    field(head, at).map(u32::from_be_bytes)
}

fn be64(head: &[u8], at: usize) -> Option<u64> {
    field(head, at).map(u64::from_be_bytes)
}

fn le32(head: &[u8], at: usize) -> Option<u32> {
    field(head, at).map(u32::from_le_bytes)
}

fn le64(head: &[u8], at: usize) -> Option<u64> {
    field(head, at).map(u64::from_le_bytes)
}

fn cut_off() -> Error {
    invalid("it is cut off within its header")
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::{DiskFormat, recognise};

    fn with(marks: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; 8192];
        for (offset, bytes) in marks {
            head[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[track_caller]
    fn check_refused(head: &[u8], size_bytes: u64, message: &str) {
        let error = recognise(head, size_bytes).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }

    #[test]
    fn whole_disks_are_recognised() {
        let qcow2 = with(&[(0, b"QFI\xfb\0\0\0\x03")]);
        assert_eq!(recognise(&qcow2, 8192).unwrap(), DiskFormat::Qcow2);
        let vdi = with(&[(0x40, b"\x7f\x10\xda\xbe"), (0x4c, b"\x01")]);
        assert_eq!(recognise(&vdi, 8192).unwrap(), DiskFormat::Vdi);
        let boot = with(&[(510, b"\x55\xaa")]);
        assert_eq!(recognise(&boot, 8192).unwrap(), DiskFormat::Raw);
    }

    #[test]
    fn what_points_to_another_file_is_refused() {
        check_refused(
            &with(&[(0, b"QFI\xfb\0\0\0\x03"), (15, b"\x68")]),
            8192,
            "over another file",
        );
        check_refused(&with(&[(0, b"QFI\xfb\0\0\0\x03"), (79, b"\x04")]), 8192, "another file");
        check_refused(&with(&[(0, b"KDMV")]), 8192, "only lists other files");
        let parent = with(&[
            (0, b"KDMV"),
            (12, b"\x10"),
            (28, b"\x01"),
            (36, b"\x01"),
            (512, b"# Disk\nparentFileNameHint=\"/etc/shadow\"\n"),
        ]);
        check_refused(&parent, 8192, "over another file");
        check_refused(&with(&[(0, b"KDMV"), (12, b"\x10"), (28, b"\xff")]), 8192, "out of place");
        check_refused(&with(&[(0x40, b"\x7f\x10\xda\xbe"), (0x4c, b"\x04")]), 8192, "over another");
    }

    #[test]
    fn what_is_no_disk_is_told_by_name() {
        check_refused(b"", 0, "empty");
        check_refused(b"hello\n", 6, "not an image of a disk");
        check_refused(&with(&[(0, b"\x1f\x8b")]), 8192, "gzip");
        check_refused(&with(&[(257, b"ustar")]), 8192, ".ova");
        check_refused(b"QFI\xfb\0\0\0\x03", 8, "cut off within its header");
    }

    #[test]
    fn a_raw_disk_is_as_long_as_its_tables_say() {
        let gpt = with(&[(510, b"\x55\xaa"), (512, b"EFI PART"), (512 + 32, &[99])]);
        assert!(recognise(&gpt, 100 * 512).is_ok());
        check_refused(&gpt, 99 * 512, "cut off");
        let mbr = with(&[(450, b"\x83"), (454, &[8]), (458, &[92]), (510, b"\x55\xaa")]);
        assert!(recognise(&mbr, 100 * 512).is_ok());
        check_refused(&mbr, 99 * 512, "cut off");
        let ext = with(&[(1024 + 4, &[100]), (1024 + 24, &[2]), (1080, b"\x53\xef")]);
        assert!(recognise(&ext, 100 * 4096).is_ok());
        check_refused(&ext, 99 * 4096, "cut off");
        check_refused(&ext, 100 * 4096 + 1, "whole number of sectors");
    }
}
