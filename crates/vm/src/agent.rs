//! Talks to the guest agent (`qemu-ga`) through its port. Everything that comes from there is the guest's, and hostile.
//!
//! The port has no connections: what answers a question may be the end of an answer that somebody else gave up on. So before the
//! first question, and after everything that went wrong, [`Agent`] makes a new connection and asks the agent for a fresh
//! number, and throws away whatever comes before it. Replies, output and waiting have limits. Questions
//! are asked one at a time; a program that runs long in the guest holds up nobody.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use collective_model::{Error, ErrorKind, IoResultExt, Result, ResultExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::lines::read_line;

/// How long the agent may take for one question. Under translation on a busy computer it takes up to a second.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of one answer: the agent keeps up to 16 MiB of a program's output and of its errors, and sends them in base64.
const ANSWER_BYTES: usize = 48 << 20;
/// Bytes that are thrown away while looking for the fresh number; more is a guest that babbles.
const STALE_BYTES: usize = 64 << 20;
/// Bytes of a file that go in one question: a longer line waits too long in a slow guest.
const FILE_PART_BYTES: usize = 48 << 10;
/// How long a refusal to shut down may take: an agent that obeys says nothing.
const REFUSAL_LIMIT: Duration = Duration::from_secs(2);
/// First and longest pause between looks at a running program.
const LOOK_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// The guest agent of one machine; clones take turns.
#[derive(Clone, Debug)]
pub struct Agent {
    path: PathBuf,
    connection: Arc<Mutex<Option<BufReader<UnixStream>>>>,
}

/// A program to run in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// The program.
    pub path: String,
    /// Its arguments, without its name.
    pub arguments: Vec<String>,
    /// What it reads.
    pub input: Vec<u8>,
}

/// How a program in the guest ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecResult {
    /// Its exit code; 128 and the signal's number if one ended it, as shells have it.
    pub exit_code: i32,
    /// What it wrote, at most 16 MiB.
    pub output: Vec<u8>,
    /// What it complained, at most 16 MiB.
    pub errors: Vec<u8>,
    /// Whether there was more of either.
    pub truncated: bool,
}

impl Agent {
    /// Names the agent behind a socket; connects when it is asked something.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), connection: Arc::default() }
    }

    /// Asks whether the agent is there.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer, as long as the guest is on its way up; `Corrupt` when the answer is none.
    pub async fn ping(&self) -> Result<()> {
        self.ask("guest-ping", json!({})).await.map(drop)
    }

    /// Runs a program and waits for its end.
    ///
    /// # Errors
    /// `NotFound` when the guest has no such program; `Denied` when it is none; `Invalid` when the guest refuses it otherwise; `Unavailable` when it has not ended within `limit` (it then runs on) or the agent does not
    /// answer.
    pub async fn exec(&self, exec: &Exec, limit: Duration) -> Result<ExecResult> {
        #[derive(Deserialize)]
        struct Started {
            pid: i64,
        }
        let mut arguments = json!({
            "path": exec.path,
            "arg": exec.arguments,
            "capture-output": true,
        });
        if !exec.input.is_empty() {
            arguments["input-data"] = json!(BASE64.encode(&exec.input));
        }
        let until = Instant::now() + limit;
        let asked = self.ask("guest-exec", arguments).await;
        let started: Started = answer(asked.map_err(|error| not_run(&exec.path, error))?)?;
        let mut pause = LOOK_PAUSES.0;
        loop {
            let status = self.ask("guest-exec-status", json!({ "pid": started.pid })).await?;
            if let Some(result) = ended(&answer(status)?)? {
                return Ok(result);
            }
            if Instant::now() + pause > until {
                let text = format!("`{}` did not end within {} s", exec.path, limit.as_secs());
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK_PAUSES.1);
        }
    }

    /// Writes a file in the guest, in place of one that is there.
    ///
    /// # Errors
    /// `Invalid` when the guest cannot write it; else as [`Agent::ping`].
    pub async fn write_file(&self, path: &str, content: &[u8]) -> Result<()> {
        let handle = self.open_file(path, "w").await?;
        let written = self.write_parts(handle, content).await;
        let closed = self.ask("guest-file-close", json!({ "handle": handle })).await;
        written
            .and(closed.map(drop))
            .map_err(|error| error.context(format!("cannot write {path} in the guest")))
    }

    /// Reads a file of at most `limit_bytes` in the guest.
    ///
    /// # Errors
    /// `Invalid` when the guest cannot read it or when it is longer; else as [`Agent::ping`].
    pub async fn read_file(&self, path: &str, limit_bytes: usize) -> Result<Vec<u8>> {
        let handle = self.open_file(path, "r").await?;
        let read = self.read_parts(handle, limit_bytes).await;
        let closed = self.ask("guest-file-close", json!({ "handle": handle })).await;
        let content =
            read.map_err(|error| error.context(format!("cannot read {path} in the guest")))?;
        closed.map(|_| content)
    }

    /// Asks the guest to shut itself down. That it does is seen by QEMU's end.
    ///
    /// # Errors
    /// `Invalid` when it refuses; `Unavailable` when there is no agent.
    pub async fn shutdown(&self) -> Result<()> {
        let mut connection = self.connection.lock().await;
        let mut reader = self.synchronised(connection.take()).await?;
        let question = json!({ "execute": "guest-shutdown", "arguments": { "mode": "powerdown" } });
        send(&mut reader, &question).await?;
        match timeout(REFUSAL_LIMIT, receive(&mut reader)).await {
            Ok(Ok(line)) => verdict("guest-shutdown", line).map(drop),
            // Silence, or the end of the connection, is consent.
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }

    async fn open_file(&self, path: &str, mode: &str) -> Result<i64> {
        let arguments = json!({ "path": path, "mode": mode });
        let handle = self.ask("guest-file-open", arguments).await;
        answer(handle.map_err(|error| error.context(format!("cannot open {path} in the guest")))?)
    }

    async fn write_parts(&self, handle: i64, content: &[u8]) -> Result<()> {
        #[derive(Deserialize)]
        struct Written {
            count: usize,
        }
        let mut rest = content;
        while !rest.is_empty() {
            let part = &rest[..rest.len().min(FILE_PART_BYTES)];
            let arguments = json!({ "handle": handle, "buf-b64": BASE64.encode(part) });
            let written: Written = answer(self.ask("guest-file-write", arguments).await?)?;
            if written.count == 0 || written.count > part.len() {
                return Err(nonsense("it says it wrote what it was not given"));
            }
            rest = &rest[written.count..];
        }
        self.ask("guest-file-flush", json!({ "handle": handle })).await.map(drop)
    }

    async fn read_parts(&self, handle: i64, limit_bytes: usize) -> Result<Vec<u8>> {
        #[derive(Deserialize)]
        struct Part {
            #[serde(rename = "buf-b64", default)]
            content: String,
            #[serde(default)]
            eof: bool,
        }
        let mut content = Vec::new();
        loop {
            let arguments = json!({ "handle": handle, "count": FILE_PART_BYTES });
            let part: Part = answer(self.ask("guest-file-read", arguments).await?)?;
            let bytes = decode(&part.content)?;
            if bytes.is_empty() && !part.eof {
                return Err(nonsense("it reads nothing, and not the end either"));
            }
            if content.len() + bytes.len() > limit_bytes {
                let text = format!("it is longer than {limit_bytes} bytes");
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            content.extend(bytes);
            if part.eof {
                return Ok(content);
            }
        }
    }

    /// Asks one question. The connection is kept only if the answer came whole.
    async fn ask(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut connection = self.connection.lock().await;
        // Taken out: who is dropped or fails on the way leaves none, and the next one starts afresh.
        let mut reader = match connection.take() {
            Some(reader) => reader,
            None => self.synchronised(None).await?,
        };
        let question = json!({ "execute": command, "arguments": arguments });
        let line = timeout(ANSWER_LIMIT, async {
            send(&mut reader, &question).await?;
            receive(&mut reader).await
        })
        .await
        .or_error(ErrorKind::Unavailable, || silent(command))??;
        *connection = Some(reader);
        verdict(command, line)
    }

    /// Makes a connection on which the next answer will be to the next question.
    async fn synchronised(
        &self,
        kept: Option<BufReader<UnixStream>>,
    ) -> Result<BufReader<UnixStream>> {
        let connected = async {
            let mut reader = match kept {
                Some(reader) => reader,
                None => BufReader::new(connect(&self.path).await?),
            };
            synchronise(&mut reader).await?;
            Ok(reader)
        };
        timeout(ANSWER_LIMIT, connected)
            .await
            .or_error(ErrorKind::Unavailable, || silent("guest-sync-delimited"))?
    }
}

async fn connect(path: &Path) -> Result<UnixStream> {
    // Without its machine there is no port: the agent is away, nothing is missing.
    UnixStream::connect(path).await.or_error(ErrorKind::Unavailable, || {
        format!("cannot reach the guest agent's port at {}", path.display())
    })
}

/// Throws away everything that was said before now: the agent marks its answer with a byte that no JSON has.
async fn synchronise(reader: &mut BufReader<UnixStream>) -> Result<()> {
    let mut random = [0; 4];
    getrandom::fill(&mut random)
        .or_error(ErrorKind::Internal, || "the system gives no random number".to_owned())?;
    let number = u32::from_le_bytes(random);
    let mut question = vec![0xff];
    let command = json!({ "execute": "guest-sync-delimited", "arguments": { "id": number } });
    question.extend(command.to_string().into_bytes());
    question.push(b'\n');
    write(reader, &question).await?;
    let mut left_bytes = STALE_BYTES;
    loop {
        let stale = skip_mark(reader, left_bytes).await?;
        left_bytes = left_bytes.saturating_sub(stale);
        // The answer to an earlier, given up question of this kind also has the mark, but not our number.
        if receive(reader).await.is_ok_and(|line| line.returned == Some(json!(number))) {
            return Ok(());
        }
        left_bytes = left_bytes.saturating_sub(1);
    }
}

/// Skips up to and with the mark; returns how many bytes that were.
async fn skip_mark(reader: &mut BufReader<UnixStream>, limit_bytes: usize) -> Result<usize> {
    let mut skipped = 0;
    while skipped < limit_bytes {
        let available = reader.fill_buf().await.or_io(lost)?;
        if available.is_empty() {
            return Err(Error::new(ErrorKind::Unavailable, lost()));
        }
        let mark = available.iter().position(|&byte| byte == 0xff);
        let used = mark.map_or(available.len(), |at| at + 1);
        reader.consume(used);
        skipped += used;
        if mark.is_some() {
            return Ok(skipped);
        }
    }
    Err(nonsense("it says more than it was asked"))
}

async fn send(reader: &mut BufReader<UnixStream>, question: &Value) -> Result<()> {
    let mut line = question.to_string();
    line.push('\n');
    write(reader, line.as_bytes()).await
}

async fn write(reader: &mut BufReader<UnixStream>, bytes: &[u8]) -> Result<()> {
    reader.get_mut().write_all(bytes).await.or_io(lost)
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

async fn receive(reader: &mut BufReader<UnixStream>) -> Result<Line> {
    let mut line = Vec::new();
    if !read_line(reader, &mut line, ANSWER_BYTES).await.or_io(lost)? {
        return Err(Error::new(ErrorKind::Unavailable, lost()));
    }
    serde_json::from_slice(&line)
        .or_error(ErrorKind::Corrupt, || "the guest agent's answer is no JSON".to_owned())
}

/// Tells a program that is not there, or is none, from what else the agent refuses. It has words for them only, not codes.
fn not_run(path: &str, error: Error) -> Error {
    if error.kind() != ErrorKind::Invalid {
        return error;
    }
    let words = error.chain();
    if words.contains("No such file or directory") {
        Error::new(ErrorKind::NotFound, format!("there is no program `{path}` in the guest"))
    } else if words.contains("Permission denied") || words.contains("Exec format error") {
        Error::new(ErrorKind::Denied, format!("`{path}` in the guest is no program to be run"))
    } else {
        error
    }
}

/// Turns an answer into what it returns or why it refuses.
fn verdict(command: &str, line: Line) -> Result<Value> {
    match (line.error, line.returned) {
        (Some(refusal), _) => {
            let text = format!("the guest agent refused `{command}`");
            Err(Error::new(ErrorKind::Invalid, text).with_source(refusal.desc))
        }
        (None, Some(value)) => Ok(value),
        (None, None) => Err(nonsense("its answer neither returns nor refuses")),
    }
}

fn answer<T: for<'a> Deserialize<'a>>(value: Value) -> Result<T> {
    serde_json::from_value(value)
        .or_error(ErrorKind::Corrupt, || "the guest agent's answer has another form".to_owned())
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ExecStatus {
    exited: bool,
    exitcode: Option<i32>,
    signal: Option<i32>,
    #[serde(default)]
    out_data: String,
    #[serde(default)]
    err_data: String,
    #[serde(default)]
    out_truncated: bool,
    #[serde(default)]
    err_truncated: bool,
}

fn ended(status: &ExecStatus) -> Result<Option<ExecResult>> {
    if !status.exited {
        return Ok(None);
    }
    let by_signal = status.signal.map(|signal| signal.saturating_add(128));
    Ok(Some(ExecResult {
        exit_code: status.exitcode.or(by_signal).unwrap_or(-1),
        output: decode(&status.out_data)?,
        errors: decode(&status.err_data)?,
        truncated: status.out_truncated || status.err_truncated,
    }))
}

fn decode(text: &str) -> Result<Vec<u8>> {
    BASE64
        .decode(text)
        .or_error(ErrorKind::Corrupt, || "the guest agent's answer is no base64".to_owned())
}

fn nonsense(how: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "the guest agent talks nonsense").with_source(how)
}

fn silent(command: &str) -> String {
    format!("the guest agent did not answer `{command}` within {} s", ANSWER_LIMIT.as_secs())
}

fn lost() -> String {
    "the connection to the guest agent was lost".to_owned()
}

#[cfg(test)]
mod tests;
