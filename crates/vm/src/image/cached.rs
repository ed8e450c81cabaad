//! Built appliances that are kept, so that tests and demonstrations build each recipe once.
//!
//! An entry is a directory named by the hash of everything that the recipe's directory holds. A file lock lets one
//! builder in at a time, whatever program it is part of; the others wait and find the entry.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use collective_model::{ErrorKind, IoResultExt, Result, ResultExt};
use rustix::fs::{FlockOperation, flock};

use super::build::{BuildOptions, BuiltAppliance, Unwatched, build};
use super::recipe::Recipe;

/// Part of every key: raise it when the builder makes other disks of the same recipe.
const BUILDER: &[u8] = b"collective image builder 1";
/// Entries of one recipe that are kept beside the newest: a branch and the one it left.
const KEPT_ENTRIES: usize = 2;

/// Returns the appliance of the recipe in `recipe_dir`, built now if `cache_dir` does not hold it yet.
///
/// # Errors
/// As [`build`].
pub async fn build_cached(recipe_dir: &Path, cache_dir: &Path) -> Result<BuiltAppliance> {
    let recipe = Recipe::load(recipe_dir)?;
    let told = || format!("cannot use {}", cache_dir.display());
    std::fs::create_dir_all(cache_dir).or_io(told)?;
    let cache_dir = cache_dir.canonicalize().or_io(told)?;
    let name = recipe_dir.canonicalize().or_io(told)?;
    let name = name.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let entry = cache_dir.join(format!("{name}-{}", key(recipe_dir)?));
    let _lock = locked(cache_dir.join(format!("{name}.lock"))).await?;
    if let Ok(built) = BuiltAppliance::open(&entry) {
        return Ok(built);
    }
    let making = tempfile::Builder::new().prefix(".making-").tempdir_in(&cache_dir).or_io(told)?;
    let options = BuildOptions {
        version_text: "1".to_owned(),
        downloads: Some(cache_dir.join("downloads")),
        ..BuildOptions::default()
    };
    build(&recipe, &options, making.path(), &Unwatched).await?;
    forget_old(&cache_dir, &name);
    std::fs::rename(making.path(), &entry).or_io(told)?;
    BuiltAppliance::open(&entry)
}

/// Takes the lock; it is given back when the file is closed.
async fn locked(path: PathBuf) -> Result<File> {
    tokio::task::spawn_blocking(move || {
        let told = || format!("cannot lock {}", path.display());
        let file = File::options().create(true).append(true).open(&path).or_io(told)?;
        flock(&file, FlockOperation::LockExclusive).map_err(std::io::Error::from).or_io(told)?;
        Ok(file)
    })
    .await
    .or_error(ErrorKind::Internal, || "waiting for a lock was cut short".to_owned())?
}

/// Hashes names, modes and content of all files of the recipe.
fn key(recipe_dir: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(BUILDER);
    add(&mut hasher, recipe_dir).or_io(|| format!("cannot read {}", recipe_dir.display()))?;
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

fn add(hasher: &mut blake3::Hasher, dir: &Path) -> std::io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(dir)?.collect::<std::io::Result<_>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let metadata = entry.metadata()?;
        hasher.update(entry.file_name().as_bytes());
        hasher.update(&metadata.permissions().mode().to_le_bytes());
        if metadata.is_dir() {
            add(hasher, &entry.path())?;
        } else {
            let content = if metadata.is_symlink() {
                std::fs::read_link(entry.path())?.as_os_str().as_bytes().to_vec()
            } else {
                std::fs::read(entry.path())?
            };
            hasher.update(&(content.len() as u64).to_le_bytes());
            hasher.update(&content);
        }
        // Ends a directory or a file: no two trees run together.
        hasher.update(&[0]);
    }
    Ok(())
}

/// Removes the oldest entries of this recipe; those in use keep their open files.
fn forget_old(cache_dir: &Path, name: &str) {
    let Ok(entries) = std::fs::read_dir(cache_dir) else { return };
    let prefix = format!("{name}-");
    let mut old: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    old.sort_unstable();
    let surplus = old.len().saturating_sub(KEPT_ENTRIES);
    for (_, path) in old.into_iter().take(surplus) {
        let _ = std::fs::remove_dir_all(path);
    }
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn the_key_follows_content_and_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("recipe.toml");
        std::fs::write(&file, "a").unwrap();
        let first = key(dir.path()).unwrap();
        assert_eq!(key(dir.path()).unwrap(), first);
        std::fs::write(&file, "b").unwrap();
        let second = key(dir.path()).unwrap();
        std::fs::rename(&file, dir.path().join("other")).unwrap();
        assert_ne!(second, first);
        assert_ne!(key(dir.path()).unwrap(), second);
    }
}
