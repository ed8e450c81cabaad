//! A publication that is cut short goes on where it was.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use collective_model::{BlockRange, DiskRole, ErrorKind, Silent};
use collective_repository::backend::{CallKind, Fault, Faulty, Memory, ObjectName};
use collective_repository::{DiskSource, Piece, PieceData, Repository};

use crate::world::{World, publication, version};

/// Three packs and a half, of bytes that do not compress.
const DISK_BYTES: u64 = 112 << 20;

fn disk() -> DiskSource {
    let file = tempfile::tempfile().unwrap();
    let mut bytes = vec![0; 1 << 20];
    let mut noise = blake3::Hasher::new().finalize_xof();
    for offset in (0..DISK_BYTES).step_by(bytes.len()) {
        noise.fill(&mut bytes);
        file.write_all_at(&bytes, offset).unwrap();
    }
    let what = PieceData::File { file: Arc::new(file), offset: 0 };
    let pieces = vec![Piece { range: BlockRange::covering(0, DISK_BYTES), what }];
    DiskSource::new(DiskRole::System, DISK_BYTES, pieces)
}

/// The repository behind a line that breaks at every pack from this one on, and the packs that came through.
async fn cut_at(world: &World, cut: u64, note: &Path) -> (Repository, Arc<Mutex<Vec<ObjectName>>>) {
    let (packs, written) = (AtomicU64::new(0), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&written);
    let faulty = Faulty::new(Arc::clone(&world.backend), move |call| match call.name {
        Some(name @ ObjectName::Pack(_)) if call.kind == CallKind::Write => {
            if packs.fetch_add(1, Ordering::SeqCst) >= cut {
                return Fault::Refuse;
            }
            seen.lock().unwrap().push(name);
            Fault::Pass
        }
        _ => Fault::Pass,
    });
    let repository = world.reopen(Arc::new(faulty)).await.unwrap();
    repository.note_unfinished_in(note.to_owned());
    (repository, written)
}

#[tokio::test]
async fn what_arrived_is_not_sent_twice() {
    let directory = tempfile::tempdir().unwrap();
    let note = directory.path().join("unfinished");
    let publication = publication(0, vec![disk()]);
    for world in [
        World::public(Arc::new(Memory::new())).await,
        World::private(Arc::new(Memory::new())).await,
    ] {
        let mut all = Vec::new();
        for (cut, arrive) in [(1, 1), (0, 0), (2, 2), (9, 1)] {
            // Each time a new process: nothing is remembered but the note.
            let (repository, written) = cut_at(&world, cut, &note).await;
            let done = repository.publish(publication.clone(), &world.key, &Silent).await;
            match done {
                Ok(_) => assert_eq!(cut, 9),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
            }
            let written = written.lock().unwrap();
            assert_eq!(written.len(), arrive, "packs that came through before pack {cut}");
            all.extend(written.clone());
        }
        let version = world.repository.version(version(1)).await.unwrap();
        let mut reached: Vec<_> =
            version.manifest().packs.iter().map(|pack| ObjectName::Pack(pack.id)).collect();
        reached.sort_unstable();
        all.sort_unstable();
        assert_eq!(reached, all);
        let report = world.repository.verify(&Silent).await.unwrap();
        assert_eq!(report.damages, []);
        assert!(!note.exists());
    }
}

#[tokio::test]
async fn what_was_swept_meanwhile_is_stored_again() {
    let directory = tempfile::tempdir().unwrap();
    let note = directory.path().join("unfinished");
    let world = World::public(Arc::new(Memory::new())).await;
    let publication = publication(0, vec![disk()]);
    let (repository, written) = cut_at(&world, 2, &note).await;
    repository.publish(publication.clone(), &world.key, &Silent).await.unwrap_err();
    let swept = written.lock().unwrap()[0];
    world.backend.delete(&swept).await.unwrap();

    let (repository, written) = cut_at(&world, 9, &note).await;
    repository.publish(publication, &world.key, &Silent).await.unwrap();
    assert_eq!(written.lock().unwrap().len(), 3);
    assert_eq!(world.repository.verify(&Silent).await.unwrap().damages, []);
}
