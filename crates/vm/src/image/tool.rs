//! Runs the tools of the distribution and turns their failures into errors that name them.
//!
//! A tool that is dropped half-way is killed with everything that it started. What it says on standard
//! error is handed on line by line, and its last lines become the cause of the error.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::process::Stdio;

use collective_model::{Error, ErrorKind, IoResultExt, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// Lines of standard error that are kept for the error: enough for a cause, too few to bury it.
const KEPT_LINES: usize = 12;
/// Between the lines of a complaint.
const LINE_MARK: &str = "\n";
/// Bytes of one such line that are kept.
const KEPT_LINE_BYTES: usize = 400;
/// Bytes of standard output that are read; a map of a badly fragmented terabyte stays below it.
const OUTPUT_BYTES: u64 = 256 << 20;

/// One call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The program's name, looked up in the path.
    pub program: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables added to its environment.
    pub environment: Vec<(&'static str, OsString)>,
    /// What it reads on standard input.
    pub input: String,
}

/// How a tool ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub output: Vec<u8>,
    /// The last lines that it wrote to standard error.
    pub complaint: String,
}

impl Tool {
    pub(crate) fn new(program: &'static str, package: &'static str) -> Self {
        Self {
            program,
            package,
            arguments: Vec::new(),
            environment: Vec::new(),
            input: String::new(),
        }
    }

    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub(crate) fn args<T: Into<OsString>>(
        mut self,
        arguments: impl IntoIterator<Item = T>,
    ) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    pub(crate) fn input(mut self, text: impl Into<String>) -> Self {
        self.input = text.into();
        self
    }

    /// Runs the tool; `hear` gets each line of its standard error.
    pub(crate) async fn run(&self, hear: &mut (dyn FnMut(&str) + Send)) -> Result<Ended> {
        let mut child = self.start()?;
        let mut stdin = child.stdin.take().expect("standard input was asked for");
        let stdout = child.stdout.take().expect("standard output was asked for");
        let stderr = child.stderr.take().expect("standard error was asked for");
        let mut output = Vec::new();
        let mut stdout = stdout.take(OUTPUT_BYTES);
        let (_, read, complaint) = tokio::join!(
            async {
                // A tool may end without reading all of it; its exit code tells.
                let _ = stdin.write_all(self.input.as_bytes()).await;
                drop(stdin);
            },
            stdout.read_to_end(&mut output),
            last_lines(stderr, hear),
        );
        read.or_io(|| format!("cannot read what {} says", self.program))?;
        let status = child.wait().await.or_io(|| format!("cannot wait for {}", self.program))?;
        Ok(Ended { code: status.code(), output, complaint })
    }

    /// Runs the tool and takes every exit code but 0 for a failure of kind `kind`.
    pub(crate) async fn expect(&self, kind: ErrorKind, message: &str) -> Result<Vec<u8>> {
        let ended = self.run(&mut |_| ()).await?;
        if ended.code == Some(0) {
            Ok(ended.output)
        } else {
            Err(self.failed(&ended, kind, message))
        }
    }

    /// Returns the error that tells how the tool failed.
    pub(crate) fn failed(&self, ended: &Ended, kind: ErrorKind, message: &str) -> Error {
        let kind = if ended.complaint.contains("No space left on device") {
            ErrorKind::Unavailable
        } else {
            kind
        };
        let how =
            ended.code.map_or_else(|| "was killed".to_owned(), |code| format!("ended with {code}"));
        Error::new(kind, message).with_source(format!(
            "{} {how}: {}",
            self.program,
            gist(self.program, &ended.complaint)
        ))
    }

    fn start(&self) -> Result<Child> {
        let mut command = Command::new(self.program);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            // Their messages are matched, and their files sorted, in one language.
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command.spawn().map_err(|source| {
            let missing = source.kind() == std::io::ErrorKind::NotFound;
            let error = Error::new(
                if missing { ErrorKind::Unavailable } else { ErrorKind::Internal },
                format!("cannot run {}", self.program),
            )
            .with_source(source);
            if missing {
                error.with_hint(format!("apt-get install {}", self.package))
            } else {
                error
            }
        })
    }
}

/// Picks what matters out of the last lines of a tool: the first that is marked as an error, as apt and mmdebstrap mark
/// theirs; of qemu-img, which has a line for every cluster, the first.
fn gist(program: &str, complaint: &str) -> String {
    let mut lines = complaint.split(LINE_MARK);
    match lines.clone().find_map(|line| line.strip_prefix("E: ")) {
        Some(line) => line.to_owned(),
        None if program == "qemu-img" => lines.next().unwrap_or_default().to_owned(),
        None => lines.collect::<Vec<_>>().join("; "),
    }
}

/// Hands on each line, split also where progress bars return the carriage, and returns the last ones.
async fn last_lines(
    stream: impl tokio::io::AsyncRead + Unpin,
    hear: &mut (dyn FnMut(&str) + Send),
) -> String {
    let mut kept: VecDeque<String> = VecDeque::new();
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut reader).take(64 << 10);
        match limited.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        hear(text);
        if !text.is_empty() {
            kept.push_back(text.chars().take(KEPT_LINE_BYTES).collect());
        }
        if kept.len() > KEPT_LINES {
            kept.pop_front();
        }
    }
    kept.make_contiguous().join(LINE_MARK)
}

#[cfg(test)]
mod tests {
    use super::gist;

    #[test]
    fn of_many_lines_the_one_that_matters_is_kept() {
        let said = "W: hook\nE: Unable to locate package nix\nE: mmdebstrap failed to run";
        assert_eq!(gist("unshare", said), "Unable to locate package nix");
        let clusters = "ERROR cluster 5 lies beyond the end\nERROR cluster 6 lies beyond the end";
        assert_eq!(gist("qemu-img", clusters), "ERROR cluster 5 lies beyond the end");
        assert_eq!(gist("sfdisk", "a\nb"), "a; b");
        assert_eq!(gist("sfdisk", ""), "");
    }
}
