//! Finds the programs of QEMU that this computer has.
//!
//! They come from the distribution (DESIGN 4.7). A missing one is named together with the Debian package that has it.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use collective_model::{Error, ErrorKind, Result};

use crate::tool::{self, Limits};

/// The program that runs machines, found and asked for its release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// Where it is.
    pub program: PathBuf,
    /// What it says it is, such as `7.2.22`.
    pub release: String,
}

impl Qemu {
    /// Finds `qemu-system-x86_64` in the path and asks it for its release.
    ///
    /// # Errors
    /// `NotFound` with the package to install; `Unavailable` when the program does not say what it is.
    pub async fn discover() -> Result<Self> {
        let program = find(&env::var_os("PATH").unwrap_or_default(), SYSTEM)?;
        let said = tool::run(&program, ["--version"], Limits::QUICK).await?;
        let said = String::from_utf8_lossy(&said);
        let release = said
            .split_once("version ")
            .and_then(|(_, rest)| rest.split([' ', '\n', '(']).next())
            .ok_or_else(|| {
                let text = format!("{} does not say its version", program.display());
                Error::new(ErrorKind::Unavailable, text)
            })?;
        Ok(Self { release: release.trim().to_owned(), program })
    }
}

/// A program of QEMU and the Debian package that has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    name: &'static str,
    package: &'static str,
}

const SYSTEM: Program = Program { name: "qemu-system-x86_64", package: "qemu-system-x86" };
/// Makes, maps and checks images.
pub(crate) const IMAGE: Program = Program { name: "qemu-img", package: "qemu-utils" };

/// Finds a program in the path of this process.
pub(crate) fn find_here(program: Program) -> Result<PathBuf> {
    find(&env::var_os("PATH").unwrap_or_default(), program)
}

/// Finds a program in a path.
fn find(path: &OsStr, program: Program) -> Result<PathBuf> {
    env::split_paths(path)
        .map(|directory| directory.join(program.name))
        .find(|file| {
            file.metadata()
                .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
        })
        .ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("{} is not installed", program.name))
                .with_hint(format!("apt-get install {}", program.package))
        })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use collective_model::ErrorKind;

    use super::{SYSTEM, find};

    #[test]
    fn a_missing_qemu_names_the_package_that_has_it() {
        let empty = tempfile::tempdir().unwrap();
        // A file of that name that cannot be run is no program.
        std::fs::write(empty.path().join("qemu-system-x86_64"), "").unwrap();
        let error = find(empty.path().as_os_str(), SYSTEM).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.to_string(), "qemu-system-x86_64 is not installed");
        assert_eq!(error.hint(), Some("apt-get install qemu-system-x86"));
        assert!(find(OsStr::new(""), SYSTEM).is_err());
    }
}
