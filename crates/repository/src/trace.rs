//! The order in which a recorded start touched a disk.

use collective_model::{BlockRange, Result};

/// Which blocks a start touched, in the order of first touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The runs of blocks; none twice, if the recorder did well.
    pub ranges: Vec<BlockRange>,
}

impl Trace {
    /// Writes the trace compactly.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let _ = bytes;
        Ok(Self::default())
    }
}
