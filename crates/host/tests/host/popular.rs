//! What is read most comes first where it is fetched before anybody asks.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use collective_api::host::HoldRequest;
use collective_api::keybag::UserSecret;
use collective_api::server::{PopularRun, Popularity, VersionReads};
use collective_host::publisher::{self, Images, PublishOptions};
use collective_model::{BlockRange, DiskRole, Hardware, RepositoryId, Silent, Timestamp, Version};
use collective_repository::backend::Directory;
use collective_repository::{
    Descriptor, DiskReader, DiskSource, ExtentData, Kind, Piece, PieceData, Publication,
    Repository, SigningKey, Trace,
};

use crate::daemon::{Computer, name};
use crate::directories::Directories;
use crate::qemu::Quiet;

/// Regions of the disk: 16 MiB.
const REGIONS: u64 = 64;
/// What its boot touches.
const BOOT: u64 = 60;

/// What is popular, the most first.
const POPULAR: [u64; 16] = [41, 3, 20, 21, 57, 9, 33, 1, 50, 49, 48, 12, 30, 2, 63, 17];
/// Requests that may be under way at once, and so overtake each other.
const AT_ONCE: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_fetched_by_popularity_behind_the_boot_and_also_without_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let server = Directories::new(&directory.path().join("server"));
    let disk = publish(&server).await;
    server.popular(popularity());
    let computer = Computer::new("attic", &server, &UserSecret::generate());
    check(&hold(&computer, &server, &disk).await);

    // What was heard last counts where the server has no answer now.
    std::fs::remove_dir_all(computer.directory.path().join("d/cache")).unwrap();
    server.silent(true);
    check(&hold(&computer, &server, &disk).await);

    // Where nobody ever said what is popular, it is the order of the disk.
    let other = Computer::new("cellar", &server, &UserSecret::generate());
    let order = hold(&other, &server, &disk).await;
    assert_eq!(order[0], BOOT);
    assert!(order[1..5].iter().all(|region| *region < 5 + AT_ONCE as u64), "{order:?}");
}

/// Checks the order of a hold: the boot, what is popular as nearly as requests keep its order, the rest.
fn check(order: &[u64]) {
    assert_eq!((order[0], order.len() as u64), (BOOT, REGIONS));
    let popular = &order[1..=POPULAR.len()];
    for (place, region) in POPULAR.iter().enumerate() {
        let found = popular.iter().position(|it| it == region);
        assert!(found.is_some_and(|it| it.abs_diff(place) < AT_ONCE), "{region}: {order:?}");
    }
}

#[tokio::test]
async fn what_is_read_most_of_the_version_before_lies_first_in_the_packs_of_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let server = Directories::new(&directory.path().join("server"));
    let signer = SigningKey::generate();
    let repository = repository(&server, &signer).await;
    let system = directory.path().join("image");
    std::fs::write(&system, image()).unwrap();
    let images = Images { system, user: None, hardware: Hardware::default() };
    let options = PublishOptions {
        rehearse: false,
        popularity: Some(popularity()),
        ..PublishOptions::new(directory.path().to_owned())
    };
    publisher::publish(&repository, &signer, &images, &options, &Quiet).await.unwrap();
    let version = repository.version(Version::FIRST).await.unwrap();
    let disk = version.disk(DiskRole::System).await.unwrap();
    let mut by_place = Vec::new();
    for region in 0..REGIONS {
        by_place.push((offset(&disk, region).await, region));
    }
    by_place.sort_unstable();
    let order: Vec<u64> = by_place.into_iter().map(|(_, region)| region).collect();
    let (popular, rest) = order.split_at(POPULAR.len());
    assert_eq!(popular, POPULAR);
    assert!(rest.is_sorted(), "{rest:?}");
}

/// Holds the appliance; returns the regions of its disk in the order in which they were fetched.
async fn hold(computer: &Computer, server: &Directories, disk: &DiskReader) -> Vec<u64> {
    let before = server.reads().len();
    let (host, client) = computer.daemon().await;
    let request = HoldRequest { version: None };
    let operation = client.hold(&name("tiny"), &request).await.unwrap();
    client.finish(operation, |_| ()).await.unwrap();
    host.shutdown().await.unwrap();
    let mut regions = Vec::new();
    for read in &server.reads()[before..] {
        for region in 0..REGIONS {
            if read.contains(&offset(disk, region).await) && !regions.contains(&region) {
                regions.push(region);
            }
        }
    }
    regions
}

/// Where in the only pack the frame of a region is.
async fn offset(disk: &DiskReader, region: u64) -> u64 {
    match disk.map(BlockRange::new(64 * region, 1)).await.unwrap()[0].what {
        ExtentData::Frame { frame, .. } => frame.offset,
        ExtentData::Zero => panic!("it has no holes"),
    }
}

/// Makes the repository of the appliance, to which ann is entitled.
async fn repository(server: &Directories, signer: &SigningKey) -> Repository {
    let id = RepositoryId([7; 16]);
    let descriptor = Descriptor::public(id, Kind::Appliance, signer.publisher());
    let backend = Arc::new(Directory::create(server.repository(id)).unwrap());
    server.entitle(&name("tiny"), descriptor.clone());
    Repository::create(backend, descriptor, None).await.unwrap()
}

/// What does not compress: a frame for each region.
fn image() -> Vec<u8> {
    let mut image = vec![0; (REGIONS * 64 * 4096) as usize];
    blake3::Hasher::new().finalize_xof().fill(&mut image);
    image
}

/// Publishes a disk in one pack, in its own order but for its boot.
async fn publish(server: &Directories) -> DiskReader {
    let signer = SigningKey::generate();
    let repository = repository(server, &signer).await;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image()).unwrap();
    let publication = Publication {
        id: "first".to_owned(),
        ..Publication::new(None, Timestamp(0), vec![source(file)])
    };
    repository.publish(publication, &signer, &Silent).await.unwrap();
    let version = repository.version(Version::FIRST).await.unwrap();
    version.disk(DiskRole::System).await.unwrap()
}

fn source(file: File) -> DiskSource {
    let size_bytes = file.metadata().unwrap().len();
    let what = PieceData::File { file: Arc::new(file), offset: 0 };
    DiskSource {
        trace: Some(Trace { ranges: vec![BlockRange::new(64 * BOOT, 64)] }),
        ..DiskSource::new(
            DiskRole::System,
            size_bytes,
            vec![Piece { range: BlockRange::covering(0, size_bytes), what }],
        )
    }
}

/// Counts by which the regions are popular in that order; the sum of starts and uses decides.
fn popularity() -> Popularity {
    let runs = POPULAR.iter().zip(1_u64..).map(|(region, rank)| PopularRun {
        first: *region,
        count: 1,
        starts: rank % 3,
        uses: 50 - rank - rank % 3,
    });
    let mut runs: Vec<PopularRun> = runs.collect();
    runs.sort_by_key(|run| run.first);
    let version = Version::FIRST;
    let reads = VersionReads { version, starts: 100, uses: 100, read_bytes: 0, foretold_bytes: 0 };
    Popularity { reads, region_blocks: 64, runs }
}
