//! The whole life of an appliance with real machines: published, started, written to, backed up, moved, undone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use collective_api::HostClient;
use collective_api::host::{
    ApplianceStatus, ExecRequest, InstanceState, StartRequest, StopRequest, UndoRequest,
};
use collective_api::keybag::UserSecret;
use collective_api::server::{ReadPart, ReadReport};
use collective_host::publisher::{self, Images, PublishOptions};
use collective_model::{ErrorKind, Monitor, Progress, RepositoryId};
use collective_repository::backend::Directory;
use collective_repository::{Descriptor, Kind, Repository, SigningKey};
use collective_vm::image::{BuildOptions, Recipe, Unwatched};

use crate::daemon::{Computer, name};
use crate::directories::Directories;

/// Watches nothing.
pub struct Quiet;

impl Monitor for Quiet {
    fn progress(&self, _: Progress) {}
}

impl publisher::Watch for Quiet {
    fn stage(&self, _: &str) {}
}

/// Builds `tiny`, publishes it with its recorded start, and entitles ann to it.
async fn publish_tiny(server: &Directories, work: &Path) {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../appliances/tiny");
    let recipe = Recipe::load(&recipe).unwrap();
    let out = work.join("built");
    let options = BuildOptions::default();
    let built = collective_vm::image::build(&recipe, &options, &out, &Unwatched).await.unwrap();
    let signer = SigningKey::generate();
    let id = RepositoryId([7; 16]);
    let descriptor = Descriptor::public(id, Kind::Appliance, signer.publisher());
    let backend = Directory::create(server.repository(id)).unwrap();
    let repository = Repository::create(Arc::new(backend), descriptor.clone(), None).await.unwrap();
    let images = Images { system: built.system, user: built.user, hardware: built.hardware };
    let options = PublishOptions::new(work.to_owned());
    let report = publisher::publish(&repository, &signer, &images, &options, &Quiet).await.unwrap();
    assert!(!report.rehearsal.unwrap().trace.ranges.is_empty());
    server.entitle(&name("tiny"), descriptor);
}

async fn run(client: &HostClient, script: &str) -> String {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let request = ExecRequest { command, input: None, limit_s: Some(60) };
    let reply = client.exec(&name("tiny"), &request).await.unwrap();
    let decode = |text| base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let text = String::from_utf8(decode(reply.stdout)).unwrap();
    assert_eq!(
        reply.exit_code,
        0,
        "{script}: {text} {:?}",
        String::from_utf8(decode(reply.stderr))
    );
    text
}

async fn start(client: &HostClient) -> collective_model::Result<()> {
    let operation = client.start(&name("tiny"), &StartRequest::default()).await?;
    client.finish(operation, |_| ()).await.map(drop)
}

async fn stop(client: &HostClient, force: bool) {
    let operation = client.stop(&name("tiny"), &StopRequest { force }).await.unwrap();
    client.finish(operation, |_| ()).await.unwrap();
}

async fn backed_up(client: &HostClient) -> ApplianceStatus {
    let operation = client.publish(&name("tiny")).await.unwrap();
    client.finish(operation, |_| ()).await.unwrap();
    client.appliance(&name("tiny")).await.unwrap()
}

/// Waits until so many reports came, of which the last are of these parts.
async fn reported(server: &Directories, count: usize, last: &[ReadPart]) {
    let come = async {
        while server.reports().len() < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), come).await.expect("they are reported");
    let reports = server.reports();
    assert_eq!(reports.len(), count);
    let parts: Vec<ReadPart> = reports.iter().map(|report| report.part).collect();
    assert!(parts.ends_with(last), "{parts:?}");
    let reads = |report: &ReadReport| report.part == ReadPart::Use || report.read_bytes > 1 << 20;
    assert!(reports.iter().all(reads), "{reports:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_disk_survives_daemons_and_moves_between_hosts() {
    let work = tempfile::tempdir().unwrap();
    let server = Directories::new(&work.path().join("server"));
    publish_tiny(&server, work.path()).await;
    let secret = UserSecret::generate();
    let attic = Computer::new("attic", &server, &secret);

    let (host, client) = attic.daemon().await;
    start(&client).await.unwrap();
    let again = client.start(&name("tiny"), &StartRequest::default()).await.unwrap();
    let again = client.finish(again, |_| ()).await.unwrap().result.unwrap();
    assert_eq!(again["ran_already"], true);
    run(&client, "echo one > /home/note && sync").await;
    // The daemon goes while the guest runs; the next one finds it, and goes on backing up.
    host.shutdown().await.unwrap();
    let (host, client) = attic.daemon().await;
    assert_eq!(run(&client, "cat /home/note").await, "one\n");
    let status = backed_up(&client).await;
    assert_eq!(status.state, InstanceState::Running);
    assert_eq!(status.user_disk.unwrap().version.unwrap().number(), 2);
    run(&client, "echo two > /home/note && sync").await;
    server.silent(true);
    stop(&client, false).await;
    // What cannot be said now is said by the next daemon.
    assert!(attic.directory.path().join("d/users/ann/tiny/reports.json").exists());
    host.shutdown().await.unwrap();
    server.silent(false);
    let (host, client) = attic.daemon().await;
    reported(&server, 1, &[ReadPart::Use]).await;
    let status = backed_up(&client).await;
    let disk = status.user_disk.unwrap();
    assert_eq!((disk.version.unwrap().number(), disk.backlog_bytes), (3, 0));
    assert_eq!(server.lock_holder(), None);

    // Another host has what was written; undo takes it back.
    let cellar = Computer::new("cellar", &server, &secret);
    let (other_host, other) = cellar.daemon().await;
    let undo = UndoRequest { to: collective_model::Version::new(2) };
    let operation = other.undo(&name("tiny"), &undo).await.unwrap();
    other.finish(operation, |_| ()).await.unwrap();
    start(&other).await.unwrap();
    assert_eq!(run(&other, "cat /home/note").await, "one\n");

    // The lock is the cellar's; broken, what the cellar wrote is kept there.
    let error = start(&client).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.chain().contains("cellar"), "{}", error.chain());
    run(&other, "echo three > /home/note && sync").await;
    let request = StartRequest { version: None, break_lock: true };
    let operation = client.start(&name("tiny"), &request).await.unwrap();
    client.finish(operation, |_| ()).await.unwrap();
    stop(&client, true).await;
    backed_up(&client).await;
    stop(&other, false).await;
    let operation = other.publish(&name("tiny")).await.unwrap();
    let _ = other.finish(operation, |_| ()).await;
    let kept = other.appliance(&name("tiny")).await.unwrap().user_disk.unwrap().kept;
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(Path::new(&kept[0]).exists());
    host.shutdown().await.unwrap();
    other_host.shutdown().await.unwrap();
    reported(&server, 5, &[ReadPart::Start, ReadPart::Use]).await;
}
