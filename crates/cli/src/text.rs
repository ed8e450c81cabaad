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

/// Writes how far away a moment to come is, or that it is over.
pub fn until(moment: Timestamp, now: Timestamp) -> String {
    if moment <= now { "expired".to_owned() } else { format!("in {}", duration(moment.since(now))) }
}

/// Writes a share in percent: one digit after the point below 10.
pub fn percent(share: f64) -> String {
    let value = share * 100.0;
    if value < 10.0 { format!("{value:.1}%") } else { format!("{value:.0}%") }
}

/// Writes which part of a whole something is, to the tenth of a per cent; `-` of nothing.
pub fn part_of(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ => format!("{:.1}%", 100.0 * part as f64 / whole as f64),
    }
}

/// Writes how many there are of a thing: `1 pack`, `2 packs`.
pub fn count_of(count: u64, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

/// Reads a count as people type it: a whole number from 1.
pub fn count<N: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<N, Error> {
    number(text).ok().filter(|number| *number >= N::from(1)).ok_or_else(|| no_number(text, 1))
}

/// Reads a whole number, which may be 0.
pub fn number<N: FromStr>(text: &str) -> Result<N, Error> {
    text.parse().map_err(|_| no_number(text, 0))
}

fn no_number(text: &str, least: u8) -> Error {
    let message = format!("`{}` is not a whole number from {least}", plain(text));
    Error::new(ErrorKind::Invalid, message).with_hint("write it in digits, as 3")
}

/// An amount of bytes as people type it: `20G`, `512MiB`, `1.5TB`, `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::new(ErrorKind::Invalid, format!("`{}` is not an amount of bytes", plain(text)))
                .with_hint("write it as 4096, 512MiB, 20G (= 20 GiB) or 1.5TB")
        };
        let digits =
            text.find(|sign: char| !sign.is_ascii_digit() && sign != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let value: f64 = number.parse().map_err(|_| wrong())?;
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => 1000,
            "mb" => 1000_u64.pow(2),
            "gb" => 1000_u64.pow(3),
            "tb" => 1000_u64.pow(4),
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            _ => return Err(wrong()),
        };
        let bytes = value * factor as f64;
        if bytes.is_finite() && bytes < (1_u64 << 60) as f64 {
            Ok(Self(bytes as u64))
        } else {
            Err(wrong())
        }
    }
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

    use super::{Size, Span, ago, count, count_of, duration, percent, until};

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
        assert_eq!(until(now.after(Duration::from_secs(3600)), now), "in 1 h");
        assert_eq!(until(Timestamp(0), now), "expired");
    }

    #[test]
    fn one_thing_is_not_several() {
        assert_eq!([0, 1, 2].map(|n| count_of(n, "pack")), ["0 packs", "1 pack", "2 packs"]);
    }

    #[test]
    fn a_count_is_a_whole_number_from_one() {
        assert_eq!(count::<u64>("3").unwrap(), 3);
        for text in ["0", "-1", "x", "1.5", ""] {
            let error = count::<u32>(text).unwrap_err();
            assert_eq!(error.to_string(), format!("`{text}` is not a whole number from 1"));
        }
    }

    #[test]
    fn a_small_share_keeps_a_digit() {
        assert_eq!([percent(0.034), percent(0.34), percent(1.0)], ["3.4%", "34%", "100%"]);
    }

    #[test]
    fn sizes_and_spans_are_read_as_people_type_them() {
        for (text, bytes) in [("4096", 4096), ("20G", 20 << 30), ("1.5TB", 1_500_000_000_000)] {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
        }
        assert_eq!("10min".parse::<Span>().unwrap(), Span(Duration::from_secs(600)));
        for text in ["", "G", "1.2.3", "-1", "1X", "999999999T"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        for text in ["", "10", "h", "1.5h", "-1s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
