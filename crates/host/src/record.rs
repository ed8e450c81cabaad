//! Records on the host's disk: small JSON files that are replaced whole, so a crash leaves the old or the new one.
//!
//! One-time name beside the target, fsync, rename, fsync of the directory. Files are 0600, directories 0700: most
//! of what the host writes about people is nobody else's business.

use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use collective_model::{ErrorKind, IoResultExt, Result, ResultExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a record, at most; a larger file is not one of ours.
const RECORD_BYTES: u64 = 64 << 20;

/// Reads the record at `path`; none if there is no such file.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if metadata.len() > RECORD_BYTES => {
            return Err(collective_model::Error::new(
                ErrorKind::Corrupt,
                format!("{} is too large to be a record", path.display()),
            ));
        }
        _ => fs::read(path).or_io(|| format!("cannot read {}", path.display()))?,
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .or_error(ErrorKind::Corrupt, || format!("{} is damaged", path.display()))
}

/// Writes the record at `path`, whole and for good.
pub(crate) fn store<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(record)
        .or_error(ErrorKind::Internal, || format!("cannot write {}", path.display()))?;
    store_bytes(path, &bytes)
}

/// Writes bytes at `path`, whole and for good.
pub(crate) fn store_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let failed = || format!("cannot write {}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(parent).or_io(failed)?;
    file.write_all(bytes).or_io(failed)?;
    file.as_file().sync_all().or_io(failed)?;
    file.persist(path).map_err(|error| error.error).or_io(failed)?;
    sync_directory(parent)
}

/// Removes the file at `path` for good; nothing happens if there is none.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done.or_io(|| format!("cannot remove {}", path.display())),
    }
}

/// Moves a file for good. Done before is done: a source that is gone and a target that is there are fine.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && to.exists() => {}
        done => {
            done.or_io(|| format!("cannot move {} to {}", from.display(), to.display()))?;
        }
    }
    [from, to].iter().filter_map(|path| path.parent()).try_for_each(sync_directory)
}

/// Makes a directory that only its owner enters, with its parents.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .or_io(|| format!("cannot make the directory {}", path.display()))
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .or_io(|| format!("cannot make changes of {} durable", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use collective_model::ErrorKind;

    use super::{load, rename, store};

    #[test]
    fn a_record_is_read_back_and_is_its_owners_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        assert_eq!(load::<Vec<u32>>(&path).unwrap(), None);
        store(&path, &vec![1, 2]).unwrap();
        store(&path, &vec![3]).unwrap();
        assert_eq!(load::<Vec<u32>>(&path).unwrap(), Some(vec![3]));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_record_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        std::fs::write(&path, b"{").unwrap();
        let error = load::<Vec<u32>>(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("a.json"), "{error}");
    }

    #[test]
    fn a_move_may_be_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::write(&from, b"x").unwrap();
        rename(&from, &to).unwrap();
        rename(&from, &to).unwrap();
        assert!(rename(&directory.path().join("c"), &directory.path().join("d")).is_err());
    }
}
