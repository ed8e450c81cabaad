//! What a version says of the machine that it wants, and of its disks' parts in it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// What a disk is for, and so what happens to what is written to it. A machine has at most one disk of each role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskRole {
    /// As published at every boot.
    System,
    /// Kept and backed up: a person's own.
    User,
    /// Kept on the host, never backed up.
    Ephemeral,
}

impl DiskRole {
    /// Returns the name used in files, exports and guest serial numbers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Ephemeral => "ephemeral",
        }
    }
}

impl fmt::Display for DiskRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The machine that a version is made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Virtual processors, 1 to 64.
    pub processors: u32,
    /// Memory in MiB, 16 to 1,048,576.
    pub memory_mib: u64,
    /// Whether the machine has a network card (to the outside, behind address translation).
    pub network: bool,
    /// Size of the ephemeral disk in bytes; none if 0.
    pub ephemeral_bytes: u64,
}

impl Hardware {
    /// Checks the bounds of every field.
    ///
    /// # Errors
    /// `Invalid`, naming the field and its bounds.
    pub fn check(&self) -> Result<()> {
        bounded("processors", u64::from(self.processors), 1, 64)?;
        bounded("memory_mib", self.memory_mib, 16, 1 << 20)?;
        bounded("ephemeral_bytes", self.ephemeral_bytes, 0, 1 << 46)
    }
}

impl Default for Hardware {
    fn default() -> Self {
        Self { processors: 2, memory_mib: 1024, network: true, ephemeral_bytes: 0 }
    }
}

fn bounded(field: &str, value: u64, least: u64, most: u64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!("hardware: {field} is {value}, and must be from {least} to {most}"),
    ))
}
