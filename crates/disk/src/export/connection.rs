//! One connection after its negotiation: requests in, replies out, in whatever order the data is there.
//!
//! One task does it all. A read that needs no waiting is answered where it is parsed, straight into the output; only
//! one that must wait becomes a future beside the loop. Long reads advance piece by piece, so what a connection
//! can hold is its requests in flight times one piece, whatever the client asks for. A client that does not read
//! its replies stops being read.
//!
//! Clients without structured replies need each read in one run: their long reads go alone.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use collective_model::Result;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::handshake::{ALLOCATION_ID, Agreed, REQUEST_DATA_BYTES};
use super::output::Output;
use super::wire::{self, REQUEST_BYTES, Refusal, Request, WireExtent};
use crate::source::StatusExtent;

/// Requests of one connection in flight, at most: more wait in the socket.
const REQUESTS: usize = 64;
/// Bytes of a read that are held at once: with `REQUESTS` it bounds a connection's memory to 8 MiB.
const PIECE_BYTES: usize = 128 * 1024;
/// Bytes read from the socket at once: more requests than may be in flight.
const INPUT_BYTES: usize = 4096;
/// Extents in one answer to block status, at most: a client asks again for what follows.
const EXTENTS: usize = 1024;

/// Serves one client until it leaves; an error is a client that broke the protocol or the connection.
pub(super) async fn serve(mut stream: UnixStream, agreed: Agreed) -> io::Result<()> {
    Connection::new(agreed).run(&mut stream).await
}

struct Connection {
    agreed: Agreed,
    input: Input,
    output: Output,
    /// Reads whose next piece can be tried.
    ready: VecDeque<Read>,
    /// What has to wait.
    waiting: FuturesUnordered<BoxFuture<'static, Done>>,
    /// A read goes alone: nothing else is started before it ends.
    alone: bool,
    /// Bytes of a write that we refused and that are still coming.
    skip: usize,
    leaving: bool,
}

/// A read under way.
#[derive(Clone, Copy)]
struct Read {
    cookie: u64,
    offset: u64,
    left: usize,
    begun: bool,
}

/// The end of a wait.
enum Done {
    Piece(Read, Result<Bytes>),
    Status(Request, Result<Vec<StatusExtent>>),
}

impl Connection {
    fn new(agreed: Agreed) -> Self {
        Self {
            agreed,
            input: Input::default(),
            output: Output::default(),
            ready: VecDeque::new(),
            waiting: FuturesUnordered::new(),
            alone: false,
            skip: 0,
            leaving: false,
        }
    }

    async fn run(&mut self, stream: &mut UnixStream) -> io::Result<()> {
        let (mut reader, mut writer) = stream.split();
        loop {
            self.advance()?;
            if self.leaving && self.output.is_empty() && self.active() == 0 {
                return Ok(());
            }
            let may_read = !self.leaving && self.input.has_room();
            tokio::select! {
                biased;
                count = writer.write(self.output.waiting()), if !self.output.is_empty() => {
                    self.output.written(count?);
                }
                Some(done) = self.waiting.next(), if !self.output.is_full() => self.take(done)?,
                count = reader.read(self.input.room()), if may_read => match count? {
                    0 => return Ok(()),
                    count => self.input.filled(count),
                },
                else => return Ok(()),
            }
        }
    }

    /// Does all that can be done without waiting.
    fn advance(&mut self) -> io::Result<()> {
        while !self.output.is_full() {
            if let Some(read) = self.ready.pop_front() {
                self.step(read);
            } else if !self.start_next()? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn active(&self) -> usize {
        self.ready.len() + self.waiting.len()
    }

    /// Starts the next request that came in; false if there is none, or none may start now.
    fn start_next(&mut self) -> io::Result<bool> {
        if self.skip > 0 {
            self.skip -= self.input.skip(self.skip);
        }
        if self.skip > 0 || self.leaving || self.alone || self.active() >= REQUESTS {
            return Ok(false);
        }
        let Some(bytes) = self.input.peek() else { return Ok(false) };
        let Some(request) = Request::decode(bytes) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not an NBD request"));
        };
        let long = request.command == wire::COMMAND_READ && request.length as usize > PIECE_BYTES;
        let needs_alone = long && !self.agreed.structured;
        if needs_alone && self.active() > 0 {
            return Ok(false);
        }
        self.input.take();
        self.alone = needs_alone;
        self.start(request)?;
        Ok(true)
    }

    fn start(&mut self, request: Request) -> io::Result<()> {
        match request.command {
            wire::COMMAND_READ => self.start_read(request),
            wire::COMMAND_BLOCK_STATUS => self.start_status(request),
            wire::COMMAND_DISCONNECT => self.leaving = true,
            wire::COMMAND_FLUSH => self.done(request.cookie),
            wire::COMMAND_WRITE => {
                if request.length > REQUEST_DATA_BYTES {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a write too long"));
                }
                self.skip = request.length as usize;
                self.refuse(request.cookie, Refusal::NotPermitted);
            }
            // Trim and write zeros: known, but this disk does not change.
            4 | 6 => self.refuse(request.cookie, Refusal::NotPermitted),
            _ => self.refuse(request.cookie, Refusal::NotSupported),
        }
        Ok(())
    }

    fn start_read(&mut self, request: Request) {
        let fits = request.lies_within(self.agreed.source.size_bytes());
        let length = request.length;
        if !fits || request.flags != 0 || length == 0 || length > REQUEST_DATA_BYTES {
            self.alone = false;
            return self.refuse(request.cookie, Refusal::Invalid);
        }
        self.step(Read {
            cookie: request.cookie,
            offset: request.offset,
            left: length as usize,
            begun: false,
        });
    }

    /// Answers the next piece of a read, or sends it to wait.
    fn step(&mut self, read: Read) {
        let length = read.left.min(PIECE_BYTES);
        let head = self.head(read, length);
        let source = &self.agreed.source;
        if self.output.push_filled(&head, length, |data| source.read_now(read.offset, data)) {
            return self.after(read, length);
        }
        let source = Arc::clone(source);
        let piece = async move { Done::Piece(read, source.read(read.offset, length).await) };
        self.waiting.push(piece.boxed());
    }

    fn take(&mut self, done: Done) -> io::Result<()> {
        match done {
            Done::Piece(read, Ok(data)) => {
                let head = self.head(read, data.len());
                self.output.push(&head);
                self.output.push(&data);
                self.after(read, data.len());
            }
            Done::Piece(read, Err(error)) => {
                tracing::warn!(export = self.agreed.export, error = %error.chain(), "read failed");
                if read.begun && !self.agreed.structured {
                    // The client has part of the data and no way to hear of the rest.
                    return Err(io::Error::other("a read failed half way"));
                }
                self.alone = false;
                self.refuse(read.cookie, Refusal::InputOutput);
            }
            Done::Status(request, Ok(extents)) => self.answer_status(request, &extents),
            Done::Status(request, Err(error)) => {
                tracing::warn!(export = self.agreed.export, error = %error.chain(), "status failed");
                self.refuse(request.cookie, Refusal::InputOutput);
            }
        }
        Ok(())
    }

    fn after(&mut self, read: Read, length: usize) {
        let left = read.left - length;
        if left > 0 {
            let offset = read.offset + length as u64;
            self.ready.push_back(Read { offset, left, begun: true, ..read });
        } else {
            self.alone = false;
        }
    }

    /// What stands in front of a piece's data.
    fn head(&self, read: Read, length: usize) -> Head {
        if self.agreed.structured {
            let last = length == read.left;
            Head::Chunk(wire::data_head(read.cookie, last, read.offset, length))
        } else if read.begun {
            Head::Nothing
        } else {
            Head::Simple(wire::simple_head(read.cookie, None))
        }
    }

    fn start_status(&mut self, request: Request) {
        if !self.agreed.allocation
            || !request.lies_within(self.agreed.source.size_bytes())
            || request.length == 0
        {
            return self.refuse(request.cookie, Refusal::Invalid);
        }
        let source = Arc::clone(&self.agreed.source);
        let status = async move {
            let extents = source.status(request.offset, u64::from(request.length)).await;
            Done::Status(request, extents)
        };
        self.waiting.push(status.boxed());
    }

    fn answer_status(&mut self, request: Request, extents: &[StatusExtent]) {
        let extents = wire_extents(request, extents);
        if extents.is_empty() {
            return self.refuse(request.cookie, Refusal::InputOutput);
        }
        self.output.push_encoded(|out| {
            wire::encode_status(out, request.cookie, ALLOCATION_ID, &extents);
        });
    }

    fn done(&mut self, cookie: u64) {
        if self.agreed.structured {
            self.output.push_encoded(|out| wire::encode_none(out, cookie));
        } else {
            self.output.push(&wire::simple_head(cookie, None));
        }
    }

    fn refuse(&mut self, cookie: u64, refusal: Refusal) {
        if self.agreed.structured {
            self.output.push_encoded(|out| wire::encode_error(out, cookie, refusal));
        } else {
            self.output.push(&wire::simple_head(cookie, Some(refusal)));
        }
    }
}

/// The head of a piece, whichever kind the client speaks.
enum Head {
    Chunk([u8; wire::DATA_HEAD_BYTES]),
    Simple([u8; 16]),
    Nothing,
}

impl std::ops::Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Chunk(head) => head,
            Self::Simple(head) => head,
            Self::Nothing => &[],
        }
    }
}

/// Cuts extents to what was asked, as many as may be answered at once.
fn wire_extents(request: Request, extents: &[StatusExtent]) -> Vec<WireExtent> {
    let limit = if request.flags & wire::FLAG_ONE_EXTENT == 0 { EXTENTS } else { 1 };
    let mut left = request.length;
    let mut answer = Vec::new();
    for extent in extents.iter().filter(|extent| extent.length > 0).take(limit) {
        let length = u32::try_from(extent.length).unwrap_or(u32::MAX).min(left);
        if length == 0 {
            break;
        }
        left -= length;
        let state = if extent.zero { wire::STATE_HOLE_AND_ZERO } else { 0 };
        answer.push(WireExtent { length, state });
    }
    answer
}

/// Bytes that came in and are not yet understood.
struct Input {
    memory: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Input {
    fn default() -> Self {
        Self { memory: vec![0; INPUT_BYTES].into(), start: 0, end: 0 }
    }
}

impl Input {
    fn has_room(&self) -> bool {
        self.end - self.start < self.memory.len()
    }

    fn room(&mut self) -> &mut [u8] {
        self.memory.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        &mut self.memory[self.end..]
    }

    fn filled(&mut self, count: usize) {
        self.end += count;
    }

    fn peek(&self) -> Option<&[u8; REQUEST_BYTES]> {
        self.memory[self.start..self.end].first_chunk()
    }

    fn take(&mut self) {
        self.start += REQUEST_BYTES;
    }

    /// Drops up to `count` bytes; returns how many there were.
    fn skip(&mut self, count: usize) -> usize {
        let count = count.min(self.end - self.start);
        self.start += count;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::{Request, wire_extents};
    use crate::export::wire::{FLAG_ONE_EXTENT, WireExtent};
    use crate::source::StatusExtent;

    fn check(flags: u16, length: u32, extents: &[(u64, bool)], expected: &[(u32, u32)]) {
        let request = Request { flags, command: 7, cookie: 0, offset: 0, length };
        let extents: Vec<_> =
            extents.iter().map(|&(length, zero)| StatusExtent { length, zero }).collect();
        let expected: Vec<_> =
            expected.iter().map(|&(length, state)| WireExtent { length, state }).collect();
        assert_eq!(wire_extents(request, &extents), expected);
    }

    #[test]
    fn extents_are_cut_to_what_was_asked() {
        check(0, 100, &[(60, false), (60, true), (60, false)], &[(60, 0), (40, 3)]);
        check(FLAG_ONE_EXTENT, 100, &[(60, true), (60, false)], &[(60, 3)]);
        check(0, u32::MAX, &[(u64::MAX, true)], &[(u32::MAX, 3)]);
    }
}
