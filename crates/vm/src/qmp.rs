//! Talks to QEMU's monitor, or to the storage daemon's, over its Unix socket.
//!
//! One task owns the connection: it gives each command an id, so that many can be under way, and hands each reply to
//! whoever waits for it. A caller who stops waiting harms nobody: the late reply is dropped. When the
//! connection ends, everybody who waits is told so at once. What QEMU does on its own are [`QmpEvent`]s.
//!
//! QEMU handles commands one after the other, and one that waits for a late block holds up those behind it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use collective_model::{Error, ErrorKind, IoResultExt, Result, ResultExt, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::timeout;

use crate::lines::read_line;

/// How long a command may take unless its caller says otherwise: QEMU answers in milliseconds when it answers.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// Bytes of one reply: the longest, the list of a hundred nodes, has some 100 KiB.
const REPLY_BYTES: usize = 16 << 20;
/// Commands under way at once; one more waits. Only as many as tasks of one machine talk at a time.
const COMMANDS: usize = 64;
/// Events that a slow listener may be behind; then it is told how many it missed.
const EVENTS: usize = 256;

/// A connection to a monitor; clones share it.
#[derive(Clone, Debug)]
pub struct Qmp {
    requests: mpsc::Sender<Request>,
    /// Weak, so that the owner's end is the events' end.
    events: broadcast::WeakSender<QmpEvent>,
}

/// Something that QEMU did or noticed on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QmpEvent {
    /// Its name, such as `SHUTDOWN`.
    pub name: String,
    /// What it says.
    pub data: Value,
    /// When, by this computer's clock.
    pub time: Timestamp,
}

/// The events of one connection, from when it was asked for.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<QmpEvent>);

impl Events {
    /// Waits for the next event; none once the connection has ended. Events that came faster than they were taken are left out.
    pub async fn next(&mut self) -> Option<QmpEvent> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(count)) => {
                    tracing::warn!(count, "events of QEMU came faster than they were taken");
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// What the machine's processors do, as QEMU says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunState {
    /// Whether the guest's processors run.
    pub running: bool,
    /// QEMU's word for it, such as `running`, `paused`, `io-error` or `shutdown`.
    pub status: String,
}

#[derive(Debug)]
struct Request {
    command: String,
    arguments: Value,
    reply: oneshot::Sender<Result<Value>>,
}

impl Qmp {
    /// Connects to a monitor's socket and agrees on how to talk.
    ///
    /// # Errors
    /// `NotFound` or `Unavailable` when nobody listens there or answers within [`COMMAND_LIMIT`]; `Corrupt` when what answers is no
    /// monitor.
    pub async fn connect(path: &Path) -> Result<Self> {
        let shown = path.display();
        let stream =
            UnixStream::connect(path).await.or_io(|| format!("cannot reach QEMU at {shown}"))?;
        let (read, write) = stream.into_split();
        let mut reader = BufReader::new(read);
        timeout(COMMAND_LIMIT, greeting(&mut reader))
            .await
            .or_error(ErrorKind::Unavailable, || format!("QEMU at {shown} does not answer"))?
            .map_err(|error| error.context(format!("what listens at {shown} is no monitor")))?;
        let (requests, incoming) = mpsc::channel(COMMANDS);
        let events = broadcast::Sender::new(EVENTS);
        let (lines_in, lines) = mpsc::channel(COMMANDS);
        tokio::spawn(read_lines(reader, lines_in));
        let qmp = Self { requests, events: events.downgrade() };
        let owner = Owner { write, pending: HashMap::new(), next_id: 0, listeners: events };
        tokio::spawn(owner.run(incoming, lines));
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returns.
    ///
    /// # Errors
    /// `Invalid` with QEMU's own words when it refuses; `Unavailable` when it does not answer within [`COMMAND_LIMIT`] or the
    /// connection ends. In the latter cases nobody knows whether it was done.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_within(command, arguments, COMMAND_LIMIT).await
    }

    /// As [`Qmp::execute`], with a limit of the caller's.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn execute_within(
        &self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value> {
        let (reply, answer) = oneshot::channel();
        let request = Request { command: command.to_owned(), arguments, reply };
        let answered = timeout(limit, async {
            self.requests.send(request).await.map_err(|_| closed(command))?;
            answer.await.map_err(|_| closed(command))?
        });
        answered.await.or_error(ErrorKind::Unavailable, || {
            format!("QEMU did not answer `{command}` within {} s", limit.as_secs_f32())
        })?
    }

    /// Returns the events from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        let ended = || broadcast::channel(1).1;
        Events(self.events.upgrade().map_or_else(ended, |events| events.subscribe()))
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        self.requests.closed().await;
    }

    /// Tells whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Asks whether the guest runs.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn status(&self) -> Result<RunState> {
        #[derive(Deserialize)]
        struct Status {
            running: bool,
            status: String,
        }
        let status: Status = parse("query-status", self.execute("query-status", json!({})).await?)?;
        Ok(RunState { running: status.running, status: status.status })
    }

    /// Holds the guest: returns as soon as its processors stand still.
    ///
    /// QEMU then waits for the disk reads that are under way and answers nothing until they are done; so this does
    /// not wait for the command but for its event, and [`Qmp::resume`] takes effect when the late block has come.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn hold(&self) -> Result<()> {
        let mut events = self.events();
        let command = self.execute("stop", json!({}));
        let held = async {
            while let Some(event) = events.next().await {
                if event.name == "STOP" {
                    return true;
                }
            }
            false
        };
        tokio::select! {
            done = command => done.map(drop),
            true = held => Ok(()),
        }
    }

    /// Lets a held guest go on.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn resume(&self) -> Result<()> {
        self.execute("cont", json!({})).await.map(drop)
    }

    /// Presses the machine's power button; a guest with ACPI then shuts itself down.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn press_power(&self) -> Result<()> {
        self.execute("system_powerdown", json!({})).await.map(drop)
    }

    /// Ends QEMU, as pulling the power cord would, but with its files closed properly.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn quit(&self) -> Result<()> {
        self.execute("quit", json!({})).await.map(drop)
    }
}

/// Reads what a command returned.
pub(crate) fn parse<T: for<'a> Deserialize<'a>>(command: &str, value: Value) -> Result<T> {
    serde_json::from_value(value).or_error(ErrorKind::Corrupt, || {
        format!("QEMU's answer to `{command}` has another form than expected")
    })
}

fn closed(command: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("QEMU went away before it answered `{command}`"))
}

/// What comes from the monitor, one to a line.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<u64>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    timestamp: Option<EventTime>,
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

#[derive(Deserialize)]
struct EventTime {
    seconds: i64,
    microseconds: i64,
}

async fn greeting(reader: &mut BufReader<OwnedReadHalf>) -> Result<()> {
    let mut line = Vec::new();
    let refused = || Error::new(ErrorKind::Corrupt, "it greets with something else");
    if !read_line(reader, &mut line, REPLY_BYTES).await.or_io(|| "cannot read".to_owned())? {
        return Err(refused());
    }
    let greeting = serde_json::from_slice::<Line>(&line).ok().and_then(|line| line.greeting);
    greeting.map(drop).ok_or_else(refused)
}

/// Hands on every line until the connection ends or says something that is no line of a monitor.
async fn read_lines(mut reader: BufReader<OwnedReadHalf>, lines: mpsc::Sender<Line>) {
    let mut text = Vec::new();
    loop {
        match read_line(&mut reader, &mut text, REPLY_BYTES).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return tracing::debug!(%error, "the monitor's connection broke"),
        }
        match serde_json::from_slice(&text) {
            Ok(line) => {
                if lines.send(line).await.is_err() {
                    return;
                }
            }
            Err(error) => return tracing::warn!(%error, "the monitor said what is no JSON"),
        }
    }
}

/// Owns one connection: who waits for which reply.
struct Owner {
    write: OwnedWriteHalf,
    pending: HashMap<u64, oneshot::Sender<Result<Value>>>,
    next_id: u64,
    listeners: broadcast::Sender<QmpEvent>,
}

impl Owner {
    /// Works until the connection ends or nobody holds it any more; what is pending then is dropped, which tells who waits.
    async fn run(mut self, mut requests: mpsc::Receiver<Request>, mut lines: mpsc::Receiver<Line>) {
        loop {
            let goes_on = tokio::select! {
                line = lines.recv() => line.map(|line| self.take(line)).is_some(),
                request = requests.recv() => match request {
                    Some(request) => self.send(request).await,
                    None => false,
                },
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Sends a command; false if the connection is gone.
    async fn send(&mut self, request: Request) -> bool {
        // Who stopped waiting is forgotten here, so that the list is never longer than the callers are many.
        self.pending.retain(|_, reply| !reply.is_closed());
        if request.reply.is_closed() {
            return true;
        }
        let id = self.next_id;
        self.next_id += 1;
        let mut line =
            json!({ "execute": request.command, "arguments": request.arguments, "id": id })
                .to_string();
        line.push('\n');
        self.pending.insert(id, request.reply);
        self.write.write_all(line.as_bytes()).await.is_ok()
    }

    fn take(&mut self, line: Line) {
        if let Some(name) = line.event {
            let time = line.timestamp.map_or(Timestamp::default(), |time| {
                Timestamp(
                    time.seconds.saturating_mul(1000).saturating_add(time.microseconds / 1000),
                )
            });
            // Nobody has to listen.
            let _ = self.listeners.send(QmpEvent { name, data: line.data, time });
            return;
        }
        let Some(reply) = line.id.and_then(|id| self.pending.remove(&id)) else {
            return;
        };
        let answer = match line.error {
            Some(refusal) => Err(Error::new(ErrorKind::Invalid, "QEMU refused a command")
                .with_source(format!("{}: {}", refusal.class, refusal.desc))),
            None => Ok(line.returned.unwrap_or(Value::Null)),
        };
        // A caller who gave up in between does not mind.
        let _ = reply.send(answer);
    }
}

#[cfg(test)]
mod tests;
