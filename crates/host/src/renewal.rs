//! Certificates are renewed in time: the host's own and those of the people who are logged in.
//!
//! One task looks who is due, asks the server with the certificate that is about to end, and goes to sleep. What fails is
//! logged, shown in the host's status, and tried again; nothing else depends on it before the certificate is over. When to try is a pure function of the certificate's life.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use collective_api::host::CertificateStatus;
use collective_model::{Result, Timestamp, UserName};
use tokio::sync::watch;

use crate::core::Core;
use crate::settings::Life;
use crate::{now, session};

/// Longest sleep: a computer that was suspended, or whose clock was set, looks again soon.
const SLEEP_LONGEST: Duration = Duration::from_secs(60);
/// Shortest sleep: what is due at once was just tried.
const SLEEP_SHORTEST: Duration = Duration::from_millis(100);
/// Pauses between attempts are an eighth of what is left, within these.
const PAUSE_SHORTEST: Duration = Duration::from_secs(1);
const PAUSE_LONGEST: Duration = Duration::from_secs(3600);

/// Who has a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Holder {
    Host,
    User(UserName),
}

/// An attempt that failed.
#[derive(Clone, Debug)]
struct Failed {
    /// Of which certificate; a log-in brings another.
    life: Option<Life>,
    at: Timestamp,
    why: String,
}

/// The failed attempts, until one succeeds; bounded by the sessions.
#[derive(Debug)]
pub(crate) struct Renewals(watch::Sender<BTreeMap<Holder, Failed>>);

impl Renewals {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }

    /// Shows how long a certificate is good; none where nobody knows.
    pub(crate) fn status(&self, holder: &Holder, life: Option<Life>) -> Option<CertificateStatus> {
        let problem = self.failed(holder, life).map(|failed| failed.why);
        life.map(|life| CertificateStatus { ends: life.ends, renewal: life.renewal(), problem })
    }

    fn failed(&self, holder: &Holder, life: Option<Life>) -> Option<Failed> {
        self.0.borrow().get(holder).filter(|failed| failed.life == life).cloned()
    }
}

/// Renews what is due until the daemon goes down.
pub(crate) async fn keep_fresh(core: Arc<Core>) {
    let (mut sessions, mut settings) = (core.sessions.watch(), core.settings.changes());
    loop {
        sessions.mark_unchanged();
        settings.mark_unchanged();
        for (holder, life) in holders(&core) {
            if next_attempt(&core, &holder, life) <= now() {
                attempt(&core, holder, life).await;
            }
        }
        let next = holders(&core).map(|(holder, life)| next_attempt(&core, &holder, life)).min();
        let sleep = next.map_or(SLEEP_LONGEST, |next| next.since(now()));
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(sleep.clamp(SLEEP_SHORTEST, SLEEP_LONGEST)) => {}
            Ok(()) = sessions.changed() => {}
            Ok(()) = settings.changed() => {}
        }
    }
}

/// Who has a certificate now, and how long it is good.
fn holders(core: &Core) -> impl Iterator<Item = (Holder, Option<Life>)> {
    let server = core.settings.get().server;
    let host = server.filter(|server| server.certificate.is_some());
    let users = core.sessions.all().into_iter().filter_map(|session| {
        let life = session.link()?.way().life;
        Some((Holder::User(session.user.clone()), life))
    });
    host.map(|server| (Holder::Host, server.life)).into_iter().chain(users)
}

fn next_attempt(core: &Core, holder: &Holder, life: Option<Life>) -> Timestamp {
    due(life, core.renewals.failed(holder, life).map(|failed| failed.at))
}

/// When a certificate is to be renewed, or to be tried again after an attempt failed.
fn due(life: Option<Life>, failed: Option<Timestamp>) -> Timestamp {
    match (life, failed) {
        (None, None) => Timestamp(0),
        (Some(life), None) => life.renewal(),
        // One that is over cannot be renewed, unless it is our clock that is wrong.
        (Some(life), Some(at)) if !life.is_over(at) => {
            at.after((life.ends.since(at) / 8).clamp(PAUSE_SHORTEST, PAUSE_LONGEST))
        }
        (_, Some(at)) => at.after(PAUSE_LONGEST),
    }
}

async fn attempt(core: &Core, holder: Holder, life: Option<Life>) {
    match renew(core, &holder).await {
        Ok(()) => {
            tracing::debug!("the certificate of {} is renewed", name(&holder));
            core.renewals.0.send_modify(|failed| drop(failed.remove(&holder)));
        }
        Err(error) => {
            let why = error.chain();
            tracing::warn!("cannot renew the certificate of {}: {why}", name(&holder));
            let failed = Failed { life, at: now(), why };
            core.renewals.0.send_modify(|table| drop(table.insert(holder, failed)));
        }
    }
}

async fn renew(core: &Core, holder: &Holder) -> Result<()> {
    match holder {
        Holder::Host => session::renew_host(core).await,
        Holder::User(user) => match core.sessions.get(user) {
            Some(session) => match session.link() {
                Some(link) => session::renew_session(core, &session, link).await,
                None => Ok(()),
            },
            None => Ok(()),
        },
    }
}

fn name(holder: &Holder) -> String {
    match holder {
        Holder::Host => "this host".to_owned(),
        Holder::User(user) => format!("`{user}`"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use collective_model::Timestamp;

    use super::due;
    use crate::settings::Life;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_renewal_that_failed_is_tried_again_more_and_more_often() {
        let begins = Timestamp(0);
        let life = Some(Life { begins, ends: begins.after(30 * DAY) });
        assert_eq!(due(None, None), Timestamp(0), "nobody knows when it ends");
        assert_eq!(due(life, None), begins.after(20 * DAY));
        let again = |left: Duration| {
            let at = begins.after(30 * DAY - left);
            due(life, Some(at)).since(at)
        };
        assert_eq!(again(10 * DAY), Duration::from_secs(3600));
        assert_eq!(again(Duration::from_secs(80)), Duration::from_secs(10));
        assert_eq!(again(Duration::from_secs(1)), Duration::from_secs(1));
        assert_eq!(again(Duration::ZERO), Duration::from_secs(3600), "it is over");
    }
}
