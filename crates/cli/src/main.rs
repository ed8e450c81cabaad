//! The collective command.
fn main() {}
