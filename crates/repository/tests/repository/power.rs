//! Power cuts: a repository in a directory, killed at any change to its files, and the files as a disk leaves them that
//! kept no more than it was told to.
//!
//! The directory tells each change before it makes it. From that record follows what may survive: names that were not
//! synced come and go one by one, and of bytes that were not synced any subset of 512-byte sectors is there. What was
//! acknowledged must be there whole; what was under way may be there whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use collective_model::Silent;
use collective_repository::backend::{Directory, FileChange, Watch};
use collective_repository::{Repository, SigningKey, Trust};
use tempfile::TempDir;

use crate::world::{Content, World, check, id, layer, whole};
use collective_testing::{Random, each_seed};

const RUNS: u64 = 600;
const SECTOR: usize = 512;
const BLOCKS: usize = 12;

#[test]
fn whenever_the_power_goes_what_was_acknowledged_is_there_and_nothing_is_half_there() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // Memory, where there is some: what is durable is the record's to say, not the file system's.
    let place =
        if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
    let (mut cuts, mut versions) = (0, 0);
    let many = each_seed(RUNS, |mut random| {
        let home = TempDir::new_in(&place).unwrap();
        let mut run = Run {
            home,
            lives: 0,
            model: Vec::new(),
            acknowledged: 0,
            attempted: None,
            created: false,
        };
        runtime.block_on(run.play(&mut random));
        cuts += run.lives;
        versions += run.model.len();
    });
    assert!(!many || (cuts > 0 && versions > 0), "{cuts} cuts, {versions} versions");
}

/// One repository through several lives.
struct Run {
    home: TempDir,
    lives: usize,
    /// Every version that can be there.
    model: Vec<Content>,
    /// How many of them must be there.
    acknowledged: usize,
    /// What was being published when the process died.
    attempted: Option<Content>,
    created: bool,
}

impl Run {
    async fn play(&mut self, random: &mut Random) {
        let mut record = Record::default();
        for _ in 0..1 + random.below(4) {
            let changes = if random.once_in(4) { usize::MAX } else { random.below(70) };
            record = self.live(record, changes, random).await;
            // A process that dies alone leaves all of its changes; a power cut leaves what it likes.
            if random.once_in(2) {
                self.look(false).await;
            } else {
                let next = self.root(self.lives + 1);
                record.leave(&self.root(self.lives), &next, random);
                self.lives += 1;
                record = Record::durable(&next);
                self.look(true).await;
            }
        }
    }

    fn root(&self, life: usize) -> PathBuf {
        self.home.path().join(format!("life-{life}"))
    }

    fn repository(&self) -> PathBuf {
        self.root(self.lives).join("repository")
    }

    /// Publishes until it is done or killed.
    async fn live(&mut self, record: Record, changes: usize, random: &mut Random) -> Record {
        fs::create_dir_all(self.root(self.lives)).unwrap();
        let kept = Arc::new(Mutex::new((record, changes)));
        let hearing = Arc::clone(&kept);
        let watch = Watch::new(move |change| {
            let (record, left) = &mut *hearing.lock().unwrap();
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("killed"))?;
            record.hear(change);
            Ok(())
        });
        if let Ok(directory) = Directory::create_watched(self.repository(), watch)
            && let Ok(world) = World::try_public(Arc::new(directory)).await
        {
            self.created = true;
            self.publish_some(&world, random).await;
        }
        let mut kept = kept.lock().unwrap();
        std::mem::take(&mut kept.0)
    }

    async fn publish_some(&mut self, world: &World, random: &mut Random) {
        for _ in 0..1 + random.below(3) {
            let parent = self.model.len();
            let (content, source) = match self.model.last() {
                Some(last) if !random.once_in(4) => {
                    let (mut content, at) = (last.clone(), random.below(BLOCKS - 2));
                    let run = vec![random.below(50) as u16, random.below(50) as u16];
                    content[at..at + 2].copy_from_slice(&run);
                    (content, layer(BLOCKS, Some(parent as u64), vec![(at as u64, run)]))
                }
                _ => {
                    let content: Content = (0..BLOCKS).map(|_| random.below(50) as u16).collect();
                    (content.clone(), whole(&content))
                }
            };
            if world.publish(parent as u64, vec![source]).await.is_err() {
                self.attempted = Some(content);
                return;
            }
            self.model.push(content);
            self.acknowledged = self.model.len();
        }
    }

    /// Opens what is there, as the next process does; after a power cut what is there is durable.
    async fn look(&mut self, durable: bool) {
        let publisher = SigningKey::from_seed([7; 32]).publisher();
        let trust = Trust { id: id(), publisher, secret: None };
        let opened = match Directory::open(self.repository()) {
            Ok(directory) => Repository::open(Arc::new(directory), trust).await,
            Err(error) => Err(error),
        };
        let repository = match opened {
            Ok(repository) => repository,
            Err(error) => return assert!(!self.created, "it was there: {error:?}"),
        };
        let head = repository.head().await.unwrap().map_or(0, |head| head.number() as usize);
        self.model.extend(self.attempted.take());
        assert!((self.acknowledged..=self.model.len()).contains(&head), "{head}: {:?}", self.model);
        self.model.truncate(head);
        if durable {
            self.acknowledged = head;
        }
        for (at, content) in self.model.iter().enumerate() {
            check(&repository, at as u64 + 1, content).await;
        }
        assert_eq!(repository.verify(&Silent).await.unwrap().damages, []);
    }
}

/// What is under a name.
#[derive(Clone, Copy)]
enum Node {
    Directory,
    /// A file, by its place in the record.
    File(usize),
}

/// A change to the names of a directory that may not have reached the disk.
enum NameChange {
    Add(PathBuf, Node),
    Remove(PathBuf),
}

/// The bytes of a file once it has its name.
#[derive(Clone, Default)]
struct Bytes {
    bytes: Vec<u8>,
    synced: bool,
}

/// What a disk was told, and what of it must survive.
#[derive(Default)]
struct Record {
    files: Vec<Bytes>,
    names: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    /// By the directory that must be synced; changes that belong together are in one.
    pending: Vec<(PathBuf, Vec<NameChange>)>,
}

impl Record {
    /// Makes the record of a directory all of which is durable.
    fn durable(root: &Path) -> Self {
        let mut record = Self::default();
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            for item in fs::read_dir(directory).unwrap() {
                let path = item.unwrap().path();
                let node = if path.is_dir() {
                    directories.push(path.clone());
                    Node::Directory
                } else {
                    record.files.push(Bytes { bytes: fs::read(&path).unwrap(), synced: true });
                    Node::File(record.files.len() - 1)
                };
                record.names.insert(path, node);
            }
        }
        record.durable = record.names.clone();
        record
    }

    fn hear(&mut self, change: &FileChange) {
        match change {
            FileChange::MakeDirectory(path) => self.add(path, Node::Directory),
            FileChange::Create(path) => {
                self.files.push(Bytes::default());
                self.add(path, Node::File(self.files.len() - 1));
            }
            FileChange::Sync(path) => {
                let Node::File(file) = self.names[path] else { panic!("{path:?} is a directory") };
                self.files[file] = Bytes { bytes: fs::read(path).unwrap(), synced: true };
            }
            FileChange::Rename { from, to } => {
                let node = self.names.remove(from).unwrap();
                if let Node::File(file) = node {
                    self.files[file].bytes = fs::read(from).unwrap();
                }
                self.names.insert(to.clone(), node);
                let changes =
                    vec![NameChange::Remove(from.clone()), NameChange::Add(to.clone(), node)];
                self.pending.push((to.parent().unwrap().to_owned(), changes));
            }
            FileChange::Remove(path) => {
                self.names.remove(path);
                let changes = vec![NameChange::Remove(path.clone())];
                self.pending.push((path.parent().unwrap().to_owned(), changes));
            }
            FileChange::SyncDirectory(path) => {
                let (synced, pending) =
                    std::mem::take(&mut self.pending).into_iter().partition(|(at, _)| at == path);
                self.pending = pending;
                apply(&mut self.durable, synced);
            }
        }
    }

    fn add(&mut self, path: &Path, node: Node) {
        self.names.insert(path.to_owned(), node);
        let changes = vec![NameChange::Add(path.to_owned(), node)];
        self.pending.push((path.parent().unwrap().to_owned(), changes));
    }

    /// Writes what a power cut leaves of `root` to `next`.
    fn leave(self, root: &Path, next: &Path, random: &mut Random) {
        fs::create_dir(next).unwrap();
        let mut names = self.durable;
        let survives_in_four = random.below(5);
        let survivors = self.pending.into_iter().filter(|_| random.below(4) < survives_in_four);
        apply(&mut names, survivors.collect());
        for (path, node) in names {
            let path = next.join(path.strip_prefix(root).unwrap());
            // The directory that a name stands in may itself be lost.
            if !path.parent().unwrap().is_dir() {
                continue;
            }
            match node {
                Node::Directory => fs::create_dir(path).unwrap(),
                Node::File(file) => fs::write(path, torn(&self.files[file], random)).unwrap(),
            }
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Node>, changes: Vec<(PathBuf, Vec<NameChange>)>) {
    for change in changes.into_iter().flat_map(|(_, changes)| changes) {
        match change {
            NameChange::Add(path, node) => names.insert(path, node),
            NameChange::Remove(path) => names.remove(&path),
        };
    }
}

/// What is left of a file: all of it once it was synced, else any sectors up to any end.
fn torn(file: &Bytes, random: &mut Random) -> Vec<u8> {
    let mut bytes = file.bytes.clone();
    if !file.synced {
        bytes.truncate(random.below(bytes.len() + 1));
        bytes.chunks_mut(SECTOR).filter(|_| random.once_in(2)).for_each(|sector| sector.fill(0));
    }
    bytes
}
