//! A mirror made of a repository, broken off and brought up to date; and frames read from one that is damaged.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use collective_model::{BlockRange, DiskRole, ErrorKind, Silent, Version};
use collective_repository::backend::{
    Backend, Call, CallKind, Directory, Fault, Faulty, Memory, ObjectName,
};
use collective_repository::{DiskReader, ExtentData, FrameRef, Repository};
use futures::stream::TryStreamExt;

use crate::world::{World, check, layer, version, whole};

/// Three versions in memory, each with a pack of its own.
async fn world() -> World {
    let world = World::public(Arc::new(Memory::new())).await;
    world.publish(0, vec![whole(&(1..300).collect::<Vec<_>>())]).await.unwrap();
    world.publish(1, vec![layer(299, Some(1), vec![(7, vec![900])])]).await.unwrap();
    world.publish(2, vec![layer(299, Some(2), vec![(200, vec![901])])]).await.unwrap();
    world
}

/// Brings a mirror up to date; returns the versions and how many bytes were copied.
async fn mirror(
    from: &Repository,
    to: Arc<dyn Backend>,
) -> collective_model::Result<(Vec<Version>, u64)> {
    Repository::create(to.clone(), from.descriptor().clone(), None).await?;
    let (versions, mut copied_bytes) = (from.versions_missing(&*to).await?, 0);
    for version in &versions {
        copied_bytes += from.mirror_version(*version, &*to, &Silent).await?.copied_bytes;
    }
    Ok((versions, copied_bytes))
}

#[tokio::test]
async fn a_mirror_takes_what_is_new_and_versions_around_those_that_were_removed() {
    let (world, root) = (world().await, tempfile::tempdir().unwrap());
    let place = root.path().join("www/a");
    let directory = || Arc::new(Directory::create_shown(&place).unwrap());
    let (versions, copied) = mirror(&world.repository, directory()).await.unwrap();
    assert_eq!(versions, [1, 2, 3].map(version));
    assert_eq!(mirror(&world.repository, directory()).await.unwrap(), (Vec::new(), 0));
    let mirrored = world.reopen(directory()).await.unwrap();
    assert!(mirrored.verify(&Silent).await.unwrap().damages.is_empty());

    world.publish(3, vec![layer(299, Some(3), vec![(1, vec![902])])]).await.unwrap();
    world.publish(4, vec![layer(299, Some(4), vec![(2, vec![903])])]).await.unwrap();
    world.backend.delete(&ObjectName::Manifest(version(4))).await.unwrap();
    let (versions, more) = mirror(&world.repository, directory()).await.unwrap();
    assert_eq!(versions, [version(5)]);
    assert!(more > 0 && more < copied / 2, "{more} after {copied}");
    let mirrored = world.reopen(directory()).await.unwrap();
    assert_eq!(mirrored.versions().await.unwrap(), [1, 2, 3, 5].map(version));
    let mut content: Vec<u16> = (1..300).collect();
    for (at, number) in [(7, 900), (200, 901), (1, 902), (2, 903)] {
        content[at] = number;
    }
    check(&mirrored, 5, &content).await;

    // What a web server is to show is not its owner's alone.
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&place) & 0o005, 0o005);
    assert_eq!(mode(&place.join("latest")) & 0o004, 0o004);
    let own = Directory::create(root.path().join("own")).unwrap();
    own.write(&ObjectName::Sweep, "{}".into()).await.unwrap();
    assert_eq!(mode(own.path()) & 0o077, 0);
    assert_eq!(mode(&own.path().join("sweep.json")) & 0o077, 0);
}

#[tokio::test]
async fn a_mirror_broken_off_anywhere_shows_whole_versions_only_and_goes_on() {
    let world = world().await;
    let total = {
        let counted = Arc::new(Faulty::new(Arc::new(Memory::new()), |_| Fault::Pass));
        mirror(&world.repository, counted.clone()).await.unwrap();
        counted.calls()
    };
    for stop in 0..total {
        let place: Arc<dyn Backend> = Arc::new(Memory::new());
        let broken = move |call: Call| match call.number {
            // Dead: the write under way is carried out or not, and none after it.
            number if number == stop && call.kind == CallKind::Write => Fault::LoseAnswer,
            number if number >= stop => Fault::Refuse,
            _ => Fault::Pass,
        };
        let dying = Arc::new(Faulty::new(Arc::clone(&place), broken));
        mirror(&world.repository, dying).await.unwrap_err();
        if place.size(&ObjectName::Descriptor).await.unwrap().is_some() {
            let half = world.reopen(Arc::clone(&place)).await.unwrap();
            assert!(half.verify(&Silent).await.unwrap().damages.is_empty(), "stopped at {stop}");
        }
        mirror(&world.repository, Arc::clone(&place)).await.unwrap();
        let whole = world.reopen(place).await.unwrap();
        assert_eq!(whole.versions().await.unwrap(), [1, 2, 3].map(version), "stopped at {stop}");
        assert!(whole.verify(&Silent).await.unwrap().damages.is_empty(), "stopped at {stop}");
    }
}

#[tokio::test]
async fn of_a_copy_what_it_lacks_is_told_from_what_it_has_wrong() {
    let world = world().await;
    let disk = world.repository.version(version(1)).await.unwrap();
    let disk = disk.disk(DiskRole::System).await.unwrap();
    let frames = frames(&disk).await;
    let all = fetch(&disk, Arc::clone(&world.backend), &frames).await.unwrap();
    assert_eq!(all, frames.len());
    for (fault, kind) in [
        (Fault::Flip(0), ErrorKind::Corrupt),
        (Fault::Flip(5000), ErrorKind::Corrupt),
        (Fault::Shorten(1), ErrorKind::NotFound),
        (Fault::Shorten(5000), ErrorKind::NotFound),
        (Fault::Refuse, ErrorKind::Unavailable),
    ] {
        let copy = Faulty::new(Arc::clone(&world.backend), move |_| fault);
        let error = fetch(&disk, Arc::new(copy), &frames).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{fault:?}: {}", error.chain());
    }
    let error = fetch(&disk, Arc::new(Memory::new()), &frames).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // A pack whose end is missing altogether.
    let cut: Arc<dyn Backend> = Arc::new(Memory::new());
    let pack = ObjectName::Pack(frames[0].pack);
    let whole = world.backend.read(&pack, None).await.unwrap();
    cut.write(&pack, whole.slice(..100)).await.unwrap();
    let error = fetch(&disk, cut, &frames).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.chain());
}

async fn fetch(
    disk: &DiskReader,
    copy: Arc<dyn Backend>,
    frames: &[FrameRef],
) -> collective_model::Result<usize> {
    let came: Vec<_> = disk.fetch_each_from(&copy, frames).try_collect().await?;
    Ok(came.len())
}

async fn frames(disk: &DiskReader) -> Vec<FrameRef> {
    let extents = disk.map(BlockRange::covering(0, disk.size_bytes())).await.unwrap();
    let frames = extents.into_iter().filter_map(|extent| match extent.what {
        ExtentData::Frame { frame, .. } => Some(frame),
        ExtentData::Zero => None,
    });
    frames.collect()
}
