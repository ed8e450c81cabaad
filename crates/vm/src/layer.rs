//! Layers at rest: qcow2 files with the writes since a version.
//!
//! They track writes in pieces of 4 KiB (`extended_l2`, clusters of 128 KiB), so a small write never fetches what is around it,
//! and a snapshot carries only what changed. The file names no backing: what is below is said at launch, because
//! it changes with every publication. Everything here looks at one layer alone.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use collective_model::{BLOCK_BYTES, BlockRange, Error, ErrorKind, Result, ResultExt};
use serde::Deserialize;

use crate::qemu::{self, IMAGE};
use crate::tool::{self, Limits};

/// Why these: one cluster has 32 pieces, and a 32nd of 128 KiB is one block.
const OPTIONS: &str = "extended_l2=on,cluster_size=128k";

/// What a qcow2 file begins with, where the number of entries of its first table and then the table's place stand, and what
/// of the header that is (QEMU's docs/interop/qcow2.txt).
const MAGIC: &[u8] = b"QFI\xfb";
const TABLE_ENTRIES_AT: usize = 36;
const HEADER_BYTES: usize = 48;
/// Entries of the first table that are looked at: disks of 128 TiB. A longer table is for QEMU.
const FIRST_TABLE_ENTRIES: usize = 128 << 10;

/// A run of blocks that a layer has something to say about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerExtent {
    /// Which blocks of the disk.
    pub range: BlockRange,
    /// What they hold.
    pub what: LayerData,
}

/// What a run of blocks holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerData {
    /// Bytes, in the layer's own file from there.
    Data {
        /// Where in the file the first block is.
        file_offset: u64,
    },
    /// Zeroes, whatever is below.
    Zero,
}

/// What a check of a layer found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Clusters that nothing uses, as a machine that was killed leaves them: harmless.
    pub leaked_clusters: u64,
}

/// Makes an empty layer for a disk of `size_bytes`.
///
/// # Errors
/// `Conflict` when the file exists; `Unavailable` when there is no room; `NotFound` without `qemu-img`.
pub async fn create(path: &Path, size_bytes: u64) -> Result<()> {
    let shown = path.display();
    if path.exists() {
        return Err(Error::new(ErrorKind::Conflict, format!("{shown} exists already")));
    }
    let size = size_bytes.to_string();
    let options = [OsStr::new("-o"), OsStr::new(OPTIONS), path.as_os_str(), OsStr::new(&size)];
    let arguments = ["create", "-q", "-f", "qcow2"].map(OsStr::new).into_iter().chain(options);
    image_tool(arguments, Limits::QUICK)
        .await
        .map_err(|error| error.context(format!("cannot make the layer {shown}")))?;
    Ok(())
}

/// Lists what a layer holds, in the order of the disk. Works while QEMU has it open; only a frozen layer's map stays true.
///
/// # Errors
/// `Corrupt` when the file is no layer or is damaged; `NotFound` without it or without `qemu-img`.
pub async fn map(path: &Path) -> Result<Vec<LayerExtent>> {
    present(path)?;
    if holds_nothing(path) {
        return Ok(Vec::new());
    }
    let said =
        image_tool(on_file(&["map", "--output=json", "-U", "-f", "qcow2"], path), Limits::WALK)
            .await
            .map_err(|error| error.context(format!("cannot read the layer {}", path.display())))?;
    parse_map(&said)
        .map_err(|error| error.context(format!("cannot use the map of {}", path.display())))
}

/// Tells whether the first table of a layer names no second one: nothing was written then, which is found out here
/// without a process. What cannot be read is for QEMU to judge.
fn holds_nothing(path: &Path) -> bool {
    let first_table = || {
        let file = File::open(path)?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        let (magic, rest) = header.split_at(TABLE_ENTRIES_AT);
        let (entries, offset) = rest.split_at(size_of::<u32>());
        let entries = u32::from_be_bytes(entries.try_into().unwrap_or_default()) as usize;
        let offset = u64::from_be_bytes(offset.try_into().unwrap_or_default());
        if !magic.starts_with(MAGIC) || entries > FIRST_TABLE_ENTRIES {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let mut table = vec![0; entries * size_of::<u64>()];
        file.read_exact_at(&mut table, offset)?;
        std::io::Result::Ok(table)
    };
    first_table().is_ok_and(|table| table.iter().all(|byte| *byte == 0))
}

/// Checks a layer that nobody has open.
///
/// # Errors
/// `Corrupt` when it is damaged; `Conflict` is reported by QEMU as a failure when a machine has it open.
pub async fn check(path: &Path) -> Result<Checked> {
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        leaks: u64,
        #[serde(default)]
        corruptions: u64,
        #[serde(rename = "check-errors", default)]
        errors: u64,
    }
    present(path)?;
    // `-r leaks` also gives the leaked clusters back, after which the exit code says whether anything else is wrong.
    let said = image_tool(
        on_file(&["check", "--output=json", "-r", "leaks", "-f", "qcow2"], path),
        Limits::WALK,
    )
    .await
    .map_err(|error| error.context(format!("the layer {} cannot be used", path.display())))?;
    let said: Said = serde_json::from_slice(&said)
        .or_error(ErrorKind::Corrupt, || "qemu-img's verdict is no JSON".to_owned())?;
    if said.corruptions + said.errors > 0 {
        let text = format!("the layer {} is damaged", path.display());
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    Ok(Checked { leaked_clusters: said.leaks })
}

fn present(path: &Path) -> Result<()> {
    if path.is_file() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotFound, format!("there is no layer {}", path.display())))
}

fn on_file<'a>(arguments: &'a [&'a str], path: &'a Path) -> impl Iterator<Item = &'a OsStr> {
    arguments.iter().map(OsStr::new).chain([path.as_os_str()])
}

async fn image_tool<'a>(
    arguments: impl IntoIterator<Item = &'a OsStr>,
    limits: Limits,
) -> Result<Vec<u8>> {
    tool::run(&qemu::find_here(IMAGE)?, arguments, limits).await
}

/// One run of bytes, as `qemu-img map` says it.
#[derive(Deserialize)]
struct Run {
    start: u64,
    length: u64,
    present: bool,
    zero: bool,
    data: bool,
    offset: Option<u64>,
}

fn parse_map(said: &[u8]) -> Result<Vec<LayerExtent>> {
    let runs: Vec<Run> = serde_json::from_slice(said)
        .or_error(ErrorKind::Corrupt, || "qemu-img's map is no JSON".to_owned())?;
    runs.iter().filter(|run| run.present).map(extent).collect()
}

fn extent(run: &Run) -> Result<LayerExtent> {
    let refuse = |why: &str| {
        let text = format!("{} bytes at {} {why}", run.length, run.start);
        Err(Error::new(ErrorKind::Corrupt, text))
    };
    // Only the end of a disk may lie inside a block, and then the whole block is meant.
    if !run.start.is_multiple_of(BLOCK_BYTES) {
        return refuse("do not begin at a block");
    }
    let range = BlockRange::covering(run.start, run.length);
    let what = match run.offset {
        _ if run.zero => LayerData::Zero,
        Some(file_offset) if run.data => LayerData::Data { file_offset },
        _ => return refuse("are compressed, or somewhere else"),
    };
    Ok(LayerExtent { range, what })
}

#[cfg(test)]
mod tests {
    use collective_model::BlockRange;

    use super::{HEADER_BYTES, LayerData, LayerExtent, holds_nothing, parse_map};

    #[test]
    fn a_layer_holds_nothing_only_if_its_whole_first_table_is_there_and_empty() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut image = vec![0; 100];
        image[..4].copy_from_slice(b"QFI\xfb");
        image[39] = 3;
        image[47] = 64;
        let judged = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            holds_nothing(file.path())
        };
        assert!(judged(&image));
        assert!(!judged(&image[..87]), "the table is cut short");
        assert!(!judged(&image[..HEADER_BYTES - 1]), "the header is cut short");
        for (at, byte) in [(64, 1), (87, 1), (0, b'q'), (36, 1), (40, 1)] {
            let before = std::mem::replace(&mut image[at], byte);
            assert!(!judged(&image), "byte {at}");
            image[at] = before;
        }
    }

    #[test]
    fn a_map_keeps_what_is_written_and_what_is_zeroed_and_drops_what_is_below() {
        let said = br#"[
            {"start":0,"length":8192,"depth":0,"present":false,"zero":true,"data":false,"offset":655360},
            {"start":8192,"length":4096,"depth":0,"present":true,"zero":false,"data":true,"offset":663552},
            {"start":131072,"length":12288,"depth":0,"present":true,"zero":true,"data":false},
            {"start":262144,"length":131072,"depth":0,"present":true,"zero":true,"data":false,"offset":9}]"#;
        let zero = |start, count| LayerExtent {
            range: BlockRange::new(start, count),
            what: LayerData::Zero,
        };
        let data = LayerExtent {
            range: BlockRange::new(2, 1),
            what: LayerData::Data { file_offset: 663_552 },
        };
        assert_eq!(parse_map(said).unwrap(), [data, zero(32, 3), zero(64, 32)]);
    }

    #[test]
    fn a_map_that_cannot_be_used_is_refused() {
        for said in [
            "",
            r#"[{"start":1,"length":4096,"depth":0,"present":true,"zero":true,"data":false}]"#,
            r#"[{"start":0,"length":4096,"depth":0,"present":true,"zero":false,"data":true}]"#,
        ] {
            assert!(parse_map(said.as_bytes()).is_err(), "{said}");
        }
    }
}
