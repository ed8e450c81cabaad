//! What runs of damage share: files that are read, changed and written back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The files of some directories, by their paths.
pub(crate) type Files = BTreeMap<PathBuf, Vec<u8>>;

/// What whoever has them open removes meanwhile is left out.
pub(crate) fn read_files(directories: &[PathBuf]) -> Files {
    let items = directories.iter().flat_map(|directory| std::fs::read_dir(directory).unwrap());
    let paths = items.map(|item| item.unwrap().path());
    paths.filter_map(|path| Some((path.clone(), std::fs::read(path).ok()?))).collect()
}

/// Makes files what they shall be; those that are it already are left alone.
pub(crate) fn write_files(before: &Files, after: &Files) {
    for (path, bytes) in after.iter().filter(|(path, bytes)| before.get(*path) != Some(bytes)) {
        std::fs::write(path, bytes).unwrap();
    }
    for path in before.keys().filter(|path| !after.contains_key(*path)) {
        let _ = std::fs::remove_file(path);
    }
}

/// A directory in memory where there is one: thousands of runs write much, and none of it need stay.
pub(crate) fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap()
}
