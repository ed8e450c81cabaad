//! Files that must appear whole or not at all, and that only their owner may read.

use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use collective_model::{IoResultExt, Result};

/// Makes a directory that is its owner's alone, with those above it, unless it is there already.
pub fn make_private_directory(path: &Path) -> Result<()> {
    let failed = || format!("cannot make the directory {}", path.display());
    if !path.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(path).or_io(failed)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).or_io(failed)
}

/// Writes a file with mode 0600: under a one-time name, synced, renamed, and the directory synced.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let parent = path.parent().unwrap_or(Path::new("."));
    // The temporary file is made with 0600, and keeps it.
    let mut file = tempfile::NamedTempFile::new_in(parent).or_io(failed)?;
    file.write_all(bytes).or_io(failed)?;
    file.as_file().sync_all().or_io(failed)?;
    file.persist(path).map_err(|error| error.error).or_io(failed)?;
    File::open(parent).and_then(|directory| directory.sync_all()).or_io(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::write_private;

    #[test]
    fn a_private_file_is_read_by_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        write_private(&path, b"secret").unwrap();
        write_private(&path, b"another").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode, std::fs::read(&path).unwrap()), (0o600, b"another".to_vec()));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
