//! The figures of docs/performance.md: what pruning and verifying take of a repository of a thousand versions.
//!
//! It takes minutes and half a gigabyte of disk, prints, and fails where memory is not bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use collective_model::Silent;

use super::{FRAME_BLOCKS, Maker, Shape, in_days, prune, publish_on, read_on};
use crate::backend::{Backend, Directory};
use crate::keys::SigningKey;
use crate::repository::Repository;
use crate::retention::USER_DISKS;

/// What the process may have in memory at any time.
const PEAK_KIB: u64 = 128 << 10;

/// Between two publications beside what is measured.
const SELDOM: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_versions_of_ten_million_blocks_in_bounded_memory() {
    let shape = Shape { versions: 1000, frames: 160, disk_frames: 32_000 };
    let directory = tempfile::tempdir().unwrap();
    let backend: Arc<dyn Backend> = Arc::new(Directory::create(directory.path()).unwrap());
    let begin = Instant::now();
    let maker = Maker::make(backend.clone(), shape).await;
    let blocks = maker.written * FRAME_BLOCKS;
    println!("made: {} versions, {blocks} blocks, {:.0?}", shape.versions, begin.elapsed());
    let (repository, key) = (maker.repository.clone(), maker.key.clone());
    drop(maker);
    look_after(&repository, &key).await;
}

async fn look_after(repository: &Repository, key: &SigningKey) {
    let report = alone("verify", repository.verify(&Silent)).await.unwrap();
    assert_eq!(report.damages, []);
    println!("  {} objects, {} bytes", report.objects, report.bytes);
    let noted = alone("prune, first", prune(repository, USER_DISKS, in_days(60))).await;
    let (removed, waiting) = (noted.removed_versions.len(), noted.waiting_objects);
    println!("  {removed} versions removed, {waiting} objects wait");
    let swept = prune(repository, USER_DISKS, in_days(61));
    let swept = beside_others("prune, second", repository, key, swept).await;
    println!("  {} objects, {} bytes removed", swept.removed_objects, swept.removed_bytes);
    assert!(removed > 700 && swept.removed_objects > 1000);
    let again = beside_others("verify", repository, key, repository.verify(&Silent)).await;
    assert_eq!(again.unwrap().damages, []);
}

/// Does a thing alone, and prints what it took.
async fn alone<T>(what: &str, work: impl Future<Output = T>) -> T {
    // See proc(5): the peak is counted from here.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let begin = Instant::now();
    let result = work.await;
    let took = begin.elapsed();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let peak: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("{what}: {took:.1?}, peak {} MiB", peak >> 10);
    assert!(peak < PEAK_KIB, "{what} took {peak} KiB");
    result
}

/// Does a thing while the disk is read and published, and prints what it took.
async fn beside_others<T>(
    what: &str,
    repository: &Repository,
    key: &SigningKey,
    work: impl Future<Output = T>,
) -> T {
    let done = Arc::new(AtomicBool::new(false));
    let head = repository.head().await.unwrap().unwrap();
    let reader = tokio::spawn(read_on(repository.version(head).await.unwrap(), done.clone()));
    let publishing = publish_on(repository.clone(), key.clone(), SELDOM, done.clone());
    let publisher = tokio::spawn(publishing);
    let begin = Instant::now();
    let result = work.await;
    let took = begin.elapsed();
    done.store(true, Ordering::SeqCst);
    let (reads, (versions, longest)) = (reader.await.unwrap(), publisher.await.unwrap());
    println!(
        "{what}, beside others: {took:.1?}; {reads} reads, {versions} publications of at most {longest:.0?}"
    );
    result
}
