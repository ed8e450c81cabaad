//! Who there is, and how they come in: users, groups, grants, tokens, hosts, log-in.

use collective_model::{ApplianceName, DeviceId, GroupName, HostId, HostName, Timestamp, UserName};
use serde::{Deserialize, Serialize};

use crate::identity::Certificate;
use crate::keybag::{Keybag, PasswordParameters};
use crate::secret::Secret;
use crate::trust::{Anchor, Fingerprint};

/// What a server says about itself to anybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// The release of Collective that it runs.
    pub release: String,
    /// Of its certificate authority.
    pub fingerprint: Fingerprint,
    /// Its certificate authority.
    pub authority: Anchor,
    /// Its clock.
    pub time: Timestamp,
}

/// Asks how to derive keys from a user's password. An unknown user gets an answer too, always the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginParametersRequest {
    /// Who wants to log in.
    pub user: UserName,
}

/// Logs a person in at a host, and binds a key pair of that host to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// Who.
    pub user: UserName,
    /// That they know the password.
    pub proof: Secret,
    /// The request for the device's certificate, in PEM.
    pub request: String,
    /// Introduces the host where it shows no host's certificate, so that locks can say where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestHost>,
}

/// A computer that nobody gave a token: people can log in on it, and it becomes a host because they did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestHost {
    /// What people call it.
    pub name: HostName,
    /// The request for the host's certificate, in PEM.
    pub request: String,
}

/// A person is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginReply {
    /// The id of the key pair.
    pub device: DeviceId,
    /// Its certificate.
    pub issued: Issued,
    /// The user's secret, wrapped.
    pub keybag: Keybag,
    /// The user.
    pub user: User,
    /// What became of the guest that was introduced; the host shows this certificate at the next log-in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<JoinReply>,
}

/// Ties a computer to the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The single-use token that an administrator made.
    pub token: Secret,
    /// What people will call it.
    pub name: HostName,
    /// The request for the host's certificate, in PEM.
    pub request: String,
}

/// A computer is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    /// Its id.
    pub host: HostId,
    /// Its certificate.
    pub issued: Issued,
}

/// Asks for a new certificate for the same host or device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// The request, in PEM; the key may be a new one.
    pub request: String,
}

/// A certificate that the server made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// The certificate with the server's chain, in PEM.
    pub certificate: Certificate,
    /// When it ends. It is to be renewed when two thirds of its life are over.
    pub expires: Timestamp,
}

/// A user, without anything secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name.
    pub name: UserName,
    /// Whether they may do everything.
    pub administrator: bool,
    /// The groups that they are in.
    pub groups: Vec<GroupName>,
    /// When the account was made.
    pub created: Timestamp,
}

/// Makes an account. The device that makes it derives the keys, so that the server never sees the password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateUser {
    /// The name.
    pub name: UserName,
    /// Whether they may do everything.
    pub administrator: bool,
    /// Groups to put them in; they must exist.
    pub groups: Vec<GroupName>,
    /// The password.
    pub password: PasswordChange,
}

/// Sets a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasswordChange {
    /// How keys are derived from it.
    pub parameters: PasswordParameters,
    /// What shows that it is known.
    pub proof: Secret,
    /// The user's secret, wrapped under it.
    pub keybag: Keybag,
    /// The proof of the password so far: wanted where a person changes their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Secret>,
}

/// A group and who is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The name.
    pub name: GroupName,
    /// Its members.
    pub members: Vec<UserName>,
}

/// Makes a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateGroup {
    /// The name.
    pub name: GroupName,
}

/// A group's right to start an appliance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Grant {
    /// What may be started.
    pub appliance: ApplianceName,
    /// By whom.
    pub group: GroupName,
}

/// Makes a token with which one host may join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// For what or whom, in the administrator's words.
    pub note: String,
    /// How long it is good for, in seconds.
    pub life_s: u64,
}

/// A new token. Its secret is shown this once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreated {
    /// What will be listed.
    pub token: Token,
    /// What the host shows.
    pub secret: Secret,
}

/// A token without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its number.
    pub id: u64,
    /// For what or whom.
    pub note: String,
    /// When it stops to be good.
    pub expires: Timestamp,
    /// The host that used it.
    pub used_by: Option<HostName>,
}

/// A computer that joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: HostName,
    /// Whether it joined with a token, rather than by somebody's log-in.
    pub member: bool,
    /// When it joined.
    pub joined: Timestamp,
    /// When it was last heard of.
    pub seen: Option<Timestamp>,
}

/// One line of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When.
    pub time: Timestamp,
    /// Who did it: a user, a host, or `administrator` for the socket.
    pub who: String,
    /// What was done, to what.
    pub what: String,
}
