//! A daemon in a directory of its own, and what it says to those who ask wrongly.

use std::fs;
use std::sync::Arc;

use collective_api::HostClient;
use collective_api::host::{ExecRequest, LogoutRequest, StartRequest};
use collective_api::keybag::UserSecret;
use collective_host::{Host, HostOptions};
use collective_model::{ApplianceName, ErrorKind, RepositoryId, UserName};
use collective_repository::{Descriptor, Kind, SigningKey};
use collective_vm::process::{Identity, Process};

use crate::directories::{Directories, Seat};

/// The one user of all tests.
pub fn ann() -> UserName {
    "ann".parse().unwrap()
}

pub fn name(text: &str) -> ApplianceName {
    text.parse().unwrap()
}

/// A computer: its directories outlive its daemons, and its machines end with it, also when a test fails.
pub struct Computer {
    pub directory: tempfile::TempDir,
    pub seat: Arc<Seat>,
    pub secret: UserSecret,
}

impl Computer {
    pub fn new(host: &str, server: &Arc<Directories>, secret: &UserSecret) -> Self {
        let seat = Arc::new(Seat { host: host.to_owned(), server: Arc::clone(server) });
        Self { directory: tempfile::tempdir().unwrap(), seat, secret: secret.clone() }
    }

    pub fn options(&self) -> HostOptions {
        let base = self.directory.path();
        let mut options = HostOptions::new(base.join("d"), base.join("r"));
        options.publish_minutes = 0;
        options.cache_bytes = 1 << 30;
        options.memory_mib = 2048;
        options
    }

    /// Starts a daemon with ann logged in.
    pub async fn daemon(&self) -> (Host, HostClient) {
        let host = Host::start(self.options()).await.unwrap();
        host.admit(&ann(), self.secret.clone(), self.seat.clone());
        let client = HostClient::new(&host.socket()).unwrap();
        (host, client)
    }
}

impl Drop for Computer {
    fn drop(&mut self) {
        let machines = self.directory.path().join("r/m");
        for machine in fs::read_dir(machines).into_iter().flatten().flatten() {
            let recorded = fs::read(machine.path().join("pid")).ok();
            let recorded = recorded.and_then(|text| serde_json::from_slice(&text).ok());
            if let Some(process) = recorded.and_then(Process::open) {
                let _ = process.start_kill();
            }
        }
    }
}

#[tokio::test]
async fn a_machine_ends_with_the_computer_of_its_test() {
    let server = Directories::new(tempfile::tempdir().unwrap().path());
    let computer = Computer::new("attic", &server, &UserSecret::generate());
    // Unless it is killed it ends well.
    let mut machine = std::process::Command::new("sleep").arg("30").spawn().unwrap();
    let directory = computer.directory.path().join("r/m/1");
    fs::create_dir_all(&directory).unwrap();
    let identity = serde_json::to_vec(&identity_of(machine.id())).unwrap();
    fs::write(directory.join("pid"), identity).unwrap();
    drop(computer);
    assert_eq!(machine.wait().unwrap().code(), None);
}

/// What a pid file says of a process (proc(5): the start is the 22nd field, and the name before may hold anything).
fn identity_of(pid: u32) -> Identity {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    let start_ticks = fields.split_whitespace().nth(19).unwrap().parse().unwrap();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    Identity { pid: pid.try_into().unwrap(), start_ticks, boot_id: boot_id.trim().to_owned() }
}

#[tokio::test]
async fn a_second_daemon_on_one_directory_is_refused() {
    let server = Directories::new(tempfile::tempdir().unwrap().path());
    let computer = Computer::new("attic", &server, &UserSecret::generate());
    let (host, client) = computer.daemon().await;
    let error = Host::start(computer.options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("another host daemon"), "{error}");
    assert_eq!(client.host().await.unwrap().sessions[0].user, ann());
    host.shutdown().await.unwrap();
    assert_eq!(client.host().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_second_daemon_on_one_runtime_directory_touches_nothing_of_the_first() {
    let server = Directories::new(tempfile::tempdir().unwrap().path());
    let computer = Computer::new("attic", &server, &UserSecret::generate());
    let (host, client) = computer.daemon().await;
    let other = computer.directory.path().join("other");
    let error = Host::start(HostOptions { dir: other.clone(), ..computer.options() }).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.hint().unwrap().contains("--runtime-dir"), "{error}");
    // Sessions are looked at by a daemon that has opened its cache.
    assert!(!other.join("cache").exists());
    assert_eq!(client.host().await.unwrap().sessions[0].user, ann());
    host.shutdown().await.unwrap();
}

/// A server where everybody may start one appliance.
fn server_with(appliance: &str) -> Arc<Directories> {
    let server = Directories::new(tempfile::tempdir().unwrap().path());
    let publisher = SigningKey::generate().publisher();
    let descriptor = Descriptor::public(RepositoryId([7; 16]), Kind::Appliance, publisher);
    server.entitle(&name(appliance), descriptor);
    server
}

#[tokio::test]
async fn a_log_in_that_the_server_ended_hides_nothing_and_can_be_left() {
    let (ended, well) = (server_with("tiny"), server_with("debian"));
    let computer = Computer::new("attic", &ended, &UserSecret::generate());
    let (host, client) = computer.daemon().await;
    let bob: UserName = "bob".parse().unwrap();
    let seat = Seat { host: "attic".to_owned(), server: well };
    host.admit(&bob, UserSecret::generate(), Arc::new(seat));
    let listed = async || -> Vec<String> {
        let list = client.appliances().await.unwrap();
        list.into_iter().map(|status| format!("{} {}", status.user, status.name)).collect()
    };
    let both = ["ann tiny", "bob debian"];
    assert_eq!(listed().await, both);
    assert!(client.host().await.unwrap().sessions[0].problem.is_none());
    ended.refuse();
    assert_eq!(listed().await, both);
    let problem = client.host().await.unwrap().sessions[0].problem.clone().unwrap();
    assert_eq!((problem.kind, problem.hint.as_deref()), (ErrorKind::Denied, Some("log in")));
    client.logout(&LogoutRequest { user: ann(), force: false }).await.unwrap();
    assert_eq!(listed().await, both[1..]);
    host.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_is_unknown_or_does_not_run_is_named() {
    let server = Directories::new(tempfile::tempdir().unwrap().path());
    let computer = Computer::new("attic", &server, &UserSecret::generate());
    let (host, client) = computer.daemon().await;
    let error = client.start(&name("nothing"), &StartRequest::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("nothing"), "{error}");
    let exec = ExecRequest { command: vec!["true".to_owned()], input: None, limit_s: None };
    let error = client.exec(&name("nothing"), &exec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let stranger = client.clone().for_user("bob".parse().unwrap());
    assert_eq!(stranger.appliances().await.unwrap_err().kind(), ErrorKind::Denied);
    host.shutdown().await.unwrap();
}
