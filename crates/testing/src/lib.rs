//! What tests of several rooms share: numbers from a seed, many runs that say which one failed, damage to things at rest, and a
//! web server. Nothing that is shipped depends on it.

mod damage;
mod nginx;
mod random;
mod runs;

pub use damage::damage;
pub use nginx::Nginx;
pub use random::Random;
pub use runs::{each_seed, each_seed_at_once};
