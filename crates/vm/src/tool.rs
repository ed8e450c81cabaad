//! Runs a program of QEMU to its end, with a limit to its time and to what it may say.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use collective_model::{Error, ErrorKind, IoResultExt, Result, ResultExt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

/// Bytes of standard error that are kept for the error: a few lines.
const COMPLAINT_BYTES: u64 = 4 << 10;

/// How long a program may take and how much it may say, before it is killed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    time: Duration,
    output_bytes: u64,
}

impl Limits {
    /// For what does nothing but answer.
    pub const QUICK: Self = Self { time: Duration::from_secs(30), output_bytes: 1 << 20 };
    /// For what walks through a whole image's tables. 256 MiB hold a map of two million pieces.
    pub const WALK: Self = Self { time: Duration::from_secs(600), output_bytes: 256 << 20 };
}

/// Runs a program and returns what it says; dropped half-way, it is killed.
///
/// # Errors
/// `Unavailable` when it takes too long, when there is no room, or when it cannot be run; `Corrupt` when it fails.
pub(crate) async fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = A>,
    limits: Limits,
) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .or_io(|| format!("cannot run {}", program.display()))?;
    let stdout = child.stdout.take().expect("standard output was asked for");
    let stderr = child.stderr.take().expect("standard error was asked for");
    let ended = timeout(limits.time, async {
        tokio::join!(
            start_of(stdout, limits.output_bytes),
            start_of(stderr, COMPLAINT_BYTES),
            child.wait()
        )
    });
    let (output, complaint, status) = ended.await.or_error(ErrorKind::Unavailable, || {
        format!("{} took more than {} s", program.display(), limits.time.as_secs())
    })?;
    let status = status.or_io(|| format!("cannot wait for {}", program.display()))?;
    if status.success() {
        return Ok(output);
    }
    let complaint = String::from_utf8_lossy(&complaint).trim().replace('\n', "; ");
    let full = complaint.contains("No space left on device");
    let kind = if full { ErrorKind::Unavailable } else { ErrorKind::Corrupt };
    Err(Error::new(kind, format!("{} failed ({status})", program.display())).with_source(complaint))
}

/// Reads to the end and keeps the first bytes: a pipe that nobody empties would stop the program.
async fn start_of(mut stream: impl AsyncRead + Unpin, limit_bytes: u64) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = (&mut stream).take(limit_bytes).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    kept
}
