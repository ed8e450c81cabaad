//! A daemon in a directory of its own, and what it says to those who ask wrongly.

use std::sync::Arc;

use collective_api::HostClient;
use collective_api::host::{ExecRequest, StartRequest};
use collective_api::keybag::UserSecret;
use collective_host::{Host, HostOptions};
use collective_model::{ApplianceName, ErrorKind, UserName};

use crate::directories::{Directories, Seat};

/// The one user of all tests.
pub fn ann() -> UserName {
    "ann".parse().unwrap()
}

pub fn name(text: &str) -> ApplianceName {
    text.parse().unwrap()
}

/// A computer: its directories outlive its daemons.
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
async fn what_is_unknown_or_does_not_run_is_named() {
    let server = Directories::new(tempfile::tempdir().unwrap().path());
    let computer = Computer::new("attic", &server, &UserSecret::generate());
    let (host, client) = computer.daemon().await;
    let error = client.start(&name("nothing"), &StartRequest::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("nothing"), "{error}");
    let exec = ExecRequest { command: vec!["true".to_owned()], input: None, limit_s: None };
    let error = client.exec(&name("nothing"), &exec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let stranger = client.clone().for_user("bob".parse().unwrap());
    assert_eq!(stranger.appliances().await.unwrap_err().kind(), ErrorKind::Denied);
    host.shutdown().await.unwrap();
}
