//! Damage by the thousand: any object of a repository flipped, cut, zeroed, swapped, put back to what it was or doubled,
//! one or several at once, under readers that are open and readers that come.
//!
//! Beside it stands a model, a list of contents. A read gives what the model has or an error that names what was damaged; and
//! what needs nothing that was damaged must be read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use collective_model::{Digest, DiskRole, Error, ErrorKind, Result, Silent};
use collective_repository::backend::{Backend, Memory, ObjectName, PartKind};
use collective_repository::{DiskReader, DiskSource, Manifest, Repository, Trace};

use crate::world::{
    Content, World, block_bytes, layer, publication, read, read_version, trace, version, whole,
};
use collective_testing::{Random, damage, each_seed};

const RUNS: u64 = 4000;
/// Repositories that are damaged in turn.
const WORLDS: u64 = 8;
const BLOCKS: usize = 12;

type Objects = BTreeMap<ObjectName, Bytes>;

/// A repository with its history, and what it must show.
struct Sample {
    world: World,
    /// The objects after each publication; the last is what is damaged.
    history: Vec<Objects>,
    model: Vec<Content>,
    traces: Vec<Trace>,
}

#[test]
fn a_damaged_repository_gives_right_bytes_or_an_error_that_names_the_damage() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let samples: Vec<Sample> =
        (1..=WORLDS).map(|seed| runtime.block_on(Sample::make(&mut Random::new(seed)))).collect();
    let (mut right, mut told) = (0, 0);
    let many = each_seed(RUNS, |mut random| {
        let sample = random.of(&samples).expect("there are some");
        let case = runtime.block_on(Case::make(sample, &mut random));
        let (read, refused) = runtime.block_on(case.look(&mut random));
        right += read;
        told += refused;
    });
    assert!(!many || (right > 0 && told > 0), "{right} right, {told} told");
}

impl Sample {
    async fn make(random: &mut Random) -> Self {
        let memory = Arc::new(Memory::new());
        let private = random.once_in(2);
        let backend: Arc<dyn Backend> = memory.clone();
        let world =
            if private { World::private(backend).await } else { World::public(backend).await };
        let mut sample = Self { world, history: Vec::new(), model: Vec::new(), traces: Vec::new() };
        for parent in 0..2 + random.below(2) {
            let (content, source) = change(sample.model.last(), parent as u64, random);
            let touched: Vec<_> =
                (0..2).map(|_| (random.below(BLOCKS) as u64, 1 + random.below(4) as u64)).collect();
            let source = DiskSource { trace: Some(trace(&touched)), ..source };
            sample.world.publish(parent as u64, vec![source]).await.unwrap();
            sample.model.push(content);
            sample.history.push(objects(&memory).await);
            let reader = sample.world.repository.version(version(parent as u64 + 1)).await.unwrap();
            sample.traces.push(reader.trace(DiskRole::System).await.unwrap());
        }
        sample
    }

    fn intact(&self) -> &Objects {
        self.history.last().expect("every sample has versions")
    }

    /// What a version cannot be read without.
    fn needed(&self, number: usize) -> BTreeSet<ObjectName> {
        let name = ObjectName::Manifest(version(number as u64));
        let manifest = Manifest::peek(&self.intact()[&name]).unwrap();
        let objects = manifest.objects().into_iter().map(|object| object.name);
        objects.chain([name, ObjectName::Descriptor, ObjectName::Latest]).collect()
    }
}

/// The next version of a disk.
fn change(last: Option<&Content>, base: u64, random: &mut Random) -> (Content, DiskSource) {
    let Some(last) = last else {
        let content: Content = (0..BLOCKS).map(|_| random.below(30) as u16).collect();
        return (content.clone(), whole(&content));
    };
    let (mut content, at) = (last.clone(), random.below(BLOCKS - 5));
    let run: Content = (0..5).map(|_| random.below(60) as u16).collect();
    content[at..at + 5].copy_from_slice(&run);
    (content, layer(BLOCKS, Some(base), vec![(at as u64, run)]))
}

async fn objects(memory: &Memory) -> Objects {
    let mut objects = Objects::new();
    for object in memory.list("").await.unwrap() {
        objects.insert(object.name, memory.read(&object.name, None).await.unwrap());
    }
    objects
}

/// A copy of a sample with damage in it.
struct Case<'a> {
    sample: &'a Sample,
    memory: Arc<Memory>,
    damaged: BTreeSet<ObjectName>,
    /// Disks that were open before the damage was done.
    open: Vec<DiskReader>,
}

impl<'a> Case<'a> {
    async fn make(sample: &'a Sample, random: &mut Random) -> Self {
        let memory = Arc::new(Memory::new());
        for (name, bytes) in sample.intact() {
            memory.write(name, bytes.clone()).await.unwrap();
        }
        let mut open = Vec::new();
        if random.once_in(3) {
            let repository = sample.world.reopen(memory.clone()).await.unwrap();
            for number in 1..=sample.model.len() {
                let reader = repository.version(version(number as u64)).await.unwrap();
                open.push(reader.disk(DiskRole::System).await.unwrap());
            }
        }
        let mut now = sample.intact().clone();
        for _ in 0..1 + random.below(3) {
            damage(&mut now, &sample.history, random, stranger);
        }
        let names: BTreeSet<_> = now.keys().chain(sample.intact().keys()).copied().collect();
        let is_other = |name: &ObjectName| now.get(name) != sample.intact().get(name);
        let damaged: BTreeSet<_> = names.into_iter().filter(is_other).collect();
        for name in &damaged {
            match now.get(name) {
                Some(bytes) => memory.write(name, bytes.clone()).await.unwrap(),
                None => memory.delete(name).await.unwrap(),
            }
        }
        Self { sample, memory, damaged, open }
    }

    /// Looks at it as everybody does; returns how many reads were right, and how many were refused.
    async fn look(&self, random: &mut Random) -> (usize, usize) {
        let (mut right, mut told) = (0, 0);
        let mut count = |refused: bool| if refused { told += 1 } else { right += 1 };
        for (at, disk) in self.open.iter().enumerate() {
            count(self.check(at + 1, read(disk).await));
        }
        let repository = match self.sample.world.reopen(self.memory.clone()).await {
            Ok(repository) => repository,
            Err(error) => {
                self.check_error(0, &error);
                assert!(self.damaged.contains(&ObjectName::Descriptor), "{error:?}");
                return (right, told + 1);
            }
        };
        for number in 1..=self.sample.model.len() {
            let (disk, trace) = read_both(&repository, number as u64).await;
            count(self.check(number, disk));
            count(self.check_trace(number, trace));
        }
        if random.once_in(3) {
            self.verify(&repository).await;
        }
        if random.once_in(3) {
            count(self.publish(&repository, random).await);
        }
        (right, told)
    }

    /// Says whether a read was refused.
    fn check(&self, number: usize, read: Result<Vec<u8>>) -> bool {
        match read {
            Ok(bytes) => assert!(bytes == plain(&self.sample.model[number - 1]), "wrong bytes"),
            Err(error) => {
                self.check_error(number, &error);
                return true;
            }
        }
        false
    }

    fn check_trace(&self, number: usize, read: Result<Trace>) -> bool {
        match read {
            Ok(trace) => assert_eq!(trace, self.sample.traces[number - 1]),
            Err(error) => {
                self.check_error(number, &error);
                return true;
            }
        }
        false
    }

    /// An error is of the right kind, names what was damaged, and there must have been a reason for it.
    fn check_error(&self, number: usize, error: &Error) {
        let (kind, chain) = (error.kind(), error.chain());
        // A publisher meets a conflict if something that it builds on is gone.
        let kinds = [ErrorKind::Corrupt, ErrorKind::NotFound, ErrorKind::Conflict];
        assert!(kinds.contains(&kind), "{error:?}");
        let named = self.damaged.iter().any(|name| chain.contains(&name.to_string()));
        // Where the head went back, or is gone, a version does not exist; where its manifest is gone it was removed.
        let missing = kind == ErrorKind::NotFound && chain.contains("version ");
        let shown = &self.damaged;
        assert!(named || missing, "{chain} names none of {shown:?}");
        if (1..=self.sample.model.len()).contains(&number) {
            let needed = self.sample.needed(number);
            assert!(!needed.is_disjoint(shown), "{chain}, but only {shown:?} were damaged");
        }
    }

    /// Verification names nothing that is intact, and something of what versions reach and is not.
    async fn verify(&self, repository: &Repository) {
        let report = match repository.verify(&Silent).await {
            Ok(report) => report,
            Err(error) => return self.check_error(0, &error),
        };
        for damage in &report.damages {
            let named = self.damaged.iter().any(|name| name.to_string() == damage.object);
            // A head whose manifest is gone is the head's damage.
            assert!(named || damage.object == "latest", "{damage:?} of {:?}", self.damaged);
        }
        let head = repository.head().await.ok().flatten().map_or(0, |head| head.number() as usize);
        if self.damaged.contains(&ObjectName::Latest) || !report.damages.is_empty() {
            return;
        }
        for number in 1..=head {
            // A manifest that is gone is a version that was removed, unless it is the head's.
            let removed = self.is_gone(&ObjectName::Manifest(version(number as u64))).await;
            let sound = self.sample.needed(number).is_disjoint(&self.damaged);
            assert!((removed && number < head) || sound, "{number}: {:?}", self.damaged);
        }
    }

    async fn is_gone(&self, name: &ObjectName) -> bool {
        self.memory.size(name).await.unwrap().is_none()
    }

    /// Publishes over the damage: the new version is right, or something is refused.
    async fn publish(&self, repository: &Repository, random: &mut Random) -> bool {
        let Ok(Some(head)) = repository.head().await else { return true };
        let head = head.number();
        let last = &self.sample.model[head as usize - 1];
        let (content, source) = change(Some(last), head, random);
        let publication = publication(head, vec![source]);
        let published = repository.publish(publication, &self.sample.world.key, &Silent).await;
        let read = match published {
            Ok(_) => read_version(repository, head + 1).await,
            Err(error) => Err(error),
        };
        match read {
            Ok(bytes) => assert!(bytes == plain(&content), "wrong bytes over damage"),
            Err(error) => self.check_error(head as usize + 1, &error),
        }
        false
    }
}

async fn read_both(repository: &Repository, number: u64) -> (Result<Vec<u8>>, Result<Trace>) {
    let reader = match repository.version(version(number)).await {
        Ok(reader) => reader,
        Err(error) => {
            let again = Error::new(error.kind(), error.chain());
            return (Err(error), Err(again));
        }
    };
    let disk = async { read(&reader.disk(DiskRole::System).await?).await };
    (disk.await, reader.trace(DiskRole::System).await)
}

fn plain(content: &[u16]) -> Vec<u8> {
    content.iter().flat_map(|number| block_bytes(*number)).collect()
}

/// A name of the same kind that no object has.
fn stranger(name: &ObjectName, random: &mut Random) -> ObjectName {
    let hash = Digest([random.below(256) as u8; 32]);
    let number = version(1 + random.below(9) as u64);
    match name {
        ObjectName::Part { kind: PartKind::Index, role, .. } => {
            ObjectName::part(number, *role, PartKind::Index, &hash)
        }
        ObjectName::Part { role, .. } => ObjectName::part(number, *role, PartKind::Trace, &hash),
        ObjectName::Manifest(_) => ObjectName::Manifest(version(5 + random.below(3) as u64)),
        _ => ObjectName::Pack(hash),
    }
}
