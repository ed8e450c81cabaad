//! Clients of the export that break the protocol: they are left, and nobody else notices.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use collective_disk::{Export, Fetcher, VersionDisk};
use collective_repository::backend::Fault;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use collective_testing::Random;

use crate::support::{IMAGE_BYTES, Served, World, quick, run};

/// Far longer than anything here takes.
const SOON: Duration = Duration::from_secs(20);
const OPTION: &[u8] = b"IHAVEOPT";
const GO_SYSTEM: &[u8] = b"\0\0\0\x07\0\0\0\x0c\0\0\0\x06system\0\0";

async fn connect(served: &Served) -> UnixStream {
    connect_to(served.export.path()).await
}

async fn connect_to(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    stream
}

/// Connects and negotiates simple replies for the export.
async fn transmission(served: &Served) -> UnixStream {
    transmission_at(served.export.path()).await
}

async fn transmission_at(socket: &Path) -> UnixStream {
    let mut stream = connect_to(socket).await;
    stream.write_all(&[0, 0, 0, 3]).await.unwrap();
    stream.write_all(OPTION).await.unwrap();
    stream.write_all(GO_SYSTEM).await.unwrap();
    // Two infos of 12 and 14 bytes and the end, each with a head of 20.
    let mut replies = [0; 3 * 20 + 12 + 14];
    stream.read_exact(&mut replies).await.unwrap();
    stream
}

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// Reads the head of a simple reply: the error and the cookie.
async fn reply(stream: &mut UnixStream) -> (u32, u64) {
    assert_eq!(stream.read_u32().await.unwrap(), 0x6744_6698);
    (stream.read_u32().await.unwrap(), stream.read_u64().await.unwrap())
}

async fn hung_up(mut stream: UnixStream) {
    let mut rest = Vec::new();
    // A reset is as good an end as any.
    let _ = timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the server hangs up");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_hung_up_on_at_every_stage() {
    let served = Served::start();
    let mut random = Random::new(3);
    for round in 0..60 {
        let mut stream = match round % 3 {
            0 => connect(&served).await,
            1 => {
                let mut stream = connect(&served).await;
                stream.write_all(&[0, 0, 0, 3]).await.unwrap();
                stream
            }
            _ => transmission(&served).await,
        };
        let mut garbage = [0; 64];
        random.fill(&mut garbage);
        stream.write_all(&garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        hung_up(stream).await;
    }
    run("nbdinfo", &["--size", &served.uri()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_and_a_silent_client_keep_nobody_from_reading() {
    let served = Served::start();
    let mut silent = Vec::new();
    for length in 0..14 {
        let mut stream = transmission(&served).await;
        stream.write_all(&request(0, 1, 0, 4096)[..2 * length]).await.unwrap();
        silent.push(stream);
    }
    run("nbdinfo", &["--size", &served.uri()]);
    let mut stream = silent.pop().unwrap();
    stream.write_all(&request(0, 1, 0, 4096)[26..]).await.unwrap();
    assert_eq!(reply(&mut stream).await, (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_option_is_refused_and_a_huge_one_hung_up_on() {
    let served = Served::start();
    let mut stream = connect(&served).await;
    stream.write_all(&[0, 0, 0, 3]).await.unwrap();
    stream.write_all(OPTION).await.unwrap();
    stream.write_all(&7_u32.to_be_bytes()).await.unwrap();
    stream.write_all(&100_000_u32.to_be_bytes()).await.unwrap();
    stream.write_all(&vec![0; 100_000]).await.unwrap();
    let mut answer = [0; 20];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[12..16], [0x80, 0, 0, 9]);
    stream.write_all(OPTION).await.unwrap();
    stream.write_all(&7_u32.to_be_bytes()).await.unwrap();
    stream.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    hung_up(stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_leave_the_disk_and_writes_are_refused_one_by_one() {
    let served = Served::start();
    let mut stream = transmission(&served).await;
    let invalid = [(u64::MAX, 4096), (24 << 20, 1), (0, 0), (0, u32::MAX), (u64::MAX - 1, 2)];
    for (offset, length) in invalid {
        stream.write_all(&request(0, 5, offset, length)).await.unwrap();
        assert_eq!(reply(&mut stream).await, (22, 5), "{offset} {length}");
    }
    for command in [4, 6] {
        stream.write_all(&request(command, 6, 0, 4096)).await.unwrap();
        assert_eq!(reply(&mut stream).await, (1, 6));
    }
    let write = [request(1, 7, 0, 8192), vec![0x25; 8192]].concat();
    stream.write_all(&write).await.unwrap();
    assert_eq!(reply(&mut stream).await, (1, 7));
    stream.write_all(&request(99, 8, 0, 0)).await.unwrap();
    assert_eq!(reply(&mut stream).await, (95, 8));
    stream.write_all(&request(0, 9, 0, 512)).await.unwrap();
    assert_eq!(reply(&mut stream).await, (0, 9));
    stream.read_exact(&mut [0; 512]).await.unwrap();
    stream.write_all(&request(1, 7, 0, u32::MAX)).await.unwrap();
    hung_up(stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn simple_replies_of_long_reads_come_in_one_run() {
    let served = Served::start();
    let image = std::fs::read(served.image()).unwrap();
    let mut stream = transmission(&served).await;
    let reads = [(1_u64, 4096_u64, 1_u32 << 20), (2, 0, 512), (3, 12_345, 700_000), (4, 1, 9)];
    let requests: Vec<u8> =
        reads.iter().flat_map(|read| request(0, read.0, read.1, read.2)).collect();
    stream.write_all(&requests).await.unwrap();
    for (cookie, offset, length) in reads {
        assert_eq!(reply(&mut stream).await, (0, cookie));
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data).await.unwrap();
        let offset = usize::try_from(offset).unwrap();
        assert!(data == image[offset..offset + data.len()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_more_than_an_export_takes_is_told_so() {
    let served = Served::start();
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(transmission(&served).await);
    }
    let mut stream = connect(&served).await;
    stream.write_all(&[0, 0, 0, 3]).await.unwrap();
    stream.write_all(OPTION).await.unwrap();
    stream.write_all(GO_SYSTEM).await.unwrap();
    let mut answer = [0; 20];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[12..16], [0x80, 0, 0, 2]);
    hung_up(stream).await;
    assert_eq!(served.export.clients("system"), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_its_replies_is_not_read_either() {
    let served = Served::start();
    let mut stream = transmission(&served).await;
    let requests: Vec<u8> = (0..64).flat_map(|cookie| request(0, cookie, 0, 1 << 20)).collect();
    let mut sent = 0;
    while let Ok(done) = timeout(Duration::from_millis(300), stream.write_all(&requests)).await {
        done.unwrap();
        sent += 1;
        assert!(sent < 1000, "requests are taken without end");
    }
    run("nbdinfo", &["--size", &served.uri()]);
}

/// Guests whose disks one process serves, each at a socket of its own, as the host does it.
const GUESTS: usize = 24;
/// Reads of each, with and without the others.
const READS: usize = 300;
/// Connections that one client opens at once.
const FLOOD: usize = 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_hostile_clients_do_readers_of_24_guests_are_served_as_before() {
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();
    let world = Arc::new(World::create().await);
    let reader = world.reader(|_| Fault::Pass).await;
    let disk = VersionDisk::new(reader, Fetcher::new(world.cache().await, quick()));
    world.check_all(&disk).await;
    let serve = |guest: usize| {
        let export = Export::bind(world.directory.path().join(format!("s{guest}"))).unwrap();
        export.add("system", Arc::new(disk.clone())).unwrap();
        export
    };
    let exports: Vec<_> = (0..GUESTS).map(serve).collect();
    let mut streams = Vec::new();
    for export in &exports {
        streams.push(transmission_at(export.path()).await);
    }
    let (alone, streams) = read_all(&world, streams).await;
    let hostile = Hostile::attack(&exports).await;
    let (beside, _) = read_all(&world, streams).await;
    // Somebody new is served at any other socket at once, and at the flooded one when the flood is over.
    let (new, _) = read_all(&world, vec![transmission_at(exports[1].path()).await]).await;
    let flooded = hostile.end().await;
    assert!(flooded > FLOOD, "{flooded} connections");
    transmission_at(exports[0].path()).await;
    println!("p99 alone {alone:?}, beside hostile clients {beside:?}, of a new client {new:?}");
    let bound = 10 * alone + Duration::from_millis(30);
    assert!(beside <= bound && new <= bound, "{alone:?} alone, {beside:?} and {new:?} beside them");
}

/// Reads at random at all streams at once, each read checked; returns the 99th percentile of how long one took.
async fn read_all(world: &Arc<World>, streams: Vec<UnixStream>) -> (Duration, Vec<UnixStream>) {
    let readers = streams.into_iter().zip(1..).map(|(mut stream, seed)| {
        let (world, mut random) = (Arc::clone(world), Random::new(seed));
        tokio::spawn(async move {
            let (mut took, mut data) = (Vec::new(), [0; 4096]);
            for cookie in 0..READS as u64 {
                let offset = random.below_u64(IMAGE_BYTES / 4096) * 4096;
                let begun = Instant::now();
                stream.write_all(&request(0, cookie, offset, 4096)).await.unwrap();
                assert_eq!(reply(&mut stream).await, (0, cookie));
                stream.read_exact(&mut data).await.unwrap();
                took.push(begun.elapsed());
                world.check(offset, &data);
            }
            (took, stream)
        })
    });
    let (mut took, mut streams) = (Vec::new(), Vec::new());
    for reader in futures::future::join_all(readers).await {
        let (times, stream) = reader.unwrap();
        took.extend(times);
        streams.push(stream);
    }
    took.sort_unstable();
    (took[took.len() * 99 / 100], streams)
}

/// Clients that do their worst until they are told to end.
struct Hostile {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    held: Vec<UnixStream>,
}

impl Hostile {
    async fn attack(exports: &[Export]) -> Self {
        let mut held = Vec::new();
        // As many as an export takes stop in the middle of a request, beside each reader.
        for export in exports {
            for length in 1..=8 {
                let mut stream = transmission_at(export.path()).await;
                stream.write_all(&request(0, 1, 0, 4096)[..3 * length]).await.unwrap();
                held.push(stream);
            }
        }
        // A thousand say nothing at all.
        for _ in 0..FLOOD {
            held.push(UnixStream::connect(exports[0].path()).await.unwrap());
        }
        let garbage = |(export, seed): (&Export, u64)| {
            let (socket, mut random) = (export.path().to_owned(), Random::new(seed));
            tokio::spawn(async move {
                loop {
                    let mut stream = match seed % 2 {
                        0 => connect_to(&socket).await,
                        _ => transmission_at(&socket).await,
                    };
                    let mut garbage = [0; 64];
                    random.fill(&mut garbage);
                    stream.write_all(&garbage).await.unwrap();
                    stream.shutdown().await.unwrap();
                    hung_up(stream).await;
                }
            })
        };
        let tasks = exports[1..4].iter().zip(1..).map(garbage).collect();
        Self { tasks, held }
    }

    /// Ends them; returns how many connections were held.
    async fn end(self) -> usize {
        for task in self.tasks {
            task.abort();
            assert!(task.await.is_err_and(|end| end.is_cancelled()), "garbage is not hung up on");
        }
        self.held.len()
    }
}
