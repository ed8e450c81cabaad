//! Version numbers and the fencing numbers of locks.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// The number of a version: whole numbers from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(NonZeroU64);

impl Version {
    /// The first version of everything.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// Makes a version of its number; none for 0.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Returns the number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0.get()
    }

    /// Returns the version that comes after `head`; the first if there is none yet.
    #[must_use]
    pub fn after(head: Option<Self>) -> Self {
        head.map_or(Self::FIRST, |head| Self(head.0.saturating_add(1)))
    }

    /// Returns the version before this one; none before the first.
    #[must_use]
    pub const fn previous(self) -> Option<Self> {
        Self::new(self.number() - 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("`{text}` is not a version number"))
                .with_hint("versions are whole numbers from 1")
        })
    }
}

/// The fencing number of a subscription's lock: grows with every new holder, 0 where no lock is needed.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
