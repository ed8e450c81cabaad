//! Amounts and moments as people read them: `3 min 20 s`, `2 d ago`. Pure.

use std::str::FromStr;
use std::time::Duration;

use collective_model::{Error, ErrorKind, Timestamp};

/// Replaces control signs, which could steer a terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|sign| if sign.is_control() { '?' } else { sign }).collect()
}

/// Writes a duration with its two largest units: `450 ms`, `3.2 s`, `5 min 10 s`, `2 d 3 h`.
pub fn duration(duration: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{} ms", duration.as_millis());
    }
    if seconds < 10 {
        return format!("{:.1} s", duration.as_secs_f64());
    }
    let mut left = seconds;
    let mut parts = Vec::new();
    for (unit, name) in UNITS {
        if left >= unit && parts.len() < 2 {
            parts.push(format!("{} {name}", left / unit));
            left %= unit;
        } else if !parts.is_empty() {
            break;
        }
    }
    parts.join(" ")
}

/// Writes how long ago a moment was.
pub fn ago(moment: Timestamp, now: Timestamp) -> String {
    format!("{} ago", duration(Duration::from_secs(now.since(moment).as_secs().max(1))))
}

/// Writes a share in percent: one digit after the point below 10.
pub fn percent(share: f64) -> String {
    let value = share * 100.0;
    if value < 10.0 { format!("{value:.1}%") } else { format!("{value:.0}%") }
}

/// A span of time as people type it: `45s`, `10min`, `2h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::new(ErrorKind::Invalid, format!("`{}` is not a span of time", plain(text)))
                .with_hint("write it as 45s, 10min, 2h or 7d")
        };
        let digits = text.find(|sign: char| !sign.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let value: u32 = number.parse().map_err(|_| wrong())?;
        let seconds: u64 = match unit.trim() {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(wrong()),
        };
        Ok(Self(Duration::from_secs(u64::from(value) * seconds)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use collective_model::Timestamp;

    use super::{Span, ago, duration, percent};

    #[test]
    fn a_duration_shows_its_two_largest_units() {
        let shown = [0, 450, 3_200, 59_000, 310_000, 7_200_000, 183_600_000]
            .map(|ms| duration(Duration::from_millis(ms)));
        assert_eq!(shown, ["0 ms", "450 ms", "3.2 s", "59 s", "5 min 10 s", "2 h", "2 d 3 h"]);
    }

    #[test]
    fn moments_are_told_from_now() {
        let now = Timestamp(1_000_000);
        assert_eq!(ago(Timestamp(0), now), "16 min 40 s ago");
    }

    #[test]
    fn a_small_share_keeps_a_digit() {
        assert_eq!([percent(0.034), percent(0.34), percent(1.0)], ["3.4%", "34%", "100%"]);
    }

    #[test]
    fn spans_are_read_as_people_type_them() {
        assert_eq!("10min".parse::<Span>().unwrap(), Span(Duration::from_secs(600)));
        for text in ["", "10", "h", "1.5h", "-1s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
