//! A small world in which a user disk lives: a repository, files, a guest that writes, another host that takes the
//! lock, and crashes before and after every effect. A disk is the list of the writes it shows.

use std::collections::BTreeMap;

use collective_model::{Epoch, RepositoryId, SubscriptionId, Timestamp, Version};
use collective_repository::{Descriptor, Kind, RepositorySecret};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::{proptest, test_runner::Config as ProptestConfig};

use super::{Facts, Guest, Head, Step, Subscription, Want, What, next};

/// Steps until a wish must have come true; more means that the planner runs in a circle.
const STEPS: usize = 40;

#[derive(Clone, Copy, Debug)]
enum Deed {
    Boot,
    PowerOff,
    Write,
    Backup,
    Undo,
    /// The daemon dies after so many more effects and records.
    CrashAfter(usize),
    ServerAway(bool),
    OtherHostPublishes,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    vec(
        prop_oneof![
            3 => proptest::strategy::Just(Deed::Boot),
            2 => proptest::strategy::Just(Deed::PowerOff),
            6 => proptest::strategy::Just(Deed::Write),
            5 => proptest::strategy::Just(Deed::Backup),
            1 => proptest::strategy::Just(Deed::Undo),
            4 => (0_usize..12).prop_map(Deed::CrashAfter),
            1 => any::<bool>().prop_map(Deed::ServerAway),
            1 => proptest::strategy::Just(Deed::OtherHostPublishes),
        ],
        1..60,
    )
}

#[derive(Clone, Debug)]
struct Published {
    id: String,
    writes: Vec<u32>,
}

#[derive(Debug)]
struct World {
    record: Subscription,
    repository: Vec<Published>,
    files: BTreeMap<u64, Vec<u32>>,
    kept: BTreeMap<String, Vec<u32>>,
    guest: Option<Guest>,
    /// What the guest's layers lie on.
    guest_base: Option<Version>,
    server_away: bool,
    writes: u32,
    ids: u32,
    /// Effects and records until the daemon dies.
    fuse: Option<usize>,
}

struct Crash;

impl World {
    fn new() -> Self {
        Self {
            record: Subscription::new(SubscriptionId([1; 16]), descriptor()),
            repository: Vec::new(),
            files: BTreeMap::new(),
            kept: BTreeMap::new(),
            guest: None,
            guest_base: None,
            server_away: false,
            writes: 0,
            ids: 0,
            fuse: None,
        }
    }

    fn head(&self) -> Option<Head> {
        if self.server_away {
            return None;
        }
        let version = Version::new(self.repository.len() as u64);
        let id = self.repository.last().map(|last| last.id.clone()).unwrap_or_default();
        Some(Head { version, id })
    }

    fn facts(&self, want: Want) -> Facts {
        let top = self.record.layers.last().and_then(|layer| self.files.get(layer));
        Facts {
            guest: self.guest.clone(),
            head: self.head(),
            want,
            top_dirty: top.is_some_and(|writes| !writes.is_empty()),
        }
    }

    /// One point at which the daemon may die.
    fn tick(&mut self) -> Result<(), Crash> {
        match self.fuse.take() {
            Some(0) => Err(Crash),
            Some(left) => {
                self.fuse = Some(left - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Brings a wish about; a crash ends it half way, and the record is what it was.
    fn pursue(&mut self, want: Want) {
        for _ in 0..STEPS {
            let Some(step) = next(&self.record, &self.facts(want)) else { return };
            let undone = matches!(step, Step::Begin(What::Undo(_)));
            if self.perform(step).is_err() {
                return;
            }
            if undone {
                return self.pursue(Want::Rest);
            }
        }
        panic!("{want:?} does not come true: {self:?}");
    }

    fn perform(&mut self, step: Step) -> Result<(), Crash> {
        let mut record = self.record.clone();
        self.tick()?;
        match step {
            Step::KeepAside => {
                let name = format!("k{}", self.kept.len());
                let writes = record.layers.iter().flat_map(|layer| self.files.remove(layer));
                let writes: Vec<u32> = writes.flatten().collect();
                self.kept.insert(name.clone(), writes);
                record.kept_aside(name);
                // A move within one file system is repeated after a crash; here both halves are one.
                self.record = record;
                return Ok(());
            }
            Step::DeleteFile(layer) => {
                self.files.remove(&layer);
                record.deleted(layer);
            }
            Step::AddLayer(layer) => {
                self.files.insert(layer, Vec::new());
                record.layer_added(layer);
            }
            Step::Freeze { old, new } => {
                let guest = self.guest.as_mut().unwrap();
                assert_eq!(guest.layers.last(), Some(&old));
                guest.layers.push(new);
            }
            Step::Begin(what) => {
                self.ids += 1;
                record.begun(format!("p{}", self.ids), what);
            }
            Step::Upload(what) => self.upload(what),
            Step::Settle(version) => record.settled(version, Timestamp(0)),
            Step::Rebase { version, gone } => {
                let guest = self.guest.as_mut().unwrap();
                guest.layers.retain(|layer| !gone.contains(layer));
                self.guest_base = Some(version);
            }
            Step::Finish => record.finished(),
            Step::Adopt(head) => record.adopted(head),
            Step::Lose(why) => record.lose(why),
        }
        self.tick()?;
        self.record = record;
        Ok(())
    }

    fn upload(&mut self, what: What) {
        let publishing = self.record.publishing.clone().unwrap();
        assert_eq!(Version::new(self.repository.len() as u64), self.record.base);
        assert!(self.repository.iter().all(|old| old.id != publishing.id), "published twice");
        let mut writes = self.shown(self.record.base);
        match what {
            What::Template => {}
            What::Layers(count) => {
                for layer in &self.record.layers[..count] {
                    writes.extend(&self.files[layer]);
                }
            }
            What::Undo(version) => writes = self.shown(Some(version)),
        }
        self.repository.push(Published { id: publishing.id, writes });
    }

    fn shown(&self, version: Option<Version>) -> Vec<u32> {
        version.map_or_else(Vec::new, |version| {
            self.repository[version.number() as usize - 1].writes.clone()
        })
    }

    fn disk_of_guest(&self) -> Vec<u32> {
        let guest = self.guest.as_ref().unwrap();
        let mut writes = self.shown(self.guest_base);
        for layer in &guest.layers {
            writes.extend(self.files.get(layer).expect("a guest's layer file is there"));
        }
        writes
    }

    fn boot(&mut self) {
        if self.guest.is_some() {
            return;
        }
        self.pursue(Want::Open);
        // As the host: without the server, a start goes on with what is here.
        if next(&self.record, &self.facts(Want::Open)).is_some()
            || self.record.layers.is_empty()
            || self.record.base.is_none()
        {
            return;
        }
        self.guest_base = self.record.base;
        self.guest = Some(Guest { layers: self.record.layers.clone() });
    }

    fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Boot => self.boot(),
            Deed::PowerOff => {
                self.guest = None;
                self.pursue(Want::Rest);
            }
            Deed::Write => {
                let Some(guest) = &self.guest else { return };
                self.writes += 1;
                let top = guest.layers.last().unwrap();
                self.files.get_mut(top).unwrap().push(self.writes);
            }
            Deed::Backup => self.pursue(Want::Backup),
            Deed::Undo => {
                if self.guest.is_none() && !self.repository.is_empty() {
                    self.pursue(Want::Undo(Version::FIRST));
                }
            }
            Deed::CrashAfter(count) => self.fuse = Some(count),
            Deed::ServerAway(away) => self.server_away = away,
            Deed::OtherHostPublishes => {
                let writes = self.shown(Version::new(self.repository.len() as u64));
                self.record.epoch = Epoch(0);
                self.repository.push(Published { id: "other".to_owned(), writes });
            }
        }
    }

    /// Every write is in some version, in a layer that the record names, or kept aside.
    fn check(&self) {
        for write in 1..=self.writes {
            let published = self.repository.iter().any(|version| version.writes.contains(&write));
            let here = self.record.layers.iter().filter_map(|layer| self.files.get(layer));
            let here = here.flatten().any(|there| *there == write);
            let kept = self.kept.values().flatten().any(|there| *there == write);
            assert!(published || here || kept, "write {write} is lost: {self:?}");
        }
        if let Some(guest) = &self.guest {
            let unsettled = self.record.layers.iter().filter(|layer| !guest.layers.contains(layer));
            assert!(unsettled.count() <= 1, "the guest misses layers: {self:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_write_is_lost_or_published_twice_wherever_the_daemon_dies(deeds in deeds()) {
        let mut world = World::new();
        for deed in deeds {
            let before = world.guest.is_some().then(|| world.disk_of_guest());
            world.act(deed);
            world.check();
            if let (Some(before), Some(_)) = (before, &world.guest) {
                assert!(world.disk_of_guest().starts_with(&before), "the guest's disk changed under it");
            }
        }
        world.fuse = None;
        world.server_away = false;
        world.guest = None;
        world.pursue(Want::Backup);
        world.check();
        assert!(!world.record.has_unpublished(), "{world:?}");
        let files: Vec<u64> = world.files.keys().copied().collect();
        assert!(files.iter().all(|file| *file >= world.record.next_layer), "files stay behind: {world:?}");
    }
}

fn descriptor() -> Descriptor {
    let secret = RepositorySecret::new([2; 32]);
    Descriptor::private(RepositoryId([2; 16]), Kind::UserDisk, &secret)
}

fn record_on(base: u64, layers: &[u64]) -> Subscription {
    let mut record = Subscription::new(SubscriptionId([1; 16]), descriptor());
    record.base = Version::new(base);
    for layer in layers {
        record.layer_added(*layer);
    }
    record
}

fn head(version: u64, id: &str) -> Option<Head> {
    Some(Head { version: Version::new(version), id: id.to_owned() })
}

#[test]
fn the_first_start_publishes_the_template() {
    let facts = Facts { want: Want::Open, head: head(0, ""), ..Facts::default() };
    assert_eq!(next(&record_on(0, &[]), &facts), Some(Step::Begin(What::Template)));
}

#[test]
fn a_stopped_disk_is_published_whole_and_a_running_one_without_its_top() {
    let record = record_on(3, &[4, 5]);
    let mut facts = Facts { want: Want::Backup, head: head(3, "x"), ..Facts::default() };
    assert_eq!(next(&record, &facts), Some(Step::Begin(What::Layers(2))));
    facts.guest = Some(Guest { layers: vec![4, 5] });
    assert_eq!(next(&record, &facts), Some(Step::Begin(What::Layers(1))));
}

#[test]
fn an_own_commit_is_known_after_a_crash_and_anothers_is_not_taken_for_it() {
    let mut record = record_on(3, &[4]);
    record.begun("mine".to_owned(), What::Layers(1));
    let facts = |id| Facts { head: head(4, id), ..Facts::default() };
    assert_eq!(next(&record, &facts("mine")), Some(Step::Settle(Version::new(4).unwrap())));
    assert!(matches!(next(&record, &facts("theirs")), Some(Step::Lose(_))));
}

#[test]
fn a_guest_never_writes_to_a_layer_that_is_being_published() {
    let mut record = record_on(3, &[4]);
    record.begun("mine".to_owned(), What::Layers(1));
    let facts = Facts { want: Want::Open, ..Facts::default() };
    assert_eq!(next(&record, &facts), Some(Step::AddLayer(5)));
    record.layer_added(5);
    assert_eq!(next(&record, &facts), None);
}

#[test]
fn without_the_server_no_guest_starts_on_a_disk_that_an_undo_replaces() {
    let mut record = record_on(3, &[]);
    record.begun("mine".to_owned(), What::Undo(Version::FIRST));
    let facts = Facts { want: Want::Open, ..Facts::default() };
    assert_eq!(next(&record, &facts), None);
    assert!(record.is_replaced());
}

#[test]
fn nothing_is_moved_aside_under_a_running_guest() {
    let mut record = record_on(3, &[4]);
    record.lose("broken".to_owned());
    let guest = Some(Guest { layers: vec![4] });
    assert_eq!(next(&record, &Facts { guest, ..Facts::default() }), None);
    assert_eq!(next(&record, &Facts::default()), Some(Step::KeepAside));
}
