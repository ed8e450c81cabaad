//! Two computers and one user disk: who holds the lock, and what happens when it is broken.

use std::path::Path;

use super::world::{World, refusal, signal};

#[test]
fn the_second_computer_is_told_who_holds_the_lock_and_what_breaking_it_means() {
    let mut world = World::new();
    world.computer("attic");
    world.computer("cellar");
    world.start("attic");
    let (code, said) = refusal(&world.stage.try_on("cellar", &["start", "tiny"]).unwrap());
    assert_eq!(code, 5, "{said}");
    for part in ["attic", "since", "--break-lock"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    // Stopped and backed up, the disk is free.
    world.stop("attic");
    world.start("cellar");
}

#[test]
fn after_a_broken_lock_the_first_computer_cannot_publish_and_keeps_what_it_has() {
    let mut world = World::new();
    world.computer("attic");
    world.computer("cellar");
    world.start("attic");
    world.write("attic", "both", "from-the-attic");
    world.stage.on("cellar", &["start", "tiny", "--break-lock"]).unwrap();
    world.write("cellar", "both", "from-the-cellar");

    let (code, said) = refusal(&world.stage.try_on("attic", &["publish", "tiny"]).unwrap());
    assert_eq!(code, 5, "{said}");
    world.stage.try_on("attic", &["stop", "tiny"]).unwrap();
    let status = world.wait_for("attic", "kept", |status| {
        status["user_disk"]["kept"].as_array().is_some_and(|kept| !kept.is_empty())
    });
    let kept = status["user_disk"]["kept"][0].as_str().unwrap();
    let kept = find(&world.path("attic"), Path::new(kept).file_name().unwrap());
    assert!(kept.is_some_and(|size| size > 0), "{status}");
    for words in [&["delete", "tiny", "--local", "--yes"][..], &["delete", "tiny", "--yes"]] {
        let (code, said) = refusal(&world.stage.try_on("attic", words).unwrap());
        assert!(code == 5 && said.contains("/kept") && said.contains("move"), "{code} {said}");
    }

    world.stop("cellar");
    world.start("attic");
    assert_eq!(world.read("attic", "both"), "from-the-cellar");
}

#[test]
fn a_user_disk_that_is_deleted_elsewhere_takes_nothing_with_it_that_was_not_backed_up() {
    let mut world = World::new();
    world.computer("attic");
    world.computer("cellar");
    for round in 1..=2 {
        world.start("attic");
        world.write("attic", "note", &format!("precious-{round}"));
        // The attic loses its current before it can back up.
        world.stage.kill_daemon("attic").unwrap();
        signal(world.guest_pid("attic").unwrap(), "KILL");
        world.stage.on("cellar", &["start", "tiny", "--break-lock"]).unwrap();
        world.stop("cellar");
        world.stage.on("cellar", &["delete", "tiny", "--yes"]).unwrap();
        world.stage.start_again("attic").unwrap();
        world.start("attic");
        assert_eq!(world.read("attic", "note"), "-");
        let status = world.status("attic");
        let kept = status["user_disk"]["kept"].as_array().unwrap().clone();
        let kept: Vec<_> = kept.iter().map(|file| file.as_str().unwrap()).collect();
        for earlier in 1..=round {
            let text = format!("precious-{earlier}");
            let has_it = |file: &&str| contains(Path::new(file), text.as_bytes());
            assert_eq!(kept.iter().copied().filter(has_it).count(), 1, "{text}: {status}");
        }
        world.stop("attic");
    }
}

fn contains(file: &Path, text: &[u8]) -> bool {
    std::fs::read(file).unwrap().windows(text.len()).any(|part| part == text)
}

/// The size of a file of that name anywhere below a directory.
fn find(directory: &Path, name: &std::ffi::OsStr) -> Option<u64> {
    std::fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if entry.file_name() == name {
            return size_of(&path);
        }
        path.is_dir().then(|| find(&path, name)).flatten()
    })
}

fn size_of(path: &Path) -> Option<u64> {
    if path.is_file() {
        return std::fs::metadata(path).ok().map(|file| file.len());
    }
    std::fs::read_dir(path).ok()?.flatten().filter_map(|entry| size_of(&entry.path())).max()
}
