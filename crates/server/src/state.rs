//! What all requests share: the database, the authority, the objects, and the few bounds on concurrent work.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use collective_model::{Error, ErrorKind, RepositoryId, Result, ResultExt, Timestamp};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::authority::{Authority, Lives};
use crate::database::{Database, Transaction, Value, text};
use crate::guesses::Guesses;
use crate::objects::Objects;

/// Passwords that are checked at a time: each takes 19 MB and a processor.
const PASSWORD_CHECKS_MAX: usize = 2;
/// Uploads at a time; further ones wait for their turn.
const UPLOADS_MAX: usize = 64;
/// Publications at a time: each looks at every object of its version.
const PUBLICATIONS_MAX: usize = 16;
/// Checks and prunes at a time; they read whole repositories, and must not keep publications waiting.
const REPOSITORY_WORK_MAX: usize = 2;
/// Lines of the audit log that are kept: some 100 MB.
pub const AUDIT_LINES_MAX: i64 = 1_000_000;

/// What all requests share.
#[derive(Debug)]
pub struct State {
    pub database: Database,
    pub authority: Authority,
    pub lives: Lives,
    guesses: Mutex<Guesses>,
    pub objects: Objects,
    pub password_checks: Semaphore,
    pub uploads: Semaphore,
    pub publications: Semaphore,
    pub repository_work: Semaphore,
}

impl State {
    pub fn new(
        database: Database,
        authority: Authority,
        lives: Lives,
        objects: Objects,
    ) -> Arc<Self> {
        Arc::new(Self {
            database,
            authority,
            lives,
            guesses: Mutex::default(),
            objects,
            password_checks: Semaphore::new(PASSWORD_CHECKS_MAX),
            uploads: Semaphore::new(UPLOADS_MAX),
            publications: Semaphore::new(PUBLICATIONS_MAX),
            repository_work: Semaphore::new(REPOSITORY_WORK_MAX),
        })
    }

    /// Reads the clock.
    pub fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }

    /// Does something with the counts of guesses; never across a wait.
    pub fn guesses<T>(&self, work: impl FnOnce(&mut Guesses) -> T) -> T {
        work(&mut self.guesses.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for a turn.
    pub async fn turn<'a>(&self, semaphore: &'a Semaphore) -> Result<SemaphorePermit<'a>> {
        semaphore.acquire().await.or_error(ErrorKind::Unavailable, || "the server stops".to_owned())
    }

    /// Writes a line of the audit log, if and when the transaction happens.
    pub async fn audit(
        &self,
        transaction: &mut Transaction,
        who: &str,
        what: String,
    ) -> Result<()> {
        let sql = "insert into audit (time, nonce, who, what) values ($1, $2, $3, $4)";
        let nonce = RepositoryId(random()?);
        let values = [Value::from(self.now().0), text(&nonce), text(&who), text(&what)];
        transaction.run(sql, &values).await.map(drop)
    }
}

/// Draws random bytes from the operating system.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|cause| {
        Error::new(ErrorKind::Internal, "the system has no random bytes").with_source(cause)
    })?;
    Ok(bytes)
}
