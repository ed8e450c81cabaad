//! Names that people give and ids that programs draw: a type each, checked where they enter.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{parse_hex, write_hex};
use crate::error::{Error, ErrorKind};

/// Signs in a name, at most.
const NAME_SIGNS: usize = 63;

/// Checks the rule of all names: `a-z`, `0-9`, `-`, `.` and `_`, first a letter or digit, 1 to 63 signs. So a
/// name is safe as a file name, in a URL and in a terminal.
fn check_name(what: &str, text: &str) -> Result<(), Error> {
    let plain = |sign: u8| sign.is_ascii_lowercase() || sign.is_ascii_digit();
    let fits = text.len() <= NAME_SIGNS
        && text.bytes().all(|sign| plain(sign) || b"-._".contains(&sign))
        && text.bytes().next().is_some_and(plain);
    if fits {
        return Ok(());
    }
    let shown: String = text.chars().take(NAME_SIGNS).collect();
    Err(Error::new(ErrorKind::Invalid, format!("{shown:?} is not a name for {what}")).with_hint(
        "a name has 1 to 63 characters of a-z, 0-9, `-`, `.` and `_`, and starts with a letter or digit",
    ))
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                check_name($what, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        texts!($name);
    )*};
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; 16]);

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                parse_hex(text).map(Self).ok_or_else(|| {
                    let shown: String = text.chars().take(40).collect();
                    Error::new(ErrorKind::Invalid, format!("{shown:?} is not the id of {}", $what))
                        .with_hint("an id has 32 characters of 0-9 and a-f")
                })
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }

        texts!($name);
    )*};
}

/// The conversions to and from text that every name and id has.
macro_rules! texts {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Shown::show(&self.0, f)
            }
        }
    };
}

/// How the inside of a name or id is written.
trait Shown {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

impl Shown for String {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl Shown for [u8; 16] {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(self, f)
    }
}

names! {
    /// The name of an appliance.
    ApplianceName "an appliance";
    /// The name with which a person logs in.
    UserName "a user";
    /// The name of a group of users.
    GroupName "a group";
    /// What people call a host.
    HostName "a host";
}

ids! {
    /// A repository: drawn when it is created, signed into every manifest.
    RepositoryId "a repository";
    /// A host, given by the server when it joins.
    HostId "a host";
    /// A key pair that a person's log-in made on a host.
    DeviceId "a device";
    /// One user's use of one appliance.
    SubscriptionId "a subscription";
    /// Work that takes longer than a second.
    OperationId "an operation";
}

#[cfg(test)]
mod tests {
    use super::{ApplianceName, RepositoryId};

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        for text in ["", ".", "..", ".hidden", "a/b", "Ann", "a b", "-x", "ü", &"a".repeat(64)] {
            assert!(text.parse::<ApplianceName>().is_err(), "{text:?}");
        }
        for text in ["debian", "tiny-2", "a", "3d.tools_x"] {
            assert_eq!(text.parse::<ApplianceName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_id_survives_being_written_and_read() {
        let id = RepositoryId(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse::<RepositoryId>().unwrap(), id);
        assert!("12".parse::<RepositoryId>().is_err());
    }
}
