//! Bad weather: the server goes away, stalls, or lies. Reads wait and are right; nobody sees an error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use collective_disk::{FetchSettings, Fetcher, Source, VersionDisk};
use collective_repository::DiskReader;
use collective_repository::backend::Fault;

use collective_testing::Random;

use crate::support::{IMAGE_BYTES, World, boot_trace, quick};

/// A switch that a test and a backend share.
#[derive(Clone, Default)]
struct Switch(Arc<AtomicBool>);

impl Switch {
    fn set(&self, on: bool) {
        self.0.store(on, Ordering::SeqCst);
    }

    fn then(&self, fault: Fault) -> Fault {
        if self.0.load(Ordering::SeqCst) { fault } else { Fault::Pass }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_the_server_away_reads_wait_say_so_and_go_on() {
    let world = World::create().await;
    let away = Switch::default();
    away.set(true);
    let script = away.clone();
    let reader = world.reader(move |_| script.then(Fault::Refuse)).await;
    let fetcher = Fetcher::new(world.cache().await, quick());
    let disk = VersionDisk::new(reader, fetcher.clone());
    let began = Instant::now();
    let reading = tokio::spawn({
        let disk = disk.clone();
        async move { disk.read(0, 65536).await }
    });
    for mut late in [disk.late(), fetcher.late()] {
        let late = late.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert!(late.reason.text.contains("cannot be reached"), "{late:?}");
        assert!(late.since >= began && late.since.elapsed() >= quick().late_after);
    }
    assert!(!reading.is_finished());
    away.set(false);
    world.check(0, &reading.await.unwrap().unwrap());
    assert_eq!(*disk.late().borrow(), None);
    assert_eq!(*fetcher.late().borrow(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_that_is_given_up_is_late_no_more() {
    let world = World::create().await;
    let reader = world.reader(|_| Fault::Refuse).await;
    let disk = VersionDisk::new(reader, Fetcher::new(world.cache().await, quick()));
    let reading = tokio::spawn({
        let disk = disk.clone();
        async move { disk.read(0, 4096).await }
    });
    let mut late = disk.late();
    late.wait_for(Option::is_some).await.unwrap();
    reading.abort();
    late.wait_for(Option::is_none).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_exchanged_under_a_waiting_read_lets_it_go_on_at_once() {
    let world = World::create().await;
    let dead = world.reader(|_| Fault::Refuse).await;
    let hour = Duration::from_secs(3600);
    let settings = FetchSettings { first_pause: hour, longest_pause: hour, ..quick() };
    let disk = VersionDisk::new(dead, Fetcher::new(world.cache().await, settings));
    let reading = tokio::spawn({
        let disk = disk.clone();
        async move { disk.read(0, 4096).await }
    });
    let failed = |late: &Option<collective_disk::Late>| {
        late.as_ref().is_some_and(|late| late.reason.text.contains("cannot be reached"))
    };
    disk.late().wait_for(failed).await.unwrap();
    disk.exchange(world.reader(|_| Fault::Pass).await);
    world.check(0, &reading.await.unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn damaged_frames_are_fetched_until_they_are_right() {
    let world = World::create().await;
    for every in [2, 3, 5] {
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let script = move |_| match calls.fetch_add(1, Ordering::SeqCst) {
            call if call % every == 0 => Fault::Flip(call * 977),
            call if call % every == 1 => Fault::Shorten(call),
            _ => Fault::Pass,
        };
        let script = move |call| if every == 2 { flip_first(&script, call) } else { script(call) };
        let reader = world.reader(script).await;
        let fetcher = Fetcher::new(world.cache().await, quick());
        let disk = VersionDisk::new(reader, fetcher.clone());
        disk.replay(&boot_trace()).await;
        world.check_all(&disk).await;
        assert!(fetcher.stats().failures > 0);
        drop((disk, fetcher));
        drop(world.cache().await);
        std::fs::remove_dir_all(world.directory.path().join("cache")).unwrap();
    }
}

/// With every second call at fault in one of two ways none would be right: lets the shortened ones pass.
fn flip_first<C>(script: &impl Fn(C) -> Fault, call: C) -> Fault {
    match script(call) {
        Fault::Shorten(_) => Fault::Pass,
        fault => fault,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_replay_of_damaged_frames_ends_and_stores_none() {
    let world = World::create().await;
    let damaged = Switch::default();
    damaged.set(true);
    let script = damaged.clone();
    let reader = world.reader(move |_| script.then(Fault::Flip(7))).await;
    let fetcher = Fetcher::new(world.cache().await, quick());
    let disk = VersionDisk::new(reader, fetcher.clone());
    let frames = disk.replay(&boot_trace()).await;
    assert!(!frames.is_empty());
    assert_eq!(fetcher.cache().stats().frames, 0);
    assert_eq!(*fetcher.late().borrow(), None);
    damaged.set(false);
    world.check_all(&disk).await;
}

/// Stops the first who comes until it is opened.
#[derive(Default)]
struct Gate {
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        if state.0 {
            return;
        }
        state.0 = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| !state.1).unwrap());
    }

    fn wait_until_somebody_stands(&self) {
        drop(self.changed.wait_while(self.state.lock().unwrap(), |state| !state.0).unwrap());
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

/// A reader whose first read of a pack stands before a gate.
async fn gated(world: &World) -> (Arc<Gate>, DiskReader) {
    let gate = Arc::new(Gate::default());
    let script = Arc::clone(&gate);
    let reader = world.reader(move |_| {
        script.pass();
        Fault::Pass
    });
    (gate, reader.await)
}

/// Opens a gate when dropped, so that a test that fails does not stand before it.
struct Opener(Arc<Gate>);

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.open();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn demand_passes_a_replay_that_stands_still() {
    let world = World::create().await;
    let (gate, reader) = gated(&world).await;
    let settings = quick();
    let fetcher = Fetcher::new(world.cache().await, settings);
    let disk = VersionDisk::new(reader, fetcher.clone());
    let replay = tokio::spawn({
        let disk = disk.clone();
        async move { disk.replay(&boot_trace()).await }
    });
    let _opener = Opener(Arc::clone(&gate));
    let standing = Arc::clone(&gate);
    tokio::task::spawn_blocking(move || standing.wait_until_somebody_stands()).await.unwrap();
    // A block that the trace does not touch: so it is in a frame of its own.
    let offset = 20 << 20;
    world.check(offset, &disk.read(offset, 4096).await.unwrap());
    assert!(!replay.is_finished());
    assert_eq!(fetcher.stats().fetched_frames, 1);
    gate.open();
    let frames = replay.await.unwrap();
    assert!(frames.iter().all(|frame| fetcher.cache().contains(frame)));
    assert_eq!(fetcher.stats().fetched_frames, 1 + frames.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_completes_a_disk_gets_also_what_another_had_on_the_way_and_gave_up() {
    let world = World::with_frames(16 << 10).await;
    let (gate, reader) = gated(&world).await;
    let fetcher = Fetcher::new(world.cache().await, quick());
    let disk = VersionDisk::new(reader, fetcher.clone());
    let complete = || {
        let disk = disk.clone();
        tokio::spawn(async move { disk.complete(|_| ()).await })
    };
    let first = complete();
    let _opener = Opener(Arc::clone(&gate));
    let standing = Arc::clone(&gate);
    tokio::task::spawn_blocking(move || standing.wait_until_somebody_stands()).await.unwrap();
    let second = complete();
    let joined = async {
        while fetcher.stats().joined_frames == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), joined).await.unwrap();
    first.abort();
    gate.open();
    let frames = second.await.unwrap();
    assert!(frames.iter().all(|frame| fetcher.cache().contains(frame)));
}

/// A line that carries the whole disk in some seconds, and how long a server stalls that does.
const BYTES_PER_SECOND: u64 = 1 << 20;
const ROUND_TRIP: Duration = Duration::from_millis(5);
const STALL: Duration = Duration::from_millis(120);
/// Readers beside a prefetch of everything, and reads of each.
const READERS: u64 = 8;
const READS: usize = 40;
/// What a read may wait for in such weather. One in four requests fails, and then there is a pause of up to 20 ms; a stall in
/// twelve; and a frame takes up to 0.13 s of the line, which is shared by all who wait and one request ahead.
const MEDIAN_BOUND: Duration = Duration::from_secs(1);
const LONGEST_BOUND: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_any_weather_reads_come_in_time_and_no_frame_comes_twice() {
    let world = Arc::new(World::with_frames(32 << 10).await);
    let line = world.line(BYTES_PER_SECOND, ROUND_TRIP);
    let random = Mutex::new(Random::new(11));
    let weather = move |_| {
        let mut random = random.lock().unwrap();
        match random.below(12) {
            // The server says 503, or the answer is lost.
            0 => Fault::Refuse,
            1 => Fault::Flip(random.below(1 << 20)),
            2 => Fault::Shorten(1 + random.below(100_000)),
            3 => Fault::Stall(STALL),
            _ => Fault::Pass,
        }
    };
    let reader = world.reader_of(line.clone(), weather).await;
    let fetcher = Fetcher::new(world.cache().await, quick());
    let disk = VersionDisk::new(reader, fetcher.clone());
    let completing = tokio::spawn({
        let disk = disk.clone();
        async move { disk.complete(|_| ()).await }
    });
    let readers = (1..=READERS).map(|seed| {
        let (world, disk, mut random) = (Arc::clone(&world), disk.clone(), Random::new(seed));
        tokio::spawn(async move {
            let mut took = Vec::new();
            for _ in 0..READS {
                // Where the image has data.
                let offset =
                    (random.below_u64(IMAGE_BYTES >> 20) << 20) + random.below_u64(160_000);
                let begun = Instant::now();
                let data = disk.read(offset, 16_384).await.unwrap();
                took.push(begun.elapsed());
                world.check(offset, &data);
            }
            took
        })
    });
    let mut took: Vec<Duration> = Vec::new();
    for reader in futures::future::join_all(readers).await {
        took.extend(reader.unwrap());
    }
    let frames = completing.await.unwrap();
    world.check_all(&disk).await;
    took.sort_unstable();
    // What was here already is another test's.
    took.retain(|time| *time > Duration::from_millis(1));
    let stats = fetcher.stats();
    assert!(took.len() > READS && stats.failures > 10, "{} waited; {stats:?}", took.len());
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!("of {} that waited: median {median:?}, longest {longest:?}; {stats:?}", took.len());
    assert!(median <= MEDIAN_BOUND && longest <= LONGEST_BOUND, "{median:?}, {longest:?}");
    assert_eq!(stats.fetched_frames, frames.len() as u64, "a frame that had come came again");
    // What a request lost on its way is asked for again, and no more than that.
    let carried = line.carried_bytes();
    assert!(carried < stats.fetched_bytes * 3 / 2, "{carried} bytes came; {stats:?}");
    // A fetch for a guest reads in four places at once; beside them the window ahead has four requests or more small ones.
    let most = 4 * (quick().demand_places + 16) as u64;
    assert!(line.most_under_way() <= most, "{} reads at once", line.most_under_way());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_stays_away_is_asked_seldom_and_nothing_piles_up() {
    /// Attempts that all readers together see fail: with pauses of five seconds, an hour and a half.
    const ATTEMPTS: u64 = 1000;
    let world = World::create().await;
    let away = Switch::default();
    let line = world.line(1 << 40, Duration::ZERO);
    let script = away.clone();
    let reader = world.reader_of(line, move |_| script.then(Fault::Refuse)).await;
    away.set(true);
    let pause = Duration::from_millis(1);
    let settings = FetchSettings { longest_pause: pause, ..quick() };
    let fetcher = Fetcher::new(world.cache().await, settings);
    let disk = VersionDisk::new(reader, fetcher.clone());
    let begun = Instant::now();
    // Many wait for one place, as the processors of a guest that boots.
    let waiting: Vec<_> = (0..64)
        .map(|_| {
            let disk = disk.clone();
            tokio::spawn(async move { disk.read(0, 16_384).await })
        })
        .collect();
    let failed = async |attempts| {
        while fetcher.stats().failures < attempts {
            tokio::time::sleep(pause).await;
        }
        resident_bytes()
    };
    let before = failed(ATTEMPTS / 4).await;
    let after = failed(ATTEMPTS).await;
    // One flight for all of them: a pause apart, whoever waits.
    let most = begun.elapsed().as_millis() as u64 + 64;
    assert!(fetcher.stats().failures <= most, "{} in {most} ms", fetcher.stats().failures);
    assert!(after < before + (4 << 20), "{before} bytes became {after}");
    away.set(false);
    for read in waiting {
        world.check(0, &read.await.unwrap().unwrap());
    }
    assert_eq!(fetcher.stats().fetched_frames, 1);
    assert_eq!(*fetcher.late().borrow(), None);
}

/// The memory of this process.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * pages.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}
