//! Amounts as people read them.

use std::fmt;

/// An amount of bytes that displays with a decimal unit and at most three digits: `25.9 MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteCount(pub u64);

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 999.5 && unit + 1 < UNITS.len() {
            value /= 1000.0;
            unit += 1;
        }
        let digits = if unit == 0 || value >= 99.95 {
            0
        } else if value >= 9.995 {
            1
        } else {
            2
        };
        f.pad(&format!("{value:.digits$} {}", UNITS[unit]))
    }
}

#[cfg(test)]
mod tests {
    use super::ByteCount;

    #[test]
    fn amounts_have_at_most_three_digits() {
        let shown = [0, 999, 1000, 25_900_000, 131_000_000, 999_999, u64::MAX]
            .map(|bytes| ByteCount(bytes).to_string());
        assert_eq!(shown, ["0 B", "999 B", "1.00 kB", "25.9 MB", "131 MB", "1.00 MB", "18.4 EB"]);
    }
}
