//! A line to a server, shaped in user space: so many bits a second each way, shared by all connections, and a delay.
//!
//! A proxy before a real server. Every piece of a connection departs when the line is free, which holds the sender back,
//! and arrives half a round trip later; opening a connection costs a round trip. There is no loss, and no slow start but
//! that of the loopback's TCP. Kernels can do this too (netem), where they have the module.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Bytes that travel as one: small enough that connections share a slow line.
const PIECE_BYTES: usize = 4096;
/// Pieces of a connection that are under way at most: 4 MiB, more than any of these lines holds.
const PIECES: usize = 1024;

/// A kind of line.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub name: &'static str,
    /// Bits a second to the client, and from it.
    pub down: u64,
    pub up: u64,
    /// There and back.
    pub round_trip: Duration,
}

pub const LAN: Line =
    Line { name: "lan", down: 100_000_000, up: 100_000_000, round_trip: Duration::from_millis(1) };
pub const BROADBAND: Line = Line {
    name: "broadband",
    down: 50_000_000,
    up: 10_000_000,
    round_trip: Duration::from_millis(20),
};
pub const DSL: Line =
    Line { name: "dsl", down: 1_500_000, up: 384_000, round_trip: Duration::from_millis(40) };

/// So fast that it only counts.
pub const COUNTED: Line =
    Line { name: "counted", down: 1 << 40, up: 1 << 40, round_trip: Duration::ZERO };

impl Line {
    /// Seconds that so many bytes take to the client, at least.
    pub fn seconds(&self, bytes: f64) -> f64 {
        bytes * 8.0 / self.down as f64
    }
}

/// A line in use; gone when dropped.
#[derive(Debug)]
pub struct Link {
    /// Where clients connect.
    pub address: SocketAddr,
    down: Arc<Lane>,
    up: Arc<Lane>,
    accepting: AbortHandle,
}

/// One direction of a line.
#[derive(Debug)]
struct Lane {
    bits_per_second: u64,
    delay: Duration,
    free_at: Mutex<Instant>,
    bytes: AtomicU64,
}

impl Link {
    /// Lays a line to `server`.
    pub async fn lay(line: Line, server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (down, up) = (Lane::new(line.down, &line), Lane::new(line.up, &line));
        let (to_client, to_server) = (Arc::clone(&down), Arc::clone(&up));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (down, up) = (Arc::clone(&to_client), Arc::clone(&to_server));
                tokio::spawn(async move {
                    tokio::time::sleep(line.round_trip).await;
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    tokio::join!(
                        carry(up, from_client, to_server),
                        carry(down, from_server, to_client)
                    );
                });
            }
        });
        Ok(Self { address, down, up, accepting: accepting.abort_handle() })
    }

    /// Bytes that went to clients, headers of requests and TLS included.
    pub fn down_bytes(&self) -> u64 {
        self.down.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that went to the server.
    pub fn up_bytes(&self) -> u64 {
        self.up.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Lane {
    fn new(bits_per_second: u64, line: &Line) -> Arc<Self> {
        Arc::new(Self {
            bits_per_second,
            delay: line.round_trip / 2,
            free_at: Mutex::new(Instant::now()),
            bytes: AtomicU64::new(0),
        })
    }

    /// Waits for the line and occupies it; returns when the last bit arrives.
    async fn send(&self, bytes: usize) -> Instant {
        let departed = {
            let mut free_at = self.free_at.lock().await;
            let takes = Duration::from_secs_f64(bytes as f64 * 8.0 / self.bits_per_second as f64);
            *free_at = (*free_at).max(Instant::now()) + takes;
            *free_at
        };
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        tokio::time::sleep_until(departed).await;
        departed + self.delay
    }
}

async fn carry(lane: Arc<Lane>, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (under_way, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let arrivals = async move {
        while let Some((at, piece)) = arriving.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        // The other end closed: so does this one. Nobody is left to hear of an error.
        let _ = to.shutdown().await;
    };
    let departures = async move {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            match from.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(length) => piece.truncate(length),
            }
            let at = lane.send(piece.len()).await;
            if under_way.send((at, piece)).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(arrivals, departures);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_as_slow_as_it_says_however_many_share_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move { stream.write_all(&vec![7; 100_000]).await });
            }
        });
        let link = Link::lay(BROADBAND, server).await.unwrap();
        let started = Instant::now();
        let readers = (0..4).map(|_| async {
            let mut stream = TcpStream::connect(link.address).await.unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            assert_eq!(bytes, vec![7; 100_000]);
        });
        futures::future::join_all(readers).await;
        let floor = BROADBAND.seconds(400_000.0) + BROADBAND.round_trip.as_secs_f64();
        assert!(started.elapsed().as_secs_f64() >= floor);
        assert_eq!(link.down_bytes(), 400_000);
    }
}
