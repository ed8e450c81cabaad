//! What the host is asked for. Passwords are texts that leave memory when dropped and are never shown.

use std::fmt;

use collective_model::{HostName, UserName, Version};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Asks what a server shows before anybody trusts it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContactRequest {
    /// `https://name:port`.
    pub url: String,
}

/// What a server shows at first contact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Where it was asked.
    pub url: String,
    /// SHA-256 of its certificate authority, to be compared by a person.
    pub fingerprint: String,
}

/// Ties this host to a server.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// `https://name:port`.
    pub url: String,
    /// The fingerprint that the person accepted.
    pub fingerprint: String,
    /// A single-use join token; without one the server is only trusted, and the host stays a guest.
    #[serde(default)]
    pub token: Option<Zeroizing<String>>,
    /// What people will call this host.
    pub name: HostName,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinRequest {{ url: {:?}, name: {} }}", self.url, self.name)
    }
}

/// Logs a person in: at the server, or, when it cannot be reached, by the last password that worked here.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// Who.
    pub user: UserName,
    /// With which password.
    pub password: Zeroizing<String>,
    /// The server, where the host has none yet: it is tied to this one if the log-in succeeds, and not otherwise. With a
    /// token it is tied at once, because the token is spent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinRequest>,
}

impl fmt::Debug for LoginRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoginRequest {{ user: {} }}", self.user)
    }
}

/// Ends a session; refused with `Conflict` while changes are not backed up, unless forced.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogoutRequest {
    /// Who.
    pub user: UserName,
    /// Log out although changes wait to be backed up; they wait for the next log-in. Appliances must be stopped first.
    #[serde(default)]
    pub force: bool,
}

/// Starts an appliance.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    /// Another version than the latest.
    #[serde(default)]
    pub version: Option<Version>,
    /// Take the subscription's lock from whoever holds it: what that host has not backed up stays there, aside.
    #[serde(default)]
    pub break_lock: bool,
}

/// Stops an appliance: shuts the guest down cleanly.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Pull the power cord instead.
    #[serde(default)]
    pub force: bool,
}

/// Appends a version of the user disk equal to an old one; what is there now is published first.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndoRequest {
    /// The version to go back to; without it, the one before the latest.
    #[serde(default)]
    pub to: Option<Version>,
}

/// Deletes the subscription with its user disk, here and at the server.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteRequest {
    /// Only forget it here: the user disk stays at the server. Refused while changes are not backed up.
    #[serde(default)]
    pub local: bool,
}

/// Fetches a version whole and keeps it here, so that it runs without the server.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldRequest {
    /// One version; without it the latest, and every later one.
    #[serde(default)]
    pub version: Option<Version>,
}

/// Lets what nobody holds leave the cache.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrimRequest {
    /// Bytes that may stay on disk.
    pub to_bytes: u64,
}

/// A request with nothing to say.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

/// Runs a program inside the guest, through its agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// What it reads from its standard input, in base64.
    #[serde(default)]
    pub input: Option<String>,
    /// Seconds until the host gives up waiting; the program goes on.
    #[serde(default)]
    pub limit_s: Option<u32>,
}

/// What a program in the guest did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecReply {
    /// Its exit code; 128 and the signal if it was killed.
    pub exit_code: i32,
    /// Its standard output, in base64.
    pub stdout: String,
    /// Its standard error, in base64.
    pub stderr: String,
}
