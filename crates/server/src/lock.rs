//! Who may write a user disk: the rules of a subscription's lock, as a pure function of its row.
//!
//! ```text
//!            take ─▶ held (epoch + 1) ─ renew ─▶ held ─ release ─▶ free
//! another's take: refused, unless the holder's lease is over and it had nothing left to back up, or the lock is broken
//! ```
//! The epoch grows with every new holder and never falls, also while nobody holds the lock. Whoever publishes under an older
//! one is refused for ever. The holder itself gets its lock again with the same epoch, so a lost answer costs nothing.

use std::time::Duration;

use collective_api::server::Lock;
use collective_model::{
    ApplianceName, Epoch, Error, ErrorKind, HostId, HostName, Result, Timestamp,
};

/// How long a lock stays held without being renewed. Hosts renew it every third of that.
pub const LEASE: Duration = Duration::from_secs(90);

/// What a subscription's row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockState {
    /// The last fencing number that was given out.
    pub epoch: Epoch,
    /// The lock, while somebody holds it.
    pub held: Option<Lock>,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Taker {
    pub host: HostId,
    pub host_name: HostName,
    /// Whose user disk it is about.
    pub appliance: ApplianceName,
}

/// Decides who holds the lock after a host asked for it.
///
/// # Errors
/// `Conflict`, saying who holds it since when, and what breaking it costs.
pub fn take(state: &LockState, taker: &Taker, break_lock: bool, now: Timestamp) -> Result<Lock> {
    if let Some(lock) = &state.held {
        if lock.host == taker.host {
            return Ok(renewed(lock, lock.backlog_bytes, now));
        }
        let clean = lock.backlog_bytes == Some(0) && now >= lock.expires;
        if !clean && !break_lock {
            return Err(held_by_another(lock, &taker.appliance));
        }
    }
    Ok(Lock {
        host: taker.host,
        host_name: taker.host_name.clone(),
        epoch: Epoch(state.epoch.0 + 1),
        since: now,
        seen: now,
        expires: now.after(LEASE),
        backlog_bytes: None,
    })
}

/// Renews the lock of its holder.
///
/// # Errors
/// `Conflict` if it is no longer the holder's.
pub fn renew(
    state: &LockState,
    host: HostId,
    epoch: Epoch,
    backlog_bytes: u64,
    now: Timestamp,
) -> Result<Lock> {
    check(state, host, epoch).map(|lock| renewed(lock, Some(backlog_bytes), now))
}

/// Checks that a host holds the lock with this epoch. A lease that is over is no obstacle while nobody else took the lock: the
/// holder's changes are the only ones there are.
///
/// # Errors
/// `Conflict`, saying who holds it.
pub fn check(state: &LockState, host: HostId, epoch: Epoch) -> Result<&Lock> {
    match &state.held {
        Some(lock) if lock.host == host && lock.epoch == epoch => Ok(lock),
        Some(lock) if lock.host == host => {
            Err(lost(&format!("this computer began anew with the user disk at {}", lock.since)))
        }
        Some(lock) => {
            let (taker, since) = (&lock.host_name, lock.since);
            Err(lost(&format!("`{taker}` took the user disk from this computer at {since}")))
        }
        None => Err(lost("the user disk was taken from this computer, and is in use nowhere now")),
    }
}

fn renewed(lock: &Lock, backlog_bytes: Option<u64>, now: Timestamp) -> Lock {
    // A clock that jumped back shortens no lease.
    let expires = lock.expires.max(now.after(LEASE));
    Lock { seen: now, expires, backlog_bytes, ..lock.clone() }
}

fn held_by_another(lock: &Lock, appliance: &ApplianceName) -> Error {
    let left = match lock.backlog_bytes {
        Some(0) => "had nothing left to back up".to_owned(),
        Some(bytes) => format!("had {} not backed up", collective_model::ByteCount(bytes)),
        None => "has not said what is not backed up".to_owned(),
    };
    let message = format!(
        "`{appliance}` is in use at `{}` since {}; that host was last heard of at {} and {left}",
        lock.host_name, lock.since, lock.seen
    );
    Error::new(ErrorKind::Conflict, message).with_hint(format!(
        "stop it at `{0}`, or take it with --break-lock: what `{0}` has not backed up then stays on its disk and can no longer be published",
        lock.host_name
    ))
}

fn lost(what: &str) -> Error {
    let message = format!(
        "{what}: changes that are not backed up, and what is written here until the next start, stay on this \
         computer, aside, and are not published"
    );
    Error::new(ErrorKind::Conflict, message)
        .with_hint("stop it here; the next start goes on with what is backed up")
}

#[cfg(test)]
mod tests;
