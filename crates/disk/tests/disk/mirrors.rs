//! A repository and a mirror of it over real sockets, either of which is slow, lies, stalls, lacks or goes away: what a guest
//! reads is right and soon there, no byte is fetched twice without need, and who is at fault is named.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use collective_disk::{Fetcher, Source, SourceStats, VersionDisk};
use collective_model::{Digest, DiskRole, Version};
use collective_repository::backend::{Backend, ObjectName};
use futures::stream::{self, StreamExt};

use crate::support::{World, boot_trace, quick};
use crate::web::{Manners, Web};

/// What no read may take: half of what it takes to give up one that stalls, and to get one frame of a slow one. Where a race is
/// due (after 0.75 s, of who is not known) is tried on simulated links; here it is enough that it is held, on a busy machine too.
const SOON: Duration = Duration::from_secs(15);

/// So that a mirror on a busy machine is still the better one.
const LEISURELY: Manners = Manners::Slow(Duration::from_millis(20));

/// A disk with a mirror.
struct Mirrored {
    world: World,
    repository: Web,
    mirror: Web,
    fetcher: Fetcher,
    disk: VersionDisk,
}

impl Mirrored {
    async fn open(repository: Manners, mirror: Manners) -> Self {
        Self::of(World::create().await, Version::FIRST, repository, mirror).await
    }

    async fn of(world: World, version: Version, repository: Manners, mirror: Manners) -> Self {
        let [repository, mirror] = [repository, mirror].map(|it| Web::serve(&world.backend, it));
        let opened = world.repository(repository.backend()).await;
        let reader = opened.version(version).await.unwrap().disk(DiskRole::System).await.unwrap();
        let names = vec!["the mirror".to_owned()];
        let fetcher = Fetcher::with_mirrors(world.cache().await, quick(), names);
        let mirrors = vec![mirror.backend()];
        let disk = VersionDisk::with_mirrors(reader, mirrors, fetcher.clone());
        Self { world, repository, mirror, fetcher, disk }
    }

    /// Reads the whole disk, six parts of it at once; returns how long the longest read took.
    async fn check_all(&self) -> Duration {
        let reads = (0..24_u64).map(|at| async move {
            let began = Instant::now();
            let offset = at << 20;
            self.world.check(offset, &self.disk.read(offset, 1 << 20).await.unwrap());
            began.elapsed()
        });
        let took: Vec<Duration> = stream::iter(reads).buffer_unordered(6).collect().await;
        took.into_iter().max().unwrap()
    }

    fn sources(&self) -> [SourceStats; 2] {
        self.fetcher.sources().try_into().unwrap()
    }

    fn dropped_for(&self) -> Option<String> {
        self.sources()[1].dropped.as_ref().map(|dropped| dropped.reason.clone())
    }

    /// Checks that what the servers sent is what came, and what was asked for twice because of a slow one at most.
    fn check_bytes(&self, needless_bytes: u64) {
        let stats = self.fetcher.stats();
        let sent = self.repository.sent_bytes() + self.mirror.sent_bytes();
        let most = stats.fetched_bytes + stats.raced_bytes + needless_bytes;
        assert!(sent <= most, "{sent} bytes were sent: {stats:?} {:?}", self.sources());
        let came: u64 = self.sources().iter().map(|source| source.fetched_bytes).sum();
        assert_eq!(came, stats.fetched_bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_good_mirror_spares_the_repository() {
    let it = Mirrored::open(LEISURELY, Manners::Honest).await;
    it.disk.replay(&boot_trace()).await;
    it.check_all().await;
    let [repository, mirror] = it.sources();
    assert_eq!(mirror.mirror.as_deref(), Some("the mirror"));
    assert!(mirror.fetched_bytes > 4 * repository.fetched_bytes, "{repository:?} {mirror:?}");
    it.check_bytes(0);
    // Who has none keeps to the repository.
    let sent = it.mirror.sent_bytes();
    let reader = it.world.repository(it.repository.backend()).await;
    let reader = reader.version(Version::FIRST).await.unwrap();
    drop((it.disk, it.fetcher));
    let (world, repository) = (it.world, it.repository);
    drop(world.cache().await);
    std::fs::remove_dir_all(world.directory.path().join("cache")).unwrap();
    let fetcher =
        Fetcher::with_mirrors(world.cache().await, quick(), vec!["the mirror".to_owned()]);
    let disk = VersionDisk::new(reader.disk(DiskRole::System).await.unwrap(), fetcher);
    let before = repository.sent_bytes();
    world.check_all(&disk).await;
    assert!(repository.sent_bytes() > before && it.mirror.sent_bytes() == sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_repository_that_stalls_is_outrun_by_the_mirror() {
    for manners in [Manners::Silent, Manners::Stalling] {
        let it = Mirrored::open(manners, Manners::Slow(Duration::from_millis(5))).await;
        // All at once: while the mirror is not known yet, most ask the repository.
        let longest = it.check_all().await;
        assert!(longest < SOON, "a read took {longest:?}");
        let [repository, mirror] = it.sources();
        assert!(repository.late > 0 && mirror.fetched_bytes > 0, "{repository:?} {mirror:?}");
        assert!(it.fetcher.stats().raced_bytes > 0);
        it.check_bytes(0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slow_repository_is_left_for_a_fast_mirror() {
    let it = Mirrored::open(Manners::Slow(Duration::from_secs(2)), Manners::Honest).await;
    let longest = it.check_all().await;
    assert!(longest < SOON, "a read took {longest:?}");
    let [repository, mirror] = it.sources();
    assert!(mirror.fetched_bytes > repository.fetched_bytes, "{repository:?} {mirror:?}");
    it.check_bytes(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mirror_that_lies_is_named_and_asked_no_more_and_no_wrong_byte_is_read() {
    let it = Mirrored::open(Manners::Honest, Manners::Lying).await;
    it.world.check(0, &it.disk.read(0, 4096).await.unwrap());
    assert!(it.dropped_for().unwrap().starts_with("it gave wrong bytes: packs/"));
    let (requests, sent) = (it.mirror.requests(), it.mirror.sent_bytes());
    it.fetcher.retry_now();
    it.disk.replay(&boot_trace()).await;
    it.check_all().await;
    assert_eq!((it.mirror.requests(), requests), (1, 1));
    assert_eq!(it.sources()[1].fetched_bytes, 0);
    it.check_bytes(sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_repository_that_is_damaged_is_read_around() {
    let it = Mirrored::open(Manners::Lying, Manners::Honest).await;
    it.check_all().await;
    let [repository, mirror] = it.sources();
    assert!(repository.fetched_bytes == 0 && mirror.fetched_bytes > 0, "{repository:?} {mirror:?}");
    assert!(it.repository.requests() > 0 && it.fetcher.stats().failures == 0);
    it.check_bytes(it.repository.sent_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mirror_that_stalls_holds_up_one_read_for_a_moment() {
    for manners in [Manners::Silent, Manners::Stalling] {
        let it = Mirrored::open(Manners::Honest, manners).await;
        // The guest waits for what a replay has asked the mirror for.
        let replay = tokio::spawn({
            let disk = it.disk.clone();
            async move { disk.replay(&boot_trace()).await }
        });
        let longest = it.check_all().await;
        assert!(longest < SOON, "a read took {longest:?}");
        replay.await.unwrap();
        assert!(it.dropped_for().unwrap().contains("slower than another"));
        assert!(it.mirror.requests() <= 4, "{}", it.mirror.requests());
        it.check_bytes(it.mirror.sent_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mirror_that_was_good_and_stalls_in_the_middle_is_left() {
    let it = Mirrored::open(Manners::Honest, Manners::Honest).await;
    it.disk.replay(&boot_trace()).await;
    it.mirror.behave(Manners::Stalling);
    let longest = it.check_all().await;
    assert!(longest < SOON, "a read took {longest:?}");
    let [repository, mirror] = it.sources();
    assert!(mirror.fetched_bytes > 0 && mirror.late > 0, "{mirror:?}");
    assert!(repository.fetched_bytes > 0, "{repository:?}");
    it.check_bytes(it.fetcher.stats().raced_bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mirror_that_is_broken_costs_no_read() {
    for (manners, reason) in [
        (Manners::Short, None),
        (Manners::Status(StatusCode::NOT_FOUND), None),
        (Manners::CutOff, Some("the answer was cut off")),
        (Manners::NoRanges, Some("gives no ranges")),
        (Manners::Status(StatusCode::SERVICE_UNAVAILABLE), Some("503")),
        (Manners::Status(StatusCode::FORBIDDEN), Some("403")),
    ] {
        let it = Mirrored::open(Manners::Honest, manners.clone()).await;
        it.disk.replay(&boot_trace()).await;
        it.check_all().await;
        let dropped = it.dropped_for();
        match reason {
            Some(reason) => {
                assert!(dropped.as_deref().is_some_and(|it| it.contains(reason)), "{dropped:?}");
            }
            None => assert_eq!(dropped, None, "{manners:?}"),
        }
        let [repository, mirror] = it.sources();
        assert!(repository.fetched_bytes > 0 && mirror.fetched_bytes == 0, "{manners:?}");
        assert_eq!(it.fetcher.stats().failures, 0, "{manners:?}: the repository was at hand");
        assert!(it.mirror.requests() <= 4, "{manners:?}: {}", it.mirror.requests());
        it.check_bytes(it.mirror.sent_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mirror_a_week_behind_gives_what_it_has() {
    let mut world = World::create().await;
    let packs = async |world: &World| -> BTreeSet<Digest> {
        let listed = world.backend.list("packs/").await.unwrap();
        let packs = listed.into_iter().filter_map(|listed| match listed.name {
            ObjectName::Pack(pack) => Some(pack),
            _ => None,
        });
        packs.collect()
    };
    let old = packs(&world).await;
    let image = std::fs::File::options().write(true).open(world.directory.path().join("image"));
    let image = image.unwrap();
    for run in 0..24_u64 {
        let noise = blake3::hash(&run.to_le_bytes());
        image.write_all_at(&noise.as_bytes().repeat(128), (run << 20) + 4096).unwrap();
    }
    world.publish(Some(Version::FIRST)).await;
    let new: BTreeSet<Digest> = packs(&world).await.difference(&old).copied().collect();
    assert!(!new.is_empty());
    let (second, lacking) = (Version::new(2).unwrap(), Manners::Lacking(new.clone()));
    let it = Mirrored::of(world, second, LEISURELY, lacking).await;
    it.world.check(0, &it.disk.read(0, 64 << 10).await.unwrap());
    it.check_all().await;
    let [repository, mirror] = it.sources();
    assert_eq!(it.dropped_for(), None);
    assert!(repository.fetched_bytes > 0, "{repository:?}");
    assert!(mirror.fetched_bytes > repository.fetched_bytes, "{repository:?} {mirror:?}");
    it.check_bytes(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_all_away_reads_wait_and_the_first_that_is_back_is_enough() {
    let mut it = Mirrored::open(Manners::Honest, Manners::Honest).await;
    it.world.check(0, &it.disk.read(0, 4096).await.unwrap());
    for back in [true, false] {
        it.repository.go_away();
        it.mirror.go_away();
        // Neither is near what a trace touches: each is in a frame of its own.
        let offset = if back { 15 << 20 } else { 20 << 20 };
        let reading = tokio::spawn({
            let disk = it.disk.clone();
            async move { disk.read(offset, 64 << 10).await }
        });
        let mut late = it.disk.late();
        let late = late.wait_for(|late| {
            late.as_ref().is_some_and(|late| late.reason.text.contains("cannot be reached"))
        });
        let late = tokio::time::timeout(SOON, late).await.expect("it says that it waits");
        drop(late.unwrap());
        assert!(!reading.is_finished());
        if back {
            it.mirror.come_back()
        } else {
            it.repository.come_back()
        }
        // As when somebody logs in.
        it.fetcher.retry_now();
        let read = tokio::time::timeout(2 * SOON, reading).await.expect("one is back");
        it.world.check(offset, &read.unwrap().unwrap());
    }
    it.mirror.come_back();
    it.fetcher.retry_now();
    it.check_all().await;
    it.check_bytes(0);
}
