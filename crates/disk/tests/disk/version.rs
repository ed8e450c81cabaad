//! A published version read as a disk: through the cache, the export, a trace and a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use collective_disk::{
    CACHE_CAPACITY_MINIMUM_BYTES, Cache, CacheOptions, Export, Fetcher, Heard, Recorder, Source,
    VersionDisk,
};
use collective_repository::backend::Fault;

use collective_testing::Random;

use crate::support::{IMAGE_BYTES, World, boot_trace, quick, run, uri};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_version_through_the_export_equals_its_image_with_its_holes() {
    let world = World::create().await;
    let reader = world.reader(|_| Fault::Pass).await;
    let disk = VersionDisk::new(reader, Fetcher::new(world.cache().await, quick()));
    let export = Export::bind(world.directory.path().join("s")).unwrap();
    export.add("system", Arc::new(disk.clone())).unwrap();
    let image = world.directory.path().join("image");
    let image = image.to_str().unwrap();
    for _ in 0..2 {
        let compared =
            run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri(&export), image]);
        assert!(compared.contains("identical"), "{compared}");
    }
    let copy = world.directory.path().join("copy");
    run("nbdcopy", &["--connections=4", &uri(&export), copy.to_str().unwrap()]);
    assert!(std::fs::read(copy).unwrap() == world.image);
    let map = run("nbdinfo", &["--map", "--totals", &uri(&export)]);
    let holes: u64 = map
        .lines()
        .filter(|line| line.contains("hole,zero"))
        .filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    let zero_blocks = world.image.chunks(4096).filter(|block| block.iter().all(|byte| *byte == 0));
    assert_eq!(holes, zero_blocks.count() as u64 * 4096);
    assert!(disk.fetched_share() > 0.1 && disk.fetched_share() < 0.5);
    export.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_reads_at_once_through_a_cache_too_small_are_all_right() {
    let world = Arc::new(World::create().await);
    let options = CacheOptions { capacity_bytes: CACHE_CAPACITY_MINIMUM_BYTES };
    let cache = Cache::open(&world.directory.path().join("cache"), options).unwrap();
    let noise = AtomicU64::new(0);
    let reader = world
        .reader(move |_| match noise.fetch_add(1, Ordering::Relaxed) % 7 {
            3 => Fault::Refuse,
            5 => Fault::Flip(1234),
            _ => Fault::Pass,
        })
        .await;
    let disk = VersionDisk::new(reader, Fetcher::new(cache.clone(), quick()));
    let readers = (1..=4).map(|seed| {
        let (world, disk, cache) = (Arc::clone(&world), disk.clone(), cache.clone());
        tokio::spawn(async move {
            let mut random = Random::new(seed);
            for round in 0..150 {
                let offset = random.below_u64(IMAGE_BYTES - 1);
                let length = 1 + random.below_u64((IMAGE_BYTES - offset).min(300_000));
                let length = usize::try_from(length).unwrap();
                let mut now = vec![0; length];
                if disk.read_now(offset, &mut now) {
                    world.check(offset, &now);
                }
                world.check(offset, &disk.read(offset, length).await.unwrap());
                if round % 40 == 7 {
                    // Others write to the cache too: so it turns over.
                    for filler in 0..24 {
                        let name = blake3::hash(&[seed as u8, round, filler]);
                        let plain = vec![filler; 256 * 1024].into();
                        cache.insert(collective_model::Digest(*name.as_bytes()), &plain);
                    }
                }
            }
        })
    });
    for reader in futures::future::join_all(readers).await {
        reader.unwrap();
    }
    assert!(cache.stats().evicted > 0 && cache.stats().damaged == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_readers_of_one_frame_fetch_it_once() {
    let world = World::create().await;
    let reader = world.reader(|_| Fault::Pass).await;
    let fetcher = Fetcher::new(world.cache().await, quick());
    let disk = VersionDisk::new(reader, fetcher.clone());
    let reads = (0..32).map(|_| disk.read(0, 4096));
    for read in futures::future::join_all(reads).await {
        world.check(0, &read.unwrap());
    }
    assert_eq!(fetcher.stats().fetched_frames, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_start_recorded_and_replayed_demands_nothing() {
    let world = World::create().await;
    let reader = world.reader(|_| Fault::Pass).await;
    let recorder = {
        let fetcher = Fetcher::new(world.cache().await, quick());
        let disk = Arc::new(VersionDisk::new(reader.clone(), fetcher));
        let recorder = Arc::<Recorder>::default();
        let heard = Heard::new(disk, Arc::clone(&recorder));
        for range in boot_trace().ranges {
            let length = usize::try_from(range.length_bytes()).unwrap();
            heard.read(range.offset_bytes(), length).await.unwrap();
            heard.read(range.offset_bytes(), 4096).await.unwrap();
        }
        recorder
    };
    assert_eq!(recorder.trace(), boot_trace());
    drop(recorder);
    drop(world.cache().await);
    std::fs::remove_dir_all(world.directory.path().join("cache")).unwrap();
    let fetcher = Fetcher::new(world.cache().await, quick());
    let disk = VersionDisk::new(reader, fetcher.clone());
    let frames = disk.replay(&boot_trace()).await;
    assert!(frames.iter().all(|frame| fetcher.cache().contains(frame)) && frames.len() > 1);
    for range in boot_trace().ranges {
        let length = usize::try_from(range.length_bytes()).unwrap();
        world.check(range.offset_bytes(), &disk.read(range.offset_bytes(), length).await.unwrap());
    }
    let stats = fetcher.stats();
    assert_eq!((stats.demanded_frames, stats.fetched_frames), (0, frames.len() as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_a_restart_nothing_is_fetched_again() {
    let world = World::create().await;
    let reader = world.reader(|_| Fault::Pass).await;
    world.check_all(&VersionDisk::new(reader, Fetcher::new(world.cache().await, quick()))).await;
    let reader = world.reader(|_| Fault::Refuse).await;
    let fetcher = Fetcher::new(world.cache().await, quick());
    let disk = VersionDisk::new(reader, fetcher.clone());
    world.check_all(&disk).await;
    let mut now = vec![0; 1 << 20];
    assert!(disk.read_now(5 << 20, &mut now));
    world.check(5 << 20, &now);
    assert_eq!((fetcher.stats().fetched_frames, fetcher.stats().failures), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_completed_disk_needs_no_server_and_what_was_cut_short_is_not_fetched_again() {
    let world = World::create().await;
    let reader = world.reader(|_| Fault::Pass).await;
    let fetcher = Fetcher::new(world.cache().await, quick());
    let disk = VersionDisk::new(reader.clone(), fetcher.clone());
    let cut = tokio::spawn({
        let disk = disk.clone();
        async move { disk.complete(|_| ()).await }
    });
    while fetcher.stats().fetched_frames == 0 {
        tokio::task::yield_now().await;
    }
    cut.abort();
    let gone_through = AtomicU64::new(0);
    let frames = disk.complete(|blocks| gone_through.store(blocks, Ordering::SeqCst)).await;
    assert_eq!(gone_through.into_inner(), IMAGE_BYTES.div_ceil(4096));
    let again = fetcher.stats().fetched_frames - frames.len() as u64;
    assert!(again <= 16, "only what was on the way when it was cut: {again}");
    let away = world.reader(|_| Fault::Refuse).await;
    let fetcher = Fetcher::new(fetcher.cache().clone(), quick());
    world.check_all(&VersionDisk::new(away, fetcher.clone())).await;
    assert_eq!(fetcher.stats().fetched_frames, 0);
}
