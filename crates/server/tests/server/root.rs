//! What needs root: a disk of its own that is full.

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use collective_model::{Digest, Epoch, ErrorKind};
use collective_repository::backend::{Backend, Http, ObjectName};

use crate::world::{World, debian};

/// A small file system in memory.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path) -> Self {
        let options = "size=2m,mode=0700";
        let arguments = ["-t", "tmpfs", "-o", options, "tmpfs"];
        let mounted = Command::new("mount").args(arguments).arg(path).status().unwrap();
        assert!(mounted.success(), "cannot mount a tmpfs");
        Self(path)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_named_and_nothing_half_is_left() {
    let world = World::sqlite().await;
    let repositories = world.dir.path().join("repositories");
    let _disk = SmallDisk::mount(&repositories);
    world.appliance("debian").await;
    let id = world.admin.appliance(&debian()).await.unwrap().repository.id;
    let objects = Http::new(world.admin.http().clone(), &world.admin.repository_url(id), Epoch(0));
    let pack = |fill: u8, bytes: usize| {
        let bytes = Bytes::from(vec![fill; bytes]);
        (ObjectName::Pack(Digest(*blake3::hash(&bytes).as_bytes())), bytes)
    };
    let (name, bytes) = pack(1, 4 << 20);
    let error = objects.write(&name, bytes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.chain().contains(&name.to_string()), "{error:?}");
    let directory = repositories.join(id.to_string()).join("packs");
    for aa in std::fs::read_dir(&directory).unwrap() {
        assert_eq!(std::fs::read_dir(aa.unwrap().path()).unwrap().count(), 0);
    }
    let (name, bytes) = pack(2, 1 << 20);
    objects.write(&name, bytes.clone()).await.unwrap();
    assert_eq!(objects.read(&name, None).await.unwrap(), bytes);
}
