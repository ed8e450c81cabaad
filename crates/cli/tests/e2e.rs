//! The whole system: the built command, a real server, real hosts, and real guests of the appliance `tiny`.
//!
//! Each module breaks one promise in every way it can think of. A test has a world of its own (`world`), so tests run
//! side by side; the appliance is built once for all of them.

#![expect(clippy::unwrap_used, reason = "what fails here fails its test")]
#![expect(clippy::print_stdout, reason = "a failed random run says its seed and its steps")]

mod e2e {
    mod certificates;
    mod daily;
    mod full_disk;
    mod held;
    mod kills;
    mod locks;
    mod memory;
    mod mirror;
    mod network;
    mod popular;
    mod refusals;
    mod secrets;
    mod server_kills;
    mod world;
}
