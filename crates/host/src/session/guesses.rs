//! How often a password may be guessed where no server counts: five in a row at once, then one after each pause.
//!
//! Pure: told of the time and of what happened. A guess is paid before the password is looked at, so many at once get no
//! further. Pauses double and are bounded: the owner never waits longer than a minute. Nothing of it is kept across
//! daemons: who can start this daemon anew can read the files that it would be kept in, and guess at those without it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use collective_model::{Error, ErrorKind, Result, UserName};
use tokio::time::Instant;

/// Wrong passwords in a row that nobody waits for: people mistype.
const FREE: u32 = 5;

/// The first pause, and the longest: 1,440 guesses a day.
const PAUSE_SHORTEST: Duration = Duration::from_secs(2);
const PAUSE_LONGEST: Duration = Duration::from_secs(60);

/// The guesses at each account that is kept here; bounded by those accounts.
#[derive(Debug, Default)]
pub(crate) struct Guesses(Mutex<BTreeMap<UserName, Paid>>);

#[derive(Clone, Copy, Debug)]
struct Paid {
    count: u32,
    next: Instant,
}

impl Guesses {
    /// Pays one guess at the password of an account that is kept here.
    ///
    /// # Errors
    /// `Unavailable`, saying when to try again; then nothing is paid.
    pub(crate) fn pay(&self, user: &UserName, now: Instant) -> Result<()> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let paid = table.entry(user.clone()).or_insert(Paid { count: 0, next: now });
        let wait = paid.next.saturating_duration_since(now);
        if !wait.is_zero() {
            let seconds = wait.as_millis().div_ceil(1000);
            let message = format!("too many wrong passwords: try again in {seconds} s");
            return Err(Error::new(ErrorKind::Unavailable, message).with_hint(
                "the server cannot be reached, so the last password that worked here is asked for",
            ));
        }
        paid.count = paid.count.saturating_add(1);
        paid.next = now + pause(paid.count);
        Ok(())
    }

    /// The password was right: what was paid before is forgotten.
    pub(crate) fn right(&self, user: &UserName) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(user);
    }
}

/// How long to wait after so many guesses in a row.
fn pause(count: u32) -> Duration {
    match count.checked_sub(FREE) {
        None => Duration::ZERO,
        Some(more) => PAUSE_SHORTEST.saturating_mul(1 << more.min(10)).min(PAUSE_LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use collective_model::{ErrorKind, UserName};
    use tokio::time::Instant;

    use super::{FREE, Guesses, PAUSE_LONGEST, PAUSE_SHORTEST};

    fn user(text: &str) -> UserName {
        text.parse().unwrap()
    }

    #[test]
    fn a_day_of_guessing_gets_some_1440_tries_and_the_owner_waits_a_minute_at_most() {
        let (guesses, start) = (Guesses::default(), Instant::now());
        let mut tries = 0;
        for second in 0..24 * 3600 {
            let now = start + Duration::from_secs(second);
            tries += (0..10).filter(|_| guesses.pay(&user("ann"), now).is_ok()).count();
        }
        assert!((1_400..1_460).contains(&tries), "{tries}");
        guesses.pay(&user("ann"), start + Duration::from_secs(24 * 3600) + PAUSE_LONGEST).unwrap();
        guesses.pay(&user("bob"), start).unwrap();
    }

    #[test]
    fn the_refusal_says_when_to_try_again_and_the_right_password_ends_it() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        for _ in 0..FREE {
            guesses.pay(&user("ann"), now).unwrap();
        }
        let error = guesses.pay(&user("ann"), now).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.to_string(), "too many wrong passwords: try again in 2 s");
        guesses.pay(&user("ann"), now + PAUSE_SHORTEST).unwrap();
        guesses.right(&user("ann"));
        for _ in 0..FREE {
            guesses.pay(&user("ann"), now + PAUSE_SHORTEST).unwrap();
        }
    }
}
