//! Where in which registry an appliance is: `host[:port]/path`, with `:tag` for one version of it.

use std::fmt;
use std::str::FromStr;

use collective_model::{Error, ErrorKind, Result, Version};

/// Signs that a reference may have.
const LENGTH_MAX: usize = 255;

/// A repository of a registry, maybe one version in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryReference {
    /// `host[:port]`.
    pub host: String,
    /// The path of the repository there.
    pub path: String,
    /// The version that the tag names, if there is a tag.
    pub version: Option<Version>,
}

impl RegistryReference {
    /// Tells whether the registry is on this very computer, where other tools speak plain HTTP, too.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let name = match self.host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.host.split(':').next().unwrap_or_default(),
        };
        name == "localhost"
            || name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        self.version.map_or(Ok(()), |version| write!(f, ":{version}"))
    }
}

impl FromStr for RegistryReference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| {
            let shown: String = text.chars().take(120).collect();
            let message = format!("`{shown}` is not a place in a registry");
            Error::new(ErrorKind::Invalid, message).with_hint(
                "write it as registry.example/path, with :NUMBER behind it for one version",
            )
        })
    }
}

fn parse(text: &str) -> Option<RegistryReference> {
    let (host, rest) = text.split_once('/').filter(|_| text.len() <= LENGTH_MAX)?;
    let (path, version) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag.parse().ok()?)),
        None => (rest, None),
    };
    let of_path =
        |sign: u8| sign.is_ascii_lowercase() || sign.is_ascii_digit() || b"._-".contains(&sign);
    let begins = |part: &str| part.starts_with(|sign: char| sign.is_ascii_alphanumeric());
    let is_part = |part: &str| begins(part) && part.bytes().all(of_path);
    let of_host = |sign: u8| sign.is_ascii_alphanumeric() || b".-:[]".contains(&sign);
    // A bare word would be a user of one firm's registry; we know of no such default.
    let is_host = host == "localhost" || host.contains(['.', ':']);
    (is_host && host.bytes().all(of_host) && path.split('/').all(is_part))
        .then(|| RegistryReference { host: host.to_owned(), path: path.to_owned(), version })
}

#[cfg(test)]
mod tests {
    use super::RegistryReference;

    #[test]
    fn a_place_has_a_host_a_path_and_maybe_a_version() {
        for (text, host, path, version) in [
            ("registry.example/debian", "registry.example", "debian", None),
            ("127.0.0.1:5000/a/b-c", "127.0.0.1:5000", "a/b-c", None),
            ("localhost/debian:7", "localhost", "debian", Some(7)),
            ("[::1]:5000/debian:12", "[::1]:5000", "debian", Some(12)),
        ] {
            let reference: RegistryReference = text.parse().unwrap();
            let number = reference.version.map(|version| version.number());
            assert_eq!((&*reference.host, &*reference.path, number), (host, path, version));
            assert_eq!(reference.to_string(), text);
            assert_eq!(reference.is_local(), host != "registry.example", "{text}");
        }
        for text in [
            "",
            "debian",
            "ann/debian",
            "registry.example/",
            "registry.example/Debian",
            "registry.example/../debian",
            "registry.example/debian:latest",
            "registry.example/debian:0",
            "user@registry.example/debian",
            "https://registry.example/debian",
        ] {
            assert!(text.parse::<RegistryReference>().is_err(), "{text}");
        }
    }
}
