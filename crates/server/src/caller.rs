//! Who makes a request, and what they are: looked up in the database for every request, so that a revoked device or a
//! removed host is shut out at once, whatever its certificate says.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use collective_api::identity::Subject;
use collective_model::{DeviceId, Error, ErrorKind, HostId, HostName, Result, Timestamp, UserName};

use crate::answer::Refusal;
use crate::database::{Value, text};
use crate::listener::Peer;
use crate::state::State;

/// A host's "last seen" is written this often at most.
const SEEN_INTERVAL: Duration = Duration::from_secs(60);

/// Who makes a request.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Through the administrators' socket.
    Socket,
    /// A computer that joined.
    Host(Host),
    /// A person at a computer that joined.
    Device(Device),
    /// Nobody known.
    Stranger(IpAddr),
}

/// A computer that joined.
#[derive(Clone, Debug)]
pub struct Host {
    pub id: HostId,
    pub name: HostName,
    pub address: IpAddr,
}

/// A person at a computer that joined.
#[derive(Clone, Debug)]
pub struct Device {
    pub id: DeviceId,
    pub user: UserName,
    pub administrator: bool,
    pub host: Host,
}

impl Caller {
    /// Lets administrators through.
    pub fn administrator(&self) -> Result<()> {
        match self {
            Self::Socket => Ok(()),
            Self::Device(device) if device.administrator => Ok(()),
            _ => Err(Error::new(ErrorKind::Denied, "only an administrator may do that")),
        }
    }

    /// Returns the person's device.
    pub fn device(&self) -> Result<&Device> {
        match self {
            Self::Device(device) => Ok(device),
            _ => Err(Error::new(ErrorKind::Denied, "only a person who is logged in may do that")
                .with_hint("log in with `collective login`")),
        }
    }

    /// Returns how the audit log calls them.
    pub fn audit_name(&self) -> String {
        match self {
            Self::Socket => "administrator".to_owned(),
            Self::Host(host) => format!("host {}", host.name),
            Self::Device(device) => format!("{} at {}", device.user, device.host.name),
            Self::Stranger(address) => address.to_string(),
        }
    }

    /// Returns the address that guesses are counted for.
    pub fn address(&self) -> IpAddr {
        match self {
            Self::Socket => Ipv4Addr::LOCALHOST.into(),
            Self::Host(host) => host.address,
            Self::Device(device) => device.host.address,
            Self::Stranger(address) => *address,
        }
    }
}

impl FromRequestParts<Arc<State>> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<State>,
    ) -> std::result::Result<Self, Refusal> {
        let peer = parts.extensions.get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Error::new(ErrorKind::Internal, "a request without a peer"));
        Ok(identify(state, peer?).await?)
    }
}

async fn identify(state: &State, peer: Peer) -> Result<Caller> {
    let (address, identity) = match peer {
        Peer::Socket => return Ok(Caller::Socket),
        Peer::Network { address, identity: None } => return Ok(Caller::Stranger(address)),
        Peer::Network { address, identity: Some(identity) } => (address, identity),
    };
    match identity.parse()? {
        Subject::Host(id) => host(state, id, address).await.map(Caller::Host),
        Subject::Device { user, device } => {
            self::device(state, user, device, address).await.map(Caller::Device)
        }
    }
}

async fn host(state: &State, id: HostId, address: IpAddr) -> Result<Host> {
    let sql = "select name, seen from hosts where id = $1";
    let rows = state.database.read(sql, &[text(&id)]).await?;
    let row = rows.first().ok_or_else(|| {
        Error::new(ErrorKind::Denied, "this computer was removed from the server")
            .with_hint("join it again with a new token")
    })?;
    seen(state, id, row.optional_integer(1)?).await;
    Ok(Host { id, name: row.parse(0)?, address })
}

async fn device(state: &State, user: UserName, id: DeviceId, address: IpAddr) -> Result<Device> {
    let sql = "select users.administrator, hosts.id, hosts.name, hosts.seen from devices \
        join users on users.name = devices.user_name join hosts on hosts.id = devices.host \
        where devices.id = $1 and devices.user_name = $2";
    let rows = state.database.read(sql, &[text(&id), text(&user)]).await?;
    let row = rows.first().ok_or_else(|| {
        Error::new(ErrorKind::Denied, format!("the log-in of `{user}` at this computer is over"))
            .with_hint("log in again with `collective login`")
    })?;
    let host = Host { id: row.parse(1)?, name: row.parse(2)?, address };
    seen(state, host.id, row.optional_integer(3)?).await;
    Ok(Device { id, user, administrator: row.integer(0)? != 0, host })
}

/// Notes when a host was heard of. A full disk is no reason to refuse what only reads.
async fn seen(state: &State, host: HostId, before: Option<i64>) {
    let now = state.now();
    if before.is_some_and(|before| now.since(Timestamp(before)) < SEEN_INTERVAL) {
        return;
    }
    let sql = "update hosts set seen = $1 where id = $2";
    if let Err(error) = state.database.write(sql, &[Value::from(now.0), text(&host)]).await {
        tracing::warn!(%host, "{}", error.chain());
    }
}
