//! What fuzzing may call of the export: one connection, from its first byte to its last.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::{Error, ErrorKind, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{Entry, Shared, client};
use crate::source::{Source, StatusExtent};

/// Bytes of the disk: more than two pieces of a long read.
const DISK_BYTES: u64 = 300_000;

/// Where replies begin: behind the greeting, in which the server speaks first.
const GREETING_BYTES: usize = 18;

thread_local! {
    static RUNTIME: RefCell<tokio::runtime::Runtime> = RefCell::new(
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime needs little of the system"),
    );
}

/// Sends bytes to the export as a client would; every piece of data in the replies must be what the disk holds there.
///
/// # Panics
/// If the export sends wrong bytes, or what no client understands.
pub fn nbd(bytes: &[u8]) {
    let replies = RUNTIME.with_borrow(|runtime| runtime.block_on(talk(bytes)));
    let replies = replies.expect("a pair of sockets carries bytes");
    assert!(replies.starts_with(b"NBDMAGICIHAVEOPT"));
    check(&replies[GREETING_BYTES..]);
}

async fn talk(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let (ours, theirs) = UnixStream::pair()?;
    let shared = Arc::new(Shared::default());
    shared.entries().insert("system".to_owned(), Entry::new(Arc::new(Disk)));
    let (mut reader, mut writer) = ours.into_split();
    let mut replies = Vec::new();
    let talk = async {
        // The export may hang up on what it hears: it then has said all it will.
        let _ = writer.write_all(bytes).await;
        drop(writer);
    };
    let listen = reader.read_to_end(&mut replies);
    let ((), (), heard) = tokio::join!(client(theirs, shared), talk, listen);
    match heard {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
        _ => Ok(replies),
    }
}

/// Goes through replies as long as they are complete and structured.
fn check(mut replies: &[u8]) {
    while let Some((option, after)) = option_reply(replies) {
        assert!(option.len() < 300, "a long answer to an option");
        replies = after;
    }
    while let Some((kind, payload, after)) = chunk(replies) {
        match (kind, payload.split_first_chunk()) {
            (1, Some((offset, data))) => {
                let offset = u64::from_be_bytes(*offset);
                assert!(data == content(offset, data.len()), "wrong bytes at {offset}");
            }
            (0, _) => assert!(payload.is_empty()),
            (5, _) => assert!(payload.len() % 8 == 4 && payload.len() > 4),
            (0x8001, _) => assert_eq!(payload.len(), 6),
            _ => panic!("a chunk of kind {kind}"),
        }
        replies = after;
    }
}

fn option_reply(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_prefix(&0x0003_e889_0455_65a9_u64.to_be_bytes())?;
    let (length, rest) = rest.get(8..)?.split_first_chunk()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

fn chunk(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let rest = bytes.strip_prefix(&0x668e_33ef_u32.to_be_bytes())?;
    let (kind, rest) = rest.get(2..)?.split_first_chunk()?;
    let (length, rest) = rest.get(8..)?.split_first_chunk()?;
    let (payload, after) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    Some((u16::from_be_bytes(*kind), payload, after))
}

/// A disk whose bytes tell where they are; some of it is at hand, some has to be waited for, some cannot be read.
struct Disk;

fn content(offset: u64, length: usize) -> Vec<u8> {
    (offset..).take(length).map(|at| (at ^ at >> 8) as u8).collect()
}

#[async_trait]
impl Source for Disk {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> bool {
        assert!(offset + buffer.len() as u64 <= DISK_BYTES, "a read off the disk");
        buffer.copy_from_slice(&content(offset, buffer.len()));
        offset.is_multiple_of(3)
    }

    async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        assert!(offset + length as u64 <= DISK_BYTES, "a read off the disk");
        tokio::task::yield_now().await;
        if offset % 7 == 5 {
            return Err(Error::new(ErrorKind::Unavailable, "it cannot be read"));
        }
        Ok(content(offset, length).into())
    }

    async fn status(&self, offset: u64, length: u64) -> Result<Vec<StatusExtent>> {
        assert!(offset + length <= DISK_BYTES, "a look off the disk");
        let (left, right) = (length / 2, length - length / 2);
        let extent = |length, zero| StatusExtent { length, zero };
        Ok(vec![extent(left, true), extent(right, offset.is_multiple_of(2))])
    }
}
