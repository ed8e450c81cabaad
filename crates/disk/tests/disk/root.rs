//! What needs to mount a small file system: a disk that is really full.

use std::path::{Path, PathBuf};

use collective_disk::{Fetcher, VersionDisk};
use collective_repository::backend::Fault;

use crate::support::{World, open_cache, quick, run};

/// A file system in memory, with little room; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Self {
        std::fs::create_dir(path).unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=2m", "tmpfs", path.to_str().unwrap()]);
        Self(path.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a failing test may still have files open there.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_disk_costs_fetches_and_nothing_else() {
    let world = World::create().await;
    let disk = SmallDisk::mount(&world.directory.path().join("small"));
    for _ in 0..2 {
        let cache = open_cache(&disk.0.join("cache"), 1 << 30).await;
        let reader = world.reader(|_| Fault::Pass).await;
        let version = VersionDisk::new(reader, Fetcher::new(cache.clone(), quick()));
        world.check_all(&version).await;
        world.check_all(&version).await;
        let stats = cache.stats();
        assert!(stats.refused > 0 && stats.frames > 0 && stats.damaged == 0, "{stats:?}");
    }
}
