//! What needs root: a disk of its own that is full.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use collective_api::ServerClient;
use collective_model::{Digest, Epoch, ErrorKind};
use collective_repository::backend::{Backend, Http, ObjectName};
use collective_server::UpkeepSettings;

use crate::world::{World, debian, start};

/// A small file system in memory.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path) -> Self {
        let options = "size=4m,mode=0700";
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
    let (name, bytes) = pack(1, 8 << 20);
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

#[tokio::test]
async fn a_full_disk_of_the_database_is_named_and_with_room_again_all_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let _disk = SmallDisk::mount(dir.path());
    let server = start(dir.path(), None, None, UpkeepSettings::default()).await.unwrap();
    let admin = ServerClient::unix(&server.socket).unwrap();
    let mut made = vec!["before".parse().unwrap()];
    admin.create_group(&made[0]).await.unwrap();

    let filler = dir.path().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    // The log of the database has some room left; each group takes of it.
    let error = loop {
        let group = format!("during-{}", made.len()).parse().unwrap();
        match admin.create_group(&group).await {
            Ok(_) => made.push(group),
            Err(error) => break error,
        }
        assert!(made.len() < 10_000, "the disk is not full");
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.chain().contains("the disk of the server's database is full"), "{error:?}");
    assert_eq!(admin.groups().await.unwrap().len(), made.len(), "reading goes on");

    std::fs::remove_file(&filler).unwrap();
    made.push("after".parse().unwrap());
    admin.create_group(&made[made.len() - 1]).await.unwrap();
    made.sort();
    let listed = admin.groups().await.unwrap();
    assert_eq!(listed.into_iter().map(|group| group.name).collect::<Vec<_>>(), made);
    server.shutdown().await;
}
