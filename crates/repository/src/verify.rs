//! Reads everything and says what is damaged.
use collective_model::{Monitor, Result};

use crate::Repository;

/// What verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong; empty if all is well.
    pub damages: Vec<Damage>,
}

/// One damaged object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Its name.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

impl Repository {
    /// Reads every object that a version reaches and checks all of it.
    ///
    /// # Errors
    /// If the repository cannot be read now; damage is no error but in the report.
    pub async fn verify(&self, watch: &dyn Monitor) -> Result<VerifyReport> {
        let _ = watch;
        Err(collective_model::Error::new(collective_model::ErrorKind::Internal, "not built yet"))
    }
}
