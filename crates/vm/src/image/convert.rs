//! Turns a disk file that a user has into a sparse raw disk.
//!
//! The format comes from `probe`, never from the name or from a tool's guess; no other file than the one given is
//! ever opened. Damage that `qemu-img` would fill with zeros (a file cut off at its end) is found first and
//! refused. The result appears under its name only when it is whole.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use collective_model::{BLOCK_BYTES, Error, ErrorKind, IoResultExt, Result, ResultExt};
use serde::Deserialize;

use super::probe::{self, DiskFormat};
use super::tool::Tool;

/// What came of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converted {
    /// What the file was.
    pub format: DiskFormat,
    /// Size of the disk, a multiple of 4 KiB.
    pub size_bytes: u64,
    /// What the raw file takes on the host's disk.
    pub allocated_bytes: u64,
}

/// Writes the disk in `file` (raw, qcow2, vmdk or vdi) to the sparse raw file `out`.
///
/// A disk that does not end at a 4 KiB boundary is padded with zeros.
///
/// # Errors
/// `Invalid`, naming the file, if it is empty, cut off, damaged, not a disk, or points to another file;
/// `Conflict` if something has it open for writing.
pub async fn convert(file: &Path, out: &Path) -> Result<Converted> {
    let told = || format!("cannot use {} as a disk", file.display());
    let format = recognise(file).map_err(|error| error.context(told()))?;
    let source = options(file, format)?;
    if format != DiskFormat::Raw {
        check(&source, file, format).await.map_err(|error| error.context(told()))?;
    }
    let dir = match out.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    let part = tempfile::Builder::new()
        .prefix(".convert-")
        .tempfile_in(dir)
        .or_io(|| format!("cannot write to {}", dir.display()))?;
    let tool = Tool::new("qemu-img", "qemu-utils")
        .args(["convert", "-S", "4k", "-O", "raw", "--image-opts"])
        .arg(&source)
        .arg(std::path::absolute(part.path()).or_io(told)?);
    run(&tool, "it is damaged").await.map_err(|error| error.context(told()))?;
    finish(format, part, out)
}

fn recognise(file: &Path) -> Result<DiskFormat> {
    let mut opened = File::options()
        .read(true)
        .open(file)
        .or_io(|| format!("cannot open {}", file.display()))?;
    let metadata = opened.metadata().or_io(|| format!("cannot look at {}", file.display()))?;
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::Invalid, "it is not a regular file"));
    }
    let mut head = Vec::new();
    (&mut opened)
        .take(probe::HEAD_BYTES as u64)
        .read_to_end(&mut head)
        .or_io(|| format!("cannot read {}", file.display()))?;
    probe::recognise(&head, metadata.len())
}

/// Names the file so that no part of its name and nothing within it is taken for more than it is.
fn options(file: &Path, format: DiskFormat) -> Result<String> {
    let path = std::path::absolute(file).or_io(|| format!("cannot find {}", file.display()))?;
    let path = path.to_str().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("the name of {} is not UTF-8", file.display()))
    })?;
    // A comma ends an option unless it is doubled.
    Ok(format!("driver={format},file.driver=file,file.filename={}", path.replace(',', ",,")))
}

/// One row of `qemu-img map`.
#[derive(Deserialize)]
struct MapRow {
    length: u64,
    offset: Option<u64>,
}

/// Refuses a file whose tables are damaged or point beyond its end.
async fn check(source: &str, file: &Path, format: DiskFormat) -> Result<()> {
    // 3 means that the file has more clusters than it uses, which harms nobody.
    const LEAKS_ONLY: i32 = 3;
    let tool = Tool::new("qemu-img", "qemu-utils").args(["check", "--image-opts", source]);
    let ended = tool.run(&mut |_| ()).await?;
    if !matches!(ended.code, Some(0 | LEAKS_ONLY)) {
        return Err(tool.failed(
            &ended,
            kind_of(&ended.complaint),
            &format!("it is cut off or damaged, by its {format} tables"),
        ));
    }
    let tool =
        Tool::new("qemu-img", "qemu-utils").args(["map", "--output=json", "--image-opts", source]);
    let map = run(&tool, "its map cannot be read").await?;
    let rows: Vec<MapRow> = serde_json::from_slice(&map)
        .or_error(ErrorKind::Internal, || "qemu-img map said something else".to_owned())?;
    let size_bytes = file.metadata().or_io(|| format!("cannot look at {}", file.display()))?.size();
    let end = rows
        .iter()
        .filter_map(|row| row.offset.map(|offset| offset.saturating_add(row.length)))
        .max()
        .unwrap_or(0);
    if end > size_bytes {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("it is cut off: it has {size_bytes} of at least {end} bytes"),
        ));
    }
    Ok(())
}

async fn run(tool: &Tool, message: &str) -> Result<Vec<u8>> {
    let ended = tool.run(&mut |_| ()).await?;
    if ended.code == Some(0) {
        return Ok(ended.output);
    }
    Err(tool.failed(&ended, kind_of(&ended.complaint), message))
}

fn kind_of(complaint: &str) -> ErrorKind {
    if complaint.contains("lock") { ErrorKind::Conflict } else { ErrorKind::Invalid }
}

/// Pads the disk and gives it its name.
fn finish(format: DiskFormat, part: tempfile::NamedTempFile, out: &Path) -> Result<Converted> {
    let told = || format!("cannot write {}", out.display());
    let disk = part.as_file();
    let size_bytes = disk.metadata().or_io(told)?.len().next_multiple_of(BLOCK_BYTES);
    if size_bytes == 0 {
        return Err(Error::new(ErrorKind::Invalid, "the disk in it has no bytes"));
    }
    disk.set_len(size_bytes).or_io(told)?;
    disk.sync_all().or_io(told)?;
    let allocated_bytes = disk.metadata().or_io(told)?.blocks() * 512;
    let path: PathBuf = out.to_owned();
    part.persist(&path).map_err(|error| error.error).or_io(told)?;
    Ok(Converted { format, size_bytes, allocated_bytes })
}
