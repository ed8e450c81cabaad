//! The HTTP backend over a line that stalls: it gives up within its limit, says so, and goes on when it is tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use collective_model::{Digest, DiskRole, Epoch, ErrorKind, Result, Silent};
use collective_repository::backend::{Backend, Directory, Http, ObjectName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::http::{Manners, Server, client, serve};
use crate::world::{World, check, publication, read, version, whole};

/// The limits of these tests, in place of half a minute and of minutes.
const STALL: Duration = Duration::from_millis(400);
const UPLOAD_STALL: Duration = Duration::from_secs(3);
/// How long giving up may take on a busy machine; far less than the limits that hold otherwise.
const PATIENCE: Duration = Duration::from_secs(15);
const NO_END: u64 = u64::MAX;

/// A line to an honest server that lets so many more bytes through in each direction, and then nothing.
struct Line {
    up_bytes: Arc<AtomicU64>,
    down_bytes: Arc<AtomicU64>,
    base: String,
    task: JoinHandle<()>,
    _server: Server,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    async fn to(directory: &Directory) -> Self {
        let server = serve(directory.clone(), Manners::Honest).await;
        let far = server.base.strip_prefix("http://").unwrap().split('/').next().unwrap();
        let far = far.to_owned();
        let socket = TcpSocket::new_v4().unwrap();
        // What waits in buffers must be little against what is sent.
        socket.set_recv_buffer_size(64 << 10).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(16).unwrap();
        let near = listener.local_addr().unwrap().to_string();
        let base = server.base.replace(&far, &near);
        let up_bytes = Arc::new(AtomicU64::new(NO_END));
        let down_bytes = Arc::new(AtomicU64::new(NO_END));
        let (up, down) = (up_bytes.clone(), down_bytes.clone());
        let task = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(&far).await.unwrap();
                let ((near_in, near_out), (far_in, far_out)) =
                    (near.into_split(), far.into_split());
                tokio::spawn(carry(near_in, far_out, up.clone()));
                tokio::spawn(carry(far_in, near_out, down.clone()));
            }
        });
        Self { up_bytes, down_bytes, base, task, _server: server }
    }

    fn http(&self) -> Arc<Http> {
        // A client of its own: no connection from before is used.
        Arc::new(Http::new(client(), &self.base, Epoch(1)).with_limits(STALL, UPLOAD_STALL))
    }
}

/// Carries bytes one way; when no more are let through it takes nothing and gives nothing, and does not hang up.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    left: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        let before = left.load(Ordering::SeqCst);
        let through = usize::try_from(before).unwrap_or(usize::MAX).min(count);
        if before < SLOW {
            left.fetch_sub(through as u64, Ordering::SeqCst);
        }
        if to.write_all(&buffer[..through]).await.is_err() {
            return;
        }
        if through < count {
            std::future::pending::<()>().await;
        }
        if before == SLOW {
            tokio::time::sleep(STALL / 40).await;
        }
    }
}

/// No end either, but 64 KiB at a time with a pause.
const SLOW: u64 = NO_END - 1;

async fn published() -> (tempfile::TempDir, Directory, World) {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path().join("repository")).unwrap();
    let world = World::public(Arc::new(directory.clone())).await;
    world.publish(0, vec![whole(&(1..200).collect::<Vec<_>>())]).await.unwrap();
    (root, directory, world)
}

fn gave_up<T: std::fmt::Debug>(began: Instant, result: Result<T>, what: &str) {
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    for said in [what, "nothing moved for"] {
        assert!(error.chain().contains(said), "{}", error.chain());
    }
}

#[tokio::test]
async fn a_read_that_stalls_before_or_within_the_answer_is_given_up_and_goes_on_when_tried_again() {
    let (_root, directory, world) = published().await;
    let line = Line::to(&directory).await;
    for down_bytes in [0, 1, 400, 1500] {
        let repository = world.reopen(line.http()).await.unwrap();
        let disk =
            repository.version(version(1)).await.unwrap().disk(DiskRole::System).await.unwrap();
        line.down_bytes.store(down_bytes, Ordering::SeqCst);
        let began = Instant::now();
        gave_up(began, read(&disk).await.map(drop), "read packs/");
        line.down_bytes.store(NO_END, Ordering::SeqCst);
        read(&disk).await.unwrap();
        check(&repository, 1, &(1..200).collect::<Vec<_>>()).await;
    }
}

#[tokio::test]
async fn a_publication_over_a_line_that_stalls_is_given_up_and_is_whole_when_tried_again() {
    let (_root, directory, world) = published().await;
    let line = Line::to(&directory).await;
    let content: Vec<u16> = (500..800).collect();
    for (up_bytes, down_bytes, what) in [(2500, NO_END, "write packs/"), (NO_END, 20, "")] {
        let repository = world.reopen(line.http()).await.unwrap();
        repository.version(version(1)).await.unwrap();
        line.up_bytes.store(up_bytes, Ordering::SeqCst);
        line.down_bytes.store(down_bytes, Ordering::SeqCst);
        let next = publication(1, vec![whole(&content)]);
        let began = Instant::now();
        gave_up(began, repository.publish(next.clone(), &world.key, &Silent).await, what);
        assert_eq!(world.repository.head().await.unwrap(), Some(version(1)));
        line.up_bytes.store(NO_END, Ordering::SeqCst);
        line.down_bytes.store(NO_END, Ordering::SeqCst);
        if what.is_empty() {
            repository.publish(next, &world.key, &Silent).await.unwrap();
        }
    }
    check(&world.repository, 2, &content).await;
}

#[tokio::test]
async fn a_slow_upload_is_not_given_up_and_one_that_nobody_takes_is() {
    let (_root, directory, _world) = published().await;
    let line = Line::to(&directory).await;
    // More than the buffers of both systems on the way.
    let bytes = Bytes::from(vec![7; 32 << 20]);
    let name = ObjectName::Pack(Digest(*blake3::hash(&bytes).as_bytes()));
    line.up_bytes.store(1 << 20, Ordering::SeqCst);
    let began = Instant::now();
    gave_up(began, line.http().write(&name, bytes.clone()).await, "write packs/");
    line.up_bytes.store(SLOW, Ordering::SeqCst);
    let began = Instant::now();
    line.http().write(&name, bytes.clone()).await.unwrap();
    assert!(began.elapsed() > UPLOAD_STALL, "was not slow: {:?}", began.elapsed());
    assert_eq!(directory.size(&name).await.unwrap(), Some(bytes.len() as u64));
}
