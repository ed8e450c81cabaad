//! How libraries tell how far they are: they report to a monitor and never talk to the user.

/// How far a long piece of work is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes worked through.
    pub done_bytes: u64,
    /// Bytes in all, once known.
    pub total_bytes: Option<u64>,
    /// Bytes that crossed the network or were stored for it.
    pub moved_bytes: u64,
}

/// Is told how far a long piece of work is. Called often: implementations return at once.
pub trait Monitor: Send + Sync {
    /// Takes the figures as they stand.
    fn progress(&self, progress: Progress);
}

/// A monitor that nobody looks at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn progress(&self, _: Progress) {}
}
