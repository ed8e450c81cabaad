//! Bad weather: the server goes away, stalls, or lies. Reads wait and are right; nobody sees an error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use collective_disk::{FetchSettings, Fetcher, Source, VersionDisk};
use collective_repository::backend::Fault;

use crate::support::{World, boot_trace, quick};

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
    let gate = Arc::new(Gate::default());
    let script = Arc::clone(&gate);
    let reader = world
        .reader(move |_| {
            script.pass();
            Fault::Pass
        })
        .await;
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
