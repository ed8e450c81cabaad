//! Who is logged in on this host, and the way to the server that goes with it.
//!
//! A session has the user's secret and a [`Remote`]. It is kept in the runtime directory (0600), so that a daemon that was
//! killed goes on backing up; logging out removes it, and so does the computer's restart. How a password becomes a session is
//! in `login`.

mod guesses;
mod link;
mod login;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use collective_api::failure::Failure;
use collective_api::host::{CertificateStatus, Session as Shown};
use collective_api::keybag::UserSecret;
use collective_model::{Error, ErrorKind, RepositoryId, Result, Timestamp, UserName};
use collective_repository::RepositorySecret;
use tokio::sync::watch;

pub(crate) use guesses::Guesses;
pub(crate) use link::Link;
pub(crate) use login::{
    SetAside, contact, join, login, logout, renew_host, renew_session, resume, tell_instances,
};

use crate::now;
use crate::remote::Remote;

/// A person who is logged in.
pub(crate) struct Session {
    pub(crate) user: UserName,
    pub(crate) remote: Arc<dyn Remote>,
    secret: UserSecret,
    link: Option<Arc<Link>>,
    online: AtomicBool,
    /// Why the server refuses this log-in, if it does.
    problem: watch::Sender<Option<Failure>>,
    since: Timestamp,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.user)
    }
}

impl Session {
    pub(crate) fn new(
        user: UserName,
        secret: UserSecret,
        remote: Arc<dyn Remote>,
        link: Option<Arc<Link>>,
    ) -> Self {
        let (online, problem) = (AtomicBool::new(false), watch::Sender::new(None));
        Self { user, remote, secret, link, online, problem, since: now() }
    }

    /// Returns the secret of one of the user's private repositories.
    pub(crate) fn repository_secret(&self, id: RepositoryId) -> RepositorySecret {
        self.secret.repository_secret(id)
    }

    /// Returns the way to the server; none where it was made elsewhere.
    pub(crate) fn link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref()
    }

    /// Remembers whether the server answered.
    pub(crate) fn saw_server<T>(&self, answer: &Result<T>) {
        // One that shows another authority is not our server.
        let away = answer.as_ref().is_err_and(|error| !error.is_answer());
        self.online.store(!away, Ordering::Relaxed);
        match answer {
            Err(error) if error.kind() == ErrorKind::Denied => {
                self.problem.send_replace(Some(Failure::from(error)));
            }
            // One that nobody answers is as it was.
            Err(error) if error.kind() == ErrorKind::Unavailable => {}
            _ => drop(self.problem.send_replace(None)),
        }
    }

    /// Tells whether nothing can be backed up before another log-in.
    pub(crate) fn is_ended(&self, now: Timestamp) -> bool {
        let life = self.link().and_then(|link| link.way().life);
        self.problem.borrow().is_some() || life.is_some_and(|life| life.is_over(now))
    }

    pub(crate) fn is_online(&self) -> bool {
        self.online.load(Ordering::Relaxed)
    }

    pub(crate) fn shown(&self, certificate: Option<CertificateStatus>) -> Shown {
        let (user, online, since) = (self.user.clone(), self.is_online(), self.since);
        Shown { user, online, since, certificate, problem: self.problem.borrow().clone() }
    }
}

type Table = BTreeMap<UserName, Arc<Session>>;

/// All sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    table: watch::Sender<Table>,
    files: Mutex<()>,
}

impl Sessions {
    pub(crate) fn new() -> Self {
        Self { table: watch::Sender::new(Table::new()), files: Mutex::new(()) }
    }

    /// Keeps others from changing who is logged in and the files that go with it; never held across a wait.
    pub(crate) fn alone(&self) -> MutexGuard<'_, ()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when somebody comes or goes.
    pub(crate) fn watch(&self) -> watch::Receiver<Table> {
        self.table.subscribe()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        self.table.borrow().values().cloned().collect()
    }

    pub(crate) fn get(&self, user: &UserName) -> Option<Arc<Session>> {
        self.table.borrow().get(user).cloned()
    }

    /// Finds the session of `user`, or the only one.
    ///
    /// # Errors
    /// `Denied` if nobody, or not this one, is logged in; `Invalid` if it is not clear who is meant.
    pub(crate) fn find(&self, user: Option<&UserName>) -> Result<Arc<Session>> {
        let table = self.table.borrow();
        let session = match (user, table.len()) {
            (Some(user), _) => table.get(user),
            (None, 0 | 1) => table.values().next(),
            (None, _) => {
                let names: Vec<&str> = table.keys().map(UserName::as_str).collect();
                let message = format!("several people are logged in: {}", names.join(", "));
                return Err(Error::new(ErrorKind::Invalid, message)
                    .with_hint("say which one is meant with --as"));
            }
        };
        session.cloned().ok_or_else(|| {
            let who = user.map_or("nobody".to_owned(), |user| format!("`{user}`"));
            let is = if user.is_some() { "is not" } else { "is" };
            Error::new(ErrorKind::Denied, format!("{who} {is} logged in on this host"))
                .with_hint("log in with `collective login`")
        })
    }

    pub(crate) fn insert(&self, session: Session) -> Arc<Session> {
        let session = Arc::new(session);
        self.table.send_modify(|table| {
            table.insert(session.user.clone(), Arc::clone(&session));
        });
        session
    }

    pub(crate) fn remove(&self, user: &UserName) {
        self.table.send_modify(|table| {
            table.remove(user);
        });
    }
}
