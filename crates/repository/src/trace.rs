//! The order in which a recorded start touched a disk.
//!
//! A trace puts the blocks of a start first in the packs of the version that it was recorded for, and tells a host what to
//! fetch before it is asked. It is advice: a wrong one costs time, never content.

use bytes::Bytes;
use collective_model::{BlockRange, Error, ErrorKind, Result, ResultExt};

use crate::codec::{Malformed, Reader, put_varint, put_zigzag};

/// Ranges that a trace may have: 20 MiB in memory and file at the worst. What comes after them is left out.
pub const MAX_TRACE_RANGES: usize = 1 << 20;

/// Bytes that an encoded trace has at most: a count, and two numbers of 10 bytes for each range.
pub(crate) const MAX_TRACE_BYTES: usize = 10 + 20 * MAX_TRACE_RANGES;

/// Which blocks a start touched, in the order of first touch; then, after a mark, what other starts were reported to touch.
///
/// The mark is a range of no blocks, which to a reader that knows no mark means nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The runs of blocks; none twice, if the recorder did well.
    pub ranges: Vec<BlockRange>,
}

impl Trace {
    /// Writes the trace compactly: a count, then for each range how far it begins from the end of the one before, and its length.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let ranges = &self.ranges[..self.ranges.len().min(MAX_TRACE_RANGES)];
        let mut bytes = Vec::with_capacity(4 * ranges.len() + 4);
        put_varint(&mut bytes, ranges.len() as u64);
        let mut end = 0;
        for range in ranges {
            put_zigzag(&mut bytes, range.start.wrapping_sub(end) as i64);
            put_varint(&mut bytes, range.count);
            end = range.end();
        }
        bytes
    }

    /// Returns what the start touched that was recorded.
    #[must_use]
    pub fn recorded(&self) -> &[BlockRange] {
        let mark = self.ranges.iter().position(|range| range.is_empty());
        &self.ranges[..mark.unwrap_or(self.ranges.len())]
    }

    /// Puts what others were reported to touch after what was recorded.
    #[must_use]
    pub fn with_reported(&self, reported: &[BlockRange]) -> Self {
        let recorded = self.recorded();
        let mark = BlockRange::new(recorded.last().map_or(0, |last| last.end()), 0);
        let marked = [mark].into_iter().chain(reported.iter().copied());
        let added = marked.filter(|_| !reported.is_empty());
        Self { ranges: recorded.iter().copied().chain(added).collect() }
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let ranges =
            decode(bytes).or_error(ErrorKind::Corrupt, || "the trace is damaged".to_owned())?;
        Ok(Self { ranges })
    }

    /// Reads a stored trace: checks its hash, then opens it.
    pub(crate) fn open(
        stored: &Bytes,
        hash: &collective_model::Digest,
        sealer: &crate::sealer::Sealer,
    ) -> Result<Self> {
        if *blake3::hash(stored).as_bytes() != hash.0 {
            let message = "it is damaged: its bytes do not have the hash of the manifest";
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let purpose = crate::sealer::Purpose::Trace;
        Self::decode(&sealer.open_small(purpose, stored, MAX_TRACE_BYTES)?)
    }
}

fn decode(bytes: &[u8]) -> Result<Vec<BlockRange>, Malformed> {
    let mut reader = Reader::new(bytes);
    let count = reader.varint()? as usize;
    // Two bytes are the least that a range has: a count beyond that is a lie, not a reason to allocate.
    if count > MAX_TRACE_RANGES || count > bytes.len() / 2 {
        return Err(Malformed("it promises too many ranges"));
    }
    let mut ranges = Vec::with_capacity(count);
    let mut end = 0_u64;
    for _ in 0..count {
        let start = end.wrapping_add(reader.zigzag()? as u64);
        let range = BlockRange::new(start, reader.varint()?);
        end = start.checked_add(range.count).ok_or(Malformed("a range is too long"))?;
        ranges.push(range);
    }
    reader.finish()?;
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use collective_model::{BlockRange, ErrorKind};
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::Trace;

    #[test]
    fn what_was_reported_stays_apart_from_what_was_recorded_also_in_a_file() {
        let ranges = |ranges: &[(u64, u64)]| -> Vec<_> {
            ranges.iter().map(|(start, count)| BlockRange::new(*start, *count)).collect()
        };
        let recorded = Trace { ranges: ranges(&[(7, 2), (1, 3)]) };
        assert_eq!(recorded.recorded(), recorded.ranges);
        assert_eq!(recorded.with_reported(&[]), recorded);
        let merged = recorded.with_reported(&ranges(&[(64, 64)]));
        assert_eq!(merged.ranges, ranges(&[(7, 2), (1, 3), (4, 0), (64, 64)]));
        let read = Trace::decode(&merged.encode()).unwrap();
        assert_eq!(read.recorded(), recorded.ranges);
        assert_eq!(read.with_reported(&ranges(&[(0, 1)])).ranges[3..], ranges(&[(0, 1)]));
    }

    proptest! {
        #[test]
        fn a_trace_survives(ranges in prop::collection::vec((0_u64..1 << 40, 0_u64..1 << 20), 0..50)) {
            let ranges = ranges.into_iter().map(|(start, count)| BlockRange::new(start, count));
            let trace = Trace { ranges: ranges.collect() };
            prop_assert_eq!(Trace::decode(&trace.encode()).unwrap(), trace);
        }

        #[test]
        fn any_bytes_give_a_trace_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Err(error) = Trace::decode(&bytes) {
                prop_assert_eq!(error.kind(), ErrorKind::Corrupt);
            }
        }
    }
}
