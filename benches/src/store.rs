//! A line of versions: what all of them take, what an update moves, and the processor time of publishing, beside peers
//! that get the same trimmed disks.
//!
//! An update is moved by a host that has all of the version before in its cache and holds the next one: opened anew over
//! HTTP, every byte on the connection counted, requests and headers too.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use collective_disk::{Cache, CacheOptions, FetchSettings, Fetcher, VersionDisk};
use collective_model::{DiskRole, Epoch, RepositoryId, Silent, Version};
use collective_repository::backend::{Directory, Http};
use collective_repository::{Descriptor, Kind, Repository, SigningKey, Trust};
use collective_testing::Nginx;

use crate::link::{COUNTED, Link};
use crate::peers::{self, Taken, size_of};
use crate::publish::{processor_time, publication};
use crate::report::{Report, Row, say};
use crate::sample::Sample;
use crate::scene::{Scene, chain};
use crate::versions;

/// The repository of the line, below the directory of the run.
const REPOSITORY: &str = "line-repository";

/// Publishes a line of versions, lets the peers store it too, and reports what is asked for.
pub async fn measure(scene: &Scene, report: &mut Report) -> Result<()> {
    let disks = versions::make(scene)?;
    let mut first = Sample::default();
    for _ in 0..scene.rounds(2, 0) {
        let (_, ours) = publish(scene, &disks[..1]).await?;
        first.push(ours.processor[0].as_secs_f64());
    }
    let (descriptor, mut ours) = publish(scene, &disks).await?;
    first.push(ours.processor[0].as_secs_f64());
    // Alone: the others, of which only bytes are wanted, run beside each other.
    let borg = peers::borg(scene, &disks)?;
    if scene.wants("cpu") {
        processor(&first, &ours, &borg, report);
    }
    if scene.wants("store") {
        ours.moved = moved(scene, &descriptor, disks.len()).await?;
        let mut beside = peers::others(scene, &disks)?;
        beside.push(borg);
        stored(&ours, &beside, report);
        updates(scene, &disks, &ours, &beside, report)?;
    }
    Ok(())
}

async fn publish(scene: &Scene, disks: &[PathBuf]) -> Result<(Descriptor, Taken)> {
    let directory = scene.fresh(REPOSITORY)?;
    let backend = Arc::new(Directory::create(&directory).map_err(chain)?);
    let signer = SigningKey::generate();
    let id = RepositoryId(*b"collective-line-");
    let descriptor = Descriptor::public(id, Kind::Appliance, signer.publisher());
    let repository = Repository::create(backend, descriptor, None).await.map_err(chain)?;
    let mut ours =
        Taken { name: "ours", stored: Vec::new(), moved: Vec::new(), processor: Vec::new() };
    let (mut parent, mut before) = (None, 0);
    for disk in disks {
        let begun = processor_time();
        let publication = publication(disk, None, parent)?;
        let published = repository.publish(publication, &signer, &Silent).await.map_err(chain)?;
        ours.processor.push(processor_time() - begun);
        let after = size_of(&directory)?;
        ours.stored.push(after - before);
        (parent, before) = (Some(published.version), after);
    }
    Ok((repository.descriptor().clone(), ours))
}

/// Bytes that a host moves for each version after the first, when it holds one after the other.
async fn moved(scene: &Scene, descriptor: &Descriptor, versions: usize) -> Result<Vec<u64>> {
    let web = Nginx::serve(&scene.directory)?;
    let options = CacheOptions { capacity_bytes: 8 << 30 };
    let cache = Cache::open(&scene.fresh("line-cache")?, options).map_err(chain)?;
    let fetcher = Fetcher::new(cache, FetchSettings::default());
    let mut moved = Vec::new();
    for number in 1..=versions as u64 {
        let link = Link::lay(COUNTED, web.address()).await?;
        let url = format!("http://{}/{REPOSITORY}", link.address);
        let backend = Arc::new(Http::new(reqwest::Client::new(), &url, Epoch(0)));
        let trust = Trust { id: descriptor.id, publisher: descriptor.publisher, secret: None };
        let repository = Repository::open(backend, trust).await.map_err(chain)?;
        let number = Version::new(number).context("versions count from 1")?;
        let version = repository.version(number).await.map_err(chain)?;
        let reader = version.disk(DiskRole::System).await.map_err(chain)?;
        let disk = VersionDisk::new(reader, fetcher.clone());
        disk.complete(|_| ()).await;
        if number != Version::FIRST {
            moved.push(link.down_bytes() + link.up_bytes());
        }
    }
    Ok(moved)
}

fn stored(ours: &Taken, beside: &[Taken], report: &mut Report) {
    let total = |taken: &Taken| taken.stored.iter().sum::<u64>();
    let mut peers: Vec<&Taken> = beside.iter().filter(|taken| !taken.stored.is_empty()).collect();
    peers.sort_by_key(|taken| total(taken));
    let peers: Vec<_> =
        peers.into_iter().map(|taken| (taken.name, megabytes(total(taken)))).collect();
    let row = Row { id: "store.bytes", unit: "MB", goal: "<= 0.85" };
    report.add(row, &megabytes(total(ours)), &peers);
}

/// Tells of every update, and reports the one that is the worst beside its best peer.
fn updates(
    scene: &Scene,
    disks: &[PathBuf],
    ours: &Taken,
    beside: &[Taken],
    report: &mut Report,
) -> Result<()> {
    let ratio = |at: usize| {
        let best = beside.iter().map(|taken| taken.moved[at]).min().unwrap_or(1);
        ours.moved[at] as f64 / best as f64
    };
    for at in 0..ours.moved.len() {
        let others: Vec<String> = beside
            .iter()
            .map(|taken| format!("{} {:.2}", taken.name, taken.moved[at] as f64 / 1e6))
            .collect();
        let (number, moved) = (at + 2, ours.moved[at] as f64 / 1e6);
        say(&format!("to {number}: {moved:.2} MB, {:.2}; {}", ratio(at), others.join(", ")));
    }
    let worst = (0..ours.moved.len()).max_by(|left, right| ratio(*left).total_cmp(&ratio(*right)));
    let worst = worst.context("a line has several versions")?;
    let mut peers: Vec<_> = beside.iter().map(|taken| (taken.name, taken.moved[worst])).collect();
    peers.sort_by_key(|(_, bytes)| *bytes);
    peers.extend(peers::apart(scene, disks, worst + 1)?);
    let peers: Vec<_> = peers.into_iter().map(|(name, bytes)| (name, megabytes(bytes))).collect();
    let row = Row { id: "update.bytes", unit: "MB, worst update", goal: "<= 0.75" };
    report.add(row, &megabytes(ours.moved[worst]), &peers);
    Ok(())
}

fn processor(first: &Sample, ours: &Taken, borg: &Taken, report: &mut Report) {
    let seconds = |times: &[Duration]| times.iter().map(Duration::as_secs_f64).collect::<Sample>();
    let row = Row { id: "publish.cpu.first", unit: "CPU s", goal: "<= 0.5" };
    report.add(row, first, &[("borg", seconds(&borg.processor[..1]))]);
    let row = Row { id: "publish.cpu.update", unit: "CPU s", goal: "<= 0.5" };
    let peers = [("borg", seconds(&borg.processor[1..]))];
    report.add(row, &seconds(&ours.processor[1..]), &peers);
}

fn megabytes(bytes: u64) -> Sample {
    [bytes as f64 / 1e6].into_iter().collect()
}
