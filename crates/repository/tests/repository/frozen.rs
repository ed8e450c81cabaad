//! Frozen samples of the format: what was once published must be read for ever.
//!
//! `testdata/repository-v<format>/{public,private}` were written by `a_sample_is_written_where_there_is_none` when a format was made, and never
//! change. Where those of the newest format are missing it writes them again; a change of the format needs a directory of its own beside them.

use std::path::PathBuf;
use std::sync::Arc;

use collective_model::{DiskRole, Hardware, Silent};
use collective_repository::backend::{Backend, Directory, ObjectName};
use collective_repository::{DiskSource, Publication};

use crate::world::{CODE, World, check, layer, publication, trace, version, whole};

const FIRST: [u16; 40] = {
    let mut content = [0; 40];
    let mut at = 0;
    while at < 40 {
        // Some zeros, some blocks twice.
        content[at] = if at % 7 == 3 { 0 } else { 1 + (at as u16 % 30) };
        at += 1;
    }
    content
};

/// The format that is written now.
const NEWEST: u32 = 2;

/// What the second version changes: code, since the format that filters it.
const fn changes(format: u32) -> [u16; 3] {
    if format == 1 { [200, 0, 201] } else { [CODE, 0, CODE + 1] }
}

fn second(format: u32) -> Vec<u16> {
    let mut content = FIRST.to_vec();
    content[5..8].copy_from_slice(&changes(format));
    content
}

fn sample(format: u32, kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../../testdata/repository-v{format}"))
        .join(kind)
}

async fn write(world: &World) {
    let hardware = Some(Hardware::default());
    let traced = DiskSource { trace: Some(trace(&[(9, 4), (0, 2)])), ..whole(&FIRST) };
    let first = Publication { hardware, ..publication(0, vec![traced]) };
    world.repository.publish(first, &world.key, &Silent).await.unwrap();
    let runs = vec![(5, changes(NEWEST).to_vec())];
    world.publish(1, vec![layer(40, Some(1), runs)]).await.unwrap();
}

async fn check_sample(world: &World, format: u32) {
    check(&world.repository, 1, &FIRST).await;
    check(&world.repository, 2, &second(format)).await;
    let first = world.repository.version(version(1)).await.unwrap();
    assert_eq!((first.manifest().format, &*first.manifest().notes), (format, "a test"));
    assert_eq!(first.manifest().hardware, Some(Hardware::default()));
    assert_eq!(first.trace(DiskRole::System).await.unwrap(), trace(&[(9, 4), (0, 2)]));
    assert_eq!(world.repository.head().await.unwrap(), Some(version(2)));
    let report = world.repository.verify(&Silent).await.unwrap();
    assert_eq!(report.damages, []);
    assert_eq!(report.objects, 10, "descriptor, head, 2 manifests, 2 indexes, 2 traces, 2 packs");
}

#[tokio::test]
async fn the_frozen_public_samples_are_read() {
    for format in 1..=NEWEST {
        let backend = Arc::new(Directory::open(sample(format, "public")).unwrap());
        check_sample(&World::public(backend).await, format).await;
    }
}

#[tokio::test]
async fn the_frozen_private_samples_are_read() {
    for format in 1..=NEWEST {
        let backend = Arc::new(Directory::open(sample(format, "private")).unwrap());
        check_sample(&World::private(backend).await, format).await;
    }
}

#[tokio::test]
async fn publishing_the_public_sample_again_gives_the_same_bytes() {
    let frozen = Directory::open(sample(NEWEST, "public")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let fresh = Directory::create(directory.path().join("repository")).unwrap();
    write(&World::public(Arc::new(fresh.clone())).await).await;
    let names = |listed: Vec<collective_repository::backend::Listed>| {
        listed.into_iter().map(|object| object.name).collect::<Vec<ObjectName>>()
    };
    let listed = names(frozen.list("").await.unwrap());
    assert_eq!(names(fresh.list("").await.unwrap()), listed);
    for name in listed {
        let (left, right) = tokio::join!(frozen.read(&name, None), fresh.read(&name, None));
        assert_eq!(left.unwrap(), right.unwrap(), "{name}");
    }
}

#[tokio::test]
async fn a_sample_is_written_where_there_is_none() {
    for kind in ["public", "private"] {
        let directory = tempfile::tempdir().unwrap();
        let sample = sample(NEWEST, kind);
        let path = if sample.exists() { directory.path().join(kind) } else { sample };
        let backend = Arc::new(Directory::create(&path).unwrap());
        let world = if kind == "public" {
            World::public(backend).await
        } else {
            World::private(backend).await
        };
        write(&world).await;
        check_sample(&world, NEWEST).await;
    }
}
