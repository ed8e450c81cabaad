//! The `Range` header, as far as readers of repositories need it: one range of bytes (RFC 9110, section 14).

use std::ops::Range;

/// What a request asks of an object.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// All of it; also what a header that we do not understand means.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// Bytes that it does not have.
    Nothing,
}

/// Reads the header for an object of a given size.
pub fn asked(header: Option<&str>, size_bytes: u64) -> Asked {
    let Some((first, last)) = header.and_then(parse) else { return Asked::Whole };
    let part = match (first, last) {
        (Some(first), Some(last)) if first > last => return Asked::Whole,
        (Some(first), last) => {
            first..last.map_or(size_bytes, |last| size_bytes.min(last.saturating_add(1)))
        }
        (None, Some(count)) => size_bytes.saturating_sub(count)..size_bytes,
        (None, None) => return Asked::Whole,
    };
    if part.is_empty() { Asked::Nothing } else { Asked::Part(part) }
}

fn parse(header: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| match text {
        "" => Some(None),
        text => text.parse().ok().map(Some),
    };
    Some((number(first)?, number(last)?))
}

#[cfg(test)]
mod tests {
    use super::{Asked, asked};

    #[test]
    fn one_range_is_understood_and_cut_at_the_end() {
        for (header, part) in [
            ("bytes=0-0", 0..1),
            ("bytes=2-4", 2..5),
            ("bytes=7-", 7..10),
            ("bytes=7-99", 7..10),
            ("bytes=-3", 7..10),
            ("bytes=-99", 0..10),
            ("bytes=9-18446744073709551615", 9..10),
        ] {
            assert_eq!(asked(Some(header), 10), Asked::Part(part), "{header}");
        }
    }

    #[test]
    fn what_is_beyond_the_end_cannot_be_had_and_what_is_not_understood_is_the_whole() {
        for header in ["bytes=10-", "bytes=10-20", "bytes=-0"] {
            assert_eq!(asked(Some(header), 10), Asked::Nothing, "{header}");
        }
        for header in ["bytes=4-2", "bytes=0-1,3-4", "bytes=-", "lines=0-1", "bytes=x-1", ""] {
            assert_eq!(asked(Some(header), 10), Asked::Whole, "{header}");
        }
        assert_eq!(asked(None, 10), Asked::Whole);
    }
}
