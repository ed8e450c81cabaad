//! The daemon of a computer that caches and runs appliances.

mod operation;
mod record;
mod replica;
mod subscription;

use std::time::SystemTime;

use collective_model::Timestamp;

/// Reads the clock; the only place that does.
fn now() -> Timestamp {
    SystemTime::now().into()
}

/// Draws random bytes from the operating system.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("Linux has random bytes once it has booted");
    bytes
}
