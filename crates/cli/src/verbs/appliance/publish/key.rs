//! The signing keys of appliances: one file each, `NAME.key`, readable by its owner only. 64 hexadecimal signs, the seed
//! of an ed25519 key.

use std::io::{ErrorKind as Io, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use collective_model::{
    ApplianceName, Digest, Error, ErrorKind, IoResultExt as _, Result, ResultExt as _,
};
use collective_repository::{PublisherKey, SigningKey};
use zeroize::Zeroizing;

/// Loads the key of an appliance that exists already.
pub fn load(keys: &Path, name: &ApplianceName, publisher: PublisherKey) -> Result<SigningKey> {
    let path = path(keys, name);
    let hint =
        "publish from where the appliance was published first, or name its directory with --keys";
    match read(&path)? {
        Some(key) if key.publisher() == publisher => Ok(key),
        Some(_) => {
            let message =
                format!("`{}` is not the key that `{name}` is signed with", path.display());
            Err(Error::new(ErrorKind::Denied, message).with_hint(hint))
        }
        None => {
            let message = format!("the signing key of `{name}` is not at `{}`", path.display());
            Err(Error::new(ErrorKind::Denied, message).with_hint(hint))
        }
    }
}

/// Loads the key of a new appliance, left from an earlier try, or makes it.
pub fn load_or_create(keys: &Path, name: &ApplianceName) -> Result<SigningKey> {
    let path = path(keys, name);
    if let Some(key) = read(&path)? {
        return Ok(key);
    }
    let key = SigningKey::generate();
    let cannot = || format!("cannot write the signing key `{}`", path.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(keys).or_io(cannot)?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&path).or_io(cannot)?;
    let text = Zeroizing::new(format!("{}\n", Digest(key.seed())));
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).or_io(cannot)?;
    Ok(key)
}

fn path(keys: &Path, name: &ApplianceName) -> PathBuf {
    keys.join(format!("{name}.key"))
}

fn read(path: &Path) -> Result<Option<SigningKey>> {
    let cannot = || format!("cannot read the signing key `{}`", path.display());
    let text = match std::fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == Io::NotFound => return Ok(None),
        Err(error) => return Err(error).or_io(cannot),
    };
    let mode = path.metadata().or_io(cannot)?.permissions().mode();
    if mode & 0o077 != 0 {
        let message = format!("the signing key `{}` can be read by others", path.display());
        return Err(Error::new(ErrorKind::Denied, message)
            .with_hint(format!("chmod 600 {}", path.display())));
    }
    let seed: Digest = text
        .trim()
        .parse()
        .map_err(|_| "it is no seed of 64 hexadecimal characters")
        .or_error(ErrorKind::Corrupt, cannot)?;
    Ok(Some(SigningKey::from_seed(seed.0)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use collective_model::ErrorKind;
    use collective_repository::SigningKey;

    use super::{load, load_or_create, path};

    #[test]
    fn a_key_is_made_once_and_belongs_to_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let (keys, name) = (directory.path().join("keys"), "debian".parse().unwrap());
        let made = load_or_create(&keys, &name).unwrap();
        let again = load_or_create(&keys, &name).unwrap();
        assert_eq!(made.publisher(), again.publisher());
        assert_eq!(load(&keys, &name, made.publisher()).unwrap().seed(), made.seed());
        let mode = path(&keys, &name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_wrong_a_missing_and_an_open_key_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (keys, name) = (directory.path(), "debian".parse().unwrap());
        let other = SigningKey::generate().publisher();
        assert_eq!(load(keys, &name, other).unwrap_err().kind(), ErrorKind::Denied);
        let made = load_or_create(keys, &name).unwrap();
        assert_eq!(load(keys, &name, other).unwrap_err().kind(), ErrorKind::Denied);
        let file = path(keys, &name);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = load(keys, &name, made.publisher()).unwrap_err();
        assert!(error.to_string().contains("can be read by others"), "{error}");
    }

    #[test]
    fn a_damaged_key_is_corrupt() {
        let directory = tempfile::tempdir().unwrap();
        let name = "debian".parse().unwrap();
        load_or_create(directory.path(), &name).unwrap();
        std::fs::write(path(directory.path(), &name), "zz").unwrap();
        let error = load_or_create(directory.path(), &name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}
