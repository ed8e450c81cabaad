//! How often a password may be guessed: a bucket of guesses for every user and for every address, refilled with time.
//!
//! Pure: told of the time and of what happened. A guess is paid before the password is looked at and given back
//! if it was right, so a thousand guesses at once get no further than five. Memory is bounded; when it is full, the buckets that are
//! nearest to being full again are forgotten, which are those that restrain least.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use collective_model::{Error, ErrorKind, Result, Timestamp, UserName};

/// Buckets that are kept: some 2 MB.
const BUCKETS_MAX: usize = 16_384;

/// Guesses at one user's password in a row, and the time in which one comes back: 2,880 a day, from all the world.
const USER: Rate = Rate { burst: 5, refill: Duration::from_secs(30) };

/// Guesses from one address in a row, and the time in which one comes back; a school's computers may share one.
const ADDRESS: Rate = Rate { burst: 30, refill: Duration::from_secs(2) };

/// Whose guesses are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    User(UserName),
    Address(IpAddr),
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u32,
    refill: Duration,
}

/// The buckets. A bucket is the moment at which it will be full again; one that is full is not kept.
#[derive(Debug, Default)]
pub struct Guesses {
    full_at: HashMap<Key, Timestamp>,
}

impl Guesses {
    /// Pays one guess at a user's password from an address.
    ///
    /// # Errors
    /// `Unavailable`, saying when to try again; then nothing is paid.
    pub fn pay(&mut self, user: &UserName, address: IpAddr, now: Timestamp) -> Result<()> {
        let keys = keys(user, address);
        let wait = keys.iter().map(|(key, rate)| self.wait(key, *rate, now)).max();
        let wait = wait.unwrap_or_default();
        if !wait.is_zero() {
            let seconds = wait.as_millis().div_ceil(1000);
            let message = format!("too many wrong passwords: try again in {seconds} s");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        for (key, rate) in keys {
            self.make_room(now);
            let full_at = self.full_at.entry(key).or_insert(now);
            *full_at = (*full_at).max(now).after(rate.refill);
        }
        Ok(())
    }

    /// Gives a paid guess back: the password was right.
    pub fn give_back(&mut self, user: &UserName, address: IpAddr) {
        for (key, rate) in keys(user, address) {
            if let Some(full_at) = self.full_at.get_mut(&key) {
                full_at.0 = full_at.0.saturating_sub(millis(rate.refill));
            }
        }
    }

    /// Says how long a bucket has no guess left.
    fn wait(&self, key: &Key, rate: Rate, now: Timestamp) -> Duration {
        let Some(full_at) = self.full_at.get(key) else { return Duration::ZERO };
        // After a clock jumped back, nobody waits longer than for an empty bucket.
        let missing = full_at.since(now).min(rate.refill * rate.burst);
        missing.saturating_sub(rate.refill * (rate.burst - 1))
    }

    fn make_room(&mut self, now: Timestamp) {
        if self.full_at.len() < BUCKETS_MAX {
            return;
        }
        self.full_at.retain(|_, full_at| *full_at > now);
        if self.full_at.len() < BUCKETS_MAX {
            return;
        }
        // A quarter at once, so that a flood pays for sorting once in a while only.
        let mut soonest: Vec<_> =
            self.full_at.iter().map(|(key, full_at)| (*full_at, key.clone())).collect();
        soonest.sort_unstable_by_key(|(full_at, _)| *full_at);
        for (_, key) in soonest.into_iter().take(BUCKETS_MAX / 4) {
            self.full_at.remove(&key);
        }
    }
}

fn keys(user: &UserName, address: IpAddr) -> [(Key, Rate); 2] {
    [(Key::User(user.clone()), USER), (Key::Address(network(address)), ADDRESS)]
}

/// A home or an office has a /64 of IPv6 addresses: they count as one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        address => address,
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use collective_model::{ErrorKind, Timestamp, UserName};

    use super::{ADDRESS, BUCKETS_MAX, Guesses, USER, network};

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn user(number: u32) -> UserName {
        format!("user-{number}").parse().unwrap()
    }

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(number).into()
    }

    #[test]
    fn a_million_guesses_at_one_user_in_a_day_from_everywhere_get_a_few_thousand_tries() {
        let mut guesses = Guesses::default();
        let step = Duration::from_millis(24 * 3600 * 1000 / 1_000_000 + 1);
        let mut now = NOW;
        let mut tries = 0;
        for number in 0..1_000_000 {
            tries += u32::from(guesses.pay(&user(1), address(number), now).is_ok());
            now = now.after(step);
        }
        assert!(tries <= USER.burst + 24 * 3600 * 1010 / 1000 / 30 + 60, "{tries}");
        assert!(guesses.full_at.len() <= BUCKETS_MAX);
    }

    #[test]
    fn guesses_at_many_users_from_one_address_are_bounded_too() {
        let mut guesses = Guesses::default();
        let tries = (0..1000).filter(|n| guesses.pay(&user(*n), address(7), NOW).is_ok()).count();
        assert_eq!(tries, ADDRESS.burst as usize);
        assert!(guesses.pay(&user(5000), address(8), NOW).is_ok());
    }

    #[test]
    fn the_refusal_says_when_to_try_again_and_that_is_true() {
        let mut guesses = Guesses::default();
        for _ in 0..USER.burst {
            guesses.pay(&user(1), address(1), NOW).unwrap();
        }
        let error = guesses.pay(&user(1), address(2), NOW).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("30 s"), "{error}");
        guesses.pay(&user(1), address(2), NOW.after(USER.refill)).unwrap();
        assert!(guesses.pay(&user(1), address(2), NOW.after(USER.refill)).is_err());
    }

    #[test]
    fn right_passwords_cost_nothing() {
        let mut guesses = Guesses::default();
        for _ in 0..1000 {
            guesses.pay(&user(1), address(1), NOW).unwrap();
            guesses.give_back(&user(1), address(1));
        }
    }

    #[test]
    fn a_flood_of_names_keeps_memory_bounded_and_the_guessed_user_restrained() {
        let mut guesses = Guesses::default();
        for _ in 0..USER.burst {
            guesses.pay(&user(0), address(0), NOW).unwrap();
        }
        for number in 1..40_000 {
            let _ = guesses.pay(&user(number), address(number), NOW);
        }
        assert!(guesses.full_at.len() <= BUCKETS_MAX);
        assert!(guesses.pay(&user(0), address(99), NOW).is_err());
    }

    #[test]
    fn neighbours_in_a_64_network_count_as_one() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
