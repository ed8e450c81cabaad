//! Reports of what is read: who may send them, how they count, and that nobody makes the database grow with them.

use collective_api::server::{
    PopularRun, Popularity, PruneRequest, REPORT_RUNS_MAX, ReadPart, ReadReport, RegionRun,
    ServerClient,
};
use collective_model::{ErrorKind, RepositoryId, Result, Version};
use collective_repository::Retention;

use crate::repository::publish_system;
use crate::world::{Person, World, debian, new_id, on_both_databases};

on_both_databases! {
    reports_are_counted_by_region_and_a_host_counts_once_a_day
    hosts_that_report_at_once_all_count
    a_version_without_reports_has_those_of_the_one_before_and_what_is_pruned_is_forgotten
    only_who_may_read_an_appliance_reports_and_asks
    what_does_not_fit_or_is_garbage_is_refused_and_counts_nothing
}

async fn reports_are_counted_by_region_and_a_host_counts_once_a_day(world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    let id = repository(&world).await;
    let (attic, cellar) = (world.join("attic").await, world.join("cellar").await);
    let (ann, other) = (world.login(&attic, "ann").await, world.login(&cellar, "ann").await);
    assert_eq!(popularity(&world.admin, id, 1).await, None);
    let start = ReadReport {
        read_bytes: 1000,
        foretold_bytes: 900,
        ..report(1, ReadPart::Start, &[(0, 2)])
    };
    ann.client.report(id, &start).await.unwrap();
    other.client.report(id, &start).await.unwrap();
    ann.client.report(id, &report(1, ReadPart::Use, &[(1, 1), (3, 1)])).await.unwrap();
    // A second person on the same computer, and the same person again.
    for again in [&ann, &world.login(&attic, "ann").await] {
        again.client.report(id, &report(1, ReadPart::Use, &[(0, 4)])).await.unwrap();
    }
    let counted = popularity(&ann.client, id, 1).await.unwrap();
    let expected = [(0, 1, 2, 0), (1, 1, 2, 1), (3, 1, 0, 1)];
    assert_eq!(runs(&counted), expected);
    assert_eq!((counted.reads.starts, counted.reads.uses, counted.region_blocks), (2, 1, 64));
    assert_eq!((counted.reads.read_bytes, counted.reads.foretold_bytes), (2000, 1800));
    let shown = world.admin.appliance(&debian()).await.unwrap().reads;
    assert_eq!((shown.len(), shown[0].starts, shown[0].foretold_bytes), (1, 2, 1800));

    // The next day.
    world.sql("update reporters set day = day - 1").await;
    ann.client.report(id, &report(1, ReadPart::Use, &[(3, 1)])).await.unwrap();
    assert_eq!(popularity(&ann.client, id, 1).await.unwrap().reads.uses, 2);
    ann.client.report(id, &report(1, ReadPart::Use, &[(3, 1)])).await.unwrap();
    assert_eq!(popularity(&ann.client, id, 1).await.unwrap().reads.uses, 2);
}

async fn hosts_that_report_at_once_all_count(world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    let id = repository(&world).await;
    let mut people = Vec::new();
    for computer in ["attic", "barn", "cellar", "den", "eaves"] {
        people.push(world.login(&world.join(computer).await, "ann").await);
    }
    // What is left of yesterday is in everybody's way.
    people[0].client.report(id, &report(1, ReadPart::Use, &[(3, 1)])).await.unwrap();
    world.sql("update reporters set day = day - 1").await;
    let start = report(1, ReadPart::Start, &[(0, 1)]);
    let reports = people.iter().map(|person| person.client.report(id, &start));
    for reported in futures::future::join_all(reports).await {
        reported.unwrap();
    }
    let counted = popularity(&world.admin, id, 1).await.unwrap();
    assert_eq!((counted.reads.starts, runs(&counted)), (5, vec![(0, 1, 5, 0), (3, 1, 0, 1)]));
}

async fn a_version_without_reports_has_those_of_the_one_before_and_what_is_pruned_is_forgotten(
    world: World,
) {
    let key = world.peopled().await;
    for seed in 1..4 {
        publish_system(&world, &key, seed).await.unwrap();
    }
    let id = repository(&world).await;
    let ann = world.login(&world.join("attic").await, "ann").await;
    for (version, region) in [(1, 1), (2, 2)] {
        let use_of = report(version, ReadPart::Use, &[(region, 1)]);
        ann.client.report(id, &use_of).await.unwrap();
    }
    let of = async |version| popularity(&ann.client, id, version).await.unwrap();
    for (asked, answered) in [(1, 1), (2, 2), (3, 2)] {
        let counted = of(asked).await;
        assert_eq!(counted.reads.version.number(), answered);
        assert_eq!(runs(&counted), [(answered, 1, 0, 1)]);
    }
    let rule = Some(Retention::of_last(2));
    let prune = |dry_run| PruneRequest { rule, keep: Vec::new(), dry_run };
    world.admin.prune_appliance(&debian(), &prune(true)).await.unwrap();
    assert_eq!(of(1).await.reads.version.number(), 1);
    world.admin.prune_appliance(&debian(), &prune(false)).await.unwrap();
    assert_eq!(popularity(&ann.client, id, 1).await, None);
    assert_eq!(of(2).await.reads.version.number(), 2);
    world.admin.remove_appliance(&debian()).await.unwrap();
    assert!(ann.client.popularity(id, Version::FIRST).await.is_err());
}

async fn only_who_may_read_an_appliance_reports_and_asks(world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    let id = repository(&world).await;
    let attic = world.join("attic").await;
    let (ann, bob) = (world.login(&attic, "ann").await, world.login(&attic, "bob").await);
    let use_of = report(1, ReadPart::Use, &[(0, 1)]);
    for stranger in [&bob.client, &attic.client, &world.client(None)] {
        for refused in [
            stranger.report(id, &use_of).await,
            stranger.report(new_id(), &use_of).await,
            stranger.popularity(id, Version::FIRST).await.map(drop),
        ] {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Denied);
        }
    }
    // An administrator sees, but counts only where they use an appliance.
    assert_eq!(world.admin.report(id, &use_of).await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(popularity(&world.admin, id, 1).await, None);
    // Of a user disk nothing is known, also of one's own.
    let disk = ann.subscribe().await.unwrap().repository.id;
    assert_eq!(ann.client.report(disk, &use_of).await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(popularity(&ann.client, disk, 1).await, None);
}

async fn what_does_not_fit_or_is_garbage_is_refused_and_counts_nothing(world: World) {
    let key = world.peopled().await;
    publish_system(&world, &key, 1).await.unwrap();
    let id = repository(&world).await;
    let ann = world.login(&world.join("attic").await, "ann").await;
    let invalid = Err(ErrorKind::Invalid);
    let fits = async |report: ReadReport| send(&ann, id, &report).await;
    // The disk has four regions.
    for runs in [&[(0, 5)][..], &[(4, 1)], &[(2, 1), (1, 1)], &[(1, 0)], &[(u64::MAX, u64::MAX)]] {
        assert_eq!(fits(report(1, ReadPart::Use, runs)).await, invalid, "{runs:?}");
    }
    let many = vec![RegionRun { first: 0, count: 1 }; 2 * REPORT_RUNS_MAX];
    let many = ReadReport { regions: many, ..report(1, ReadPart::Use, &[]) };
    assert!(fits(many).await.is_err(), "more than a body may have");
    let lies = ReadReport { foretold_bytes: 1, ..report(1, ReadPart::Start, &[]) };
    assert_eq!(fits(lies).await, invalid);
    assert_eq!(fits(report(2, ReadPart::Use, &[])).await, Err(ErrorKind::NotFound));
    let url = ann.client.repository_url(id).replace("repositories", "popularity");
    for body in ["", "{}", "[1]", "{\"version\":0}", "\u{1}\u{2}"] {
        let posted = ann.client.http().post(&url).body(body).send().await.unwrap();
        assert_eq!(posted.status().as_u16(), 400, "{body}");
    }
    assert_eq!(popularity(&ann.client, id, 1).await, None);
    // It can still say what is so.
    assert_eq!(fits(report(1, ReadPart::Use, &[(0, 4)])).await, Ok(()));
    assert_eq!(runs(&popularity(&ann.client, id, 1).await.unwrap()), [(0, 4, 0, 1)]);
}

async fn send(person: &Person, id: RepositoryId, report: &ReadReport) -> Result<(), ErrorKind> {
    person.client.report(id, report).await.map_err(|error| error.kind())
}

async fn popularity(client: &ServerClient, id: RepositoryId, version: u64) -> Option<Popularity> {
    client.popularity(id, Version::new(version).unwrap()).await.unwrap()
}

async fn repository(world: &World) -> RepositoryId {
    world.admin.appliance(&debian()).await.unwrap().repository.id
}

fn report(version: u64, part: ReadPart, runs: &[(u64, u64)]) -> ReadReport {
    let runs = runs.iter().map(|(first, count)| RegionRun { first: *first, count: *count });
    let version = Version::new(version).unwrap();
    ReadReport { version, part, regions: runs.collect(), read_bytes: 0, foretold_bytes: 0 }
}

/// Of runs: the first region, how many, starts, uses.
fn runs(popularity: &Popularity) -> Vec<(u64, u64, u64, u64)> {
    let run = |run: &PopularRun| (run.first, run.count, run.starts, run.uses);
    popularity.runs.iter().map(run).collect()
}
