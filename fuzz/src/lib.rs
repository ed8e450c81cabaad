//! Everything that comes from outside, fed any bytes.
//!
//! A target is a plain function that panics where a decoder breaks a promise; the rooms that own the decoders have them.
//! `cargo fuzz` drives them (CONTRIBUTING.md says how), and `tests/corpus.rs` replays what is kept in
//! `corpus/<target>`: real structures, and what the fuzzer found worth keeping.

pub use collective_disk::fuzzing::{cache, nbd};
pub use collective_repository::fuzzing::{descriptor, frame, index, manifest, pack, trace};

/// What a web server answers, to a client that has its TLS.
pub fn answer(bytes: &[u8]) {
    static TLS: std::sync::Once = std::sync::Once::new();
    TLS.call_once(|| {
        // An error means that somebody else has installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    collective_repository::fuzzing::answer(bytes);
}

/// What takes any bytes.
pub type Target = fn(&[u8]);

/// Every target with the name of its corpus.
pub const TARGETS: [(&str, Target); 9] = [
    ("answer", answer),
    ("cache", cache),
    ("descriptor", descriptor),
    ("frame", frame),
    ("index", index),
    ("manifest", manifest),
    ("nbd", nbd),
    ("pack", pack),
    ("trace", trace),
];
