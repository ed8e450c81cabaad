//! kill -9 of the server alone, at random moments, while people and an administrator work against it.
//!
//! No guests: the clients are those that hosts and commands use. Beside each client stands a ledger of what the server acknowledged;
//! after every kill all of it must still be so, and what was under way is either done or was never begun. The seed is printed;
//! `COLLECTIVE_SEED` takes one.

#[path = "../../../server/tests/server/cluster.rs"]
mod cluster;
mod ledger;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use collective_api::ServerClient;
use collective_api::identity::{DeviceKey, Identity};
use collective_api::keybag::{Keybag, PasswordKeys, PasswordParameters, UserSecret};
use collective_api::server::{
    CreateAppliance, CreateToken, CreateUser, JoinRequest, LoginRequest, PasswordChange,
    SubscribeRequest, Subscription, TakeLock,
};
use collective_api::trust::{Anchor, ServerAddress, contact};
use collective_model::{DiskRole, Epoch, ErrorKind, HostId, RepositoryId, Result, Silent};
use collective_repository::backend::{Directory, Http};
use collective_repository::{Descriptor, Kind, Repository, RepositorySecret, SigningKey, Trust};
use tempfile::TempDir;
use xtask::stage::Stage;

use self::cluster::Cluster;
use self::ledger::{Locks, Versions};
use collective_testing::Random;

use super::kills::seed;

/// Kills in one run.
const KILLS: u32 = 32;
/// The same with PostgreSQL, which is not killed: what differs is who keeps the transactions.
const KILLS_BESIDE_POSTGRES: u32 = 12;
/// How long the clients work before a kill, at most.
const WORK_MS: u64 = 800;
/// Every so often all objects of all repositories are verified.
const VERIFY_EVERY: u32 = 8;
const APPLIANCE: &str = "tiny";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_acknowledged_is_still_so_after_every_kill() {
    Run::new(seed(), None).await.all(KILLS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_acknowledged_with_postgres_is_still_so_too() {
    let cluster = Cluster::shared();
    Run::new(seed(), Some(cluster.new_database())).await.all(KILLS_BESIDE_POSTGRES).await;
}

struct Run {
    stage: Stage,
    random: Random,
    clients: Vec<Client>,
    directory: TempDir,
}

impl Run {
    async fn new(seed: u64, database: Option<String>) -> Self {
        let directory = tempfile::Builder::new().prefix("ckill").tempdir().unwrap();
        let command = PathBuf::from(env!("CARGO_BIN_EXE_collective"));
        let path = directory.path();
        let mut stage = Stage::set(command, path.to_owned(), path.join("r")).unwrap();
        let url = start(&mut stage, "127.0.0.1:0", database.as_deref());
        let listen = url.strip_prefix("https://").unwrap();
        // It must come back where the clients look for it.
        stage.stop_daemon("server").unwrap();
        start(&mut stage, listen, database.as_deref());
        let mut random = Random::new(seed);
        let people = People::new(&stage, listen).await;
        let mut clients = vec![Client::Provider(people.provider().await)];
        for (name, hosts) in [("ann", 1), ("bob", 1), ("eve", 2)] {
            clients.push(Client::Person(people.person(name, hosts, random.number()).await));
        }
        clients.push(Client::Visitor(people.visitor("joe").await));
        Self { stage, random, clients, directory }
    }

    async fn all(mut self, kills: u32) {
        for round in 1..=kills {
            self.round().await;
            self.check().await;
            if round % VERIFY_EVERY == 0 || round == kills {
                self.verify().await;
            }
        }
        let mut versions = 0;
        for client in &self.clients {
            versions += client.check_all_versions().await;
        }
        println!("{kills} kills, {versions} versions");
        assert!(versions > u64::from(kills), "the clients did next to nothing: {versions}");
    }

    /// Lets everybody work, kills the server in the middle of it, and starts it again.
    async fn round(&mut self) {
        let working = self.clients.drain(..).map(|client| tokio::spawn(client.until_refused()));
        let working: Vec<_> = working.collect();
        tokio::time::sleep(Duration::from_millis(self.random.below_u64(WORK_MS))).await;
        self.stage.kill_daemon("server").unwrap();
        for client in working {
            self.clients.push(client.await.unwrap());
        }
        self.stage.start_again("server").unwrap();
    }

    async fn check(&mut self) {
        for client in &mut self.clients {
            client.check().await;
        }
        let half: Vec<_> = files(self.directory.path())
            .into_iter()
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(".tmp-"))
            .collect();
        assert!(half.is_empty(), "left by uploads that were cut off: {half:?}");
    }

    /// Verifies every object of every repository where it lies.
    async fn verify(&self) {
        for descriptor in self.clients.iter().filter_map(Client::repository) {
            let path = self.directory.path().join("server/repositories");
            let objects = Directory::open(path.join(descriptor.id.to_string())).unwrap();
            let trust = Trust { id: descriptor.id, publisher: descriptor.publisher, secret: None };
            let repository = Repository::open(Arc::new(objects), trust).await.unwrap();
            let report = repository.verify(&Silent).await.unwrap();
            assert!(report.damages.is_empty(), "{report:?}");
        }
    }
}

/// Starts the server; returns its URL.
fn start(stage: &mut Stage, listen: &str, database: Option<&str>) -> String {
    let directory = stage.path("server");
    let mut words =
        ["--json", "serve", "--dir", directory.to_str().unwrap(), "--listen", listen].to_vec();
    words.extend(database.into_iter().flat_map(|url| ["--database", url]));
    let words: Vec<&OsStr> = words.into_iter().map(OsStr::new).collect();
    let ready = stage.start_daemon("server", &words).unwrap();
    ready["url"].as_str().unwrap().to_owned()
}

/// Who works against the server.
enum Client {
    Provider(Provider),
    Person(Person),
    Visitor(Visitor),
}

impl Client {
    /// Works until the server is gone. Any other answer than success is a mistake.
    async fn until_refused(mut self) -> Self {
        loop {
            let done = match &mut self {
                Self::Provider(provider) => provider.step().await,
                Self::Person(person) => person.step().await,
                Self::Visitor(visitor) => visitor.step().await,
            };
            match done {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Unavailable => return self,
                Err(error) => panic!("{:?}: {}", error.kind(), error.chain()),
            }
        }
    }

    async fn check(&mut self) {
        match self {
            Self::Provider(provider) => provider.check().await,
            Self::Person(person) => person.check().await,
            Self::Visitor(visitor) => visitor.check().await,
        }
    }

    fn repository(&self) -> Option<&Descriptor> {
        match self {
            Self::Provider(provider) => Some(provider.repository.descriptor()),
            Self::Person(person) => Some(&person.subscription.repository),
            Self::Visitor(_) => None,
        }
    }

    async fn check_all_versions(&self) -> u64 {
        match self {
            Self::Provider(provider) => provider.versions.check_all(&provider.repository).await,
            Self::Person(person) => {
                let repository = person.open(0, Epoch(0)).await.unwrap();
                person.versions.check_all(&repository).await
            }
            Self::Visitor(_) => 0,
        }
    }
}

/// Publishes one version of the appliance after another.
struct Provider {
    /// Open all the time, so it also sees that the head never goes back.
    repository: Repository,
    key: SigningKey,
    versions: Versions,
}

impl Provider {
    async fn step(&mut self) -> Result<()> {
        self.versions.publish(&self.repository, &self.key, DiskRole::System, Epoch(0)).await
    }

    async fn check(&mut self) {
        self.versions.check(&self.repository).await;
    }
}

/// Takes the lock of a user disk, publishes versions, and releases it; who has several hosts also breaks it.
struct Person {
    hosts: Vec<Host>,
    secret: RepositorySecret,
    subscription: Subscription,
    locks: Locks,
    versions: Versions,
    random: Random,
}

struct Host {
    id: HostId,
    client: ServerClient,
}

impl Person {
    async fn step(&mut self) -> Result<()> {
        let id = self.subscription.id;
        match (self.locks.held(), self.random.below_u64(4)) {
            (Some(held), 0) => {
                let client = self.client_of(held.0).clone();
                self.locks.begin();
                client.release_lock(id, held.1).await?;
                self.locks.released();
            }
            (Some((host, epoch)), 1..) => {
                let at = self.hosts.iter().position(|it| it.id == host).unwrap();
                let repository = self.open(at, epoch).await?;
                let key = self.secret.signing_key();
                self.versions.publish(&repository, &key, DiskRole::User, epoch).await?;
            }
            (None, _) => {}
        }
        if self.locks.held().is_none() || self.random.below_u64(4) == 0 {
            let host = &self.hosts[self.random.below_u64(self.hosts.len() as u64) as usize];
            let (client, host) = (host.client.clone(), host.id);
            let before = self.locks.begin();
            let lock = client.take_lock(id, &TakeLock { break_lock: true }).await?;
            self.locks.taken(before, host, &lock);
        }
        Ok(())
    }

    async fn check(&mut self) {
        // The sessions from before the kill go on.
        for host in &self.hosts {
            let (profile, _) = host.client.profile(None).await.unwrap().unwrap();
            self.locks.check(profile.subscriptions[0].lock.as_ref());
        }
        let repository = self.open(0, Epoch(0)).await.unwrap();
        self.versions.check(&repository).await;
    }

    fn client_of(&self, host: HostId) -> &ServerClient {
        &self.hosts.iter().find(|it| it.id == host).unwrap().client
    }

    async fn open(&self, host: usize, epoch: Epoch) -> Result<Repository> {
        let (client, descriptor) = (&self.hosts[host].client, &self.subscription.repository);
        open(client, descriptor, epoch, Some(self.secret.clone())).await
    }
}

/// Logs in and out.
struct Visitor {
    people: People,
    host: ServerClient,
    login: Login,
    /// A session that was acknowledged, and of which no end was asked for.
    session: Option<ServerClient>,
    /// A session whose end was acknowledged.
    ended: Option<ServerClient>,
}

impl Visitor {
    async fn step(&mut self) -> Result<()> {
        if let Some(session) = self.session.take() {
            session.logout().await?;
            self.ended = Some(session);
        }
        self.session = Some(self.people.log_in(&self.host, &self.login).await?.0);
        Ok(())
    }

    async fn check(&mut self) {
        if let Some(session) = &self.session {
            session.profile(None).await.expect("the session goes on");
        }
        if let Some(ended) = &self.ended {
            let refused = ended.profile(None).await.expect_err("the session is over");
            assert_eq!(refused.kind(), ErrorKind::Denied, "{refused:?}");
        }
        let again = self.people.log_in(&self.host, &self.login).await.expect("can log in").0;
        again.profile(None).await.expect("the new session is known");
    }
}

/// How somebody logs in.
struct Login {
    user: String,
    keys: PasswordKeys,
}

/// Makes the people and computers around a server.
#[derive(Clone)]
struct People {
    admin: ServerClient,
    address: ServerAddress,
    anchor: Anchor,
}

impl People {
    async fn new(stage: &Stage, listen: &str) -> Self {
        let admin = ServerClient::unix(&stage.path("server/admin.sock")).unwrap();
        let address: ServerAddress = listen.parse().unwrap();
        let anchor = contact(&address).await.unwrap();
        admin.create_group(&"staff".parse().unwrap()).await.unwrap();
        Self { admin, address, anchor }
    }

    async fn provider(&self) -> Provider {
        let key = SigningKey::generate();
        let descriptor = Descriptor::public(new_id(), Kind::Appliance, key.publisher());
        let name = APPLIANCE.parse().unwrap();
        let request = CreateAppliance { name, repository: descriptor.clone() };
        self.admin.create_appliance(&request).await.unwrap();
        let staff = "staff".parse().unwrap();
        self.admin.grant(&APPLIANCE.parse().unwrap(), &staff).await.unwrap();
        let repository = open(&self.admin, &descriptor, Epoch(0), None).await.unwrap();
        Provider { repository, key, versions: Versions::default() }
    }

    async fn person(&self, name: &str, hosts: usize, seed: u64) -> Person {
        let login = self.user(name).await;
        let mut sessions = Vec::new();
        for number in 0..hosts {
            let (id, host) = self.join(&format!("{name}-{number}")).await;
            let (client, secret) = self.log_in(&host, &login).await.unwrap();
            sessions.push((Host { id, client }, secret));
        }
        let (host, secret) = &sessions[0];
        let id = new_id();
        let secret = secret.repository_secret(id);
        let repository = Descriptor::private(id, Kind::UserDisk, &secret);
        let request = SubscribeRequest { appliance: APPLIANCE.parse().unwrap(), repository };
        let subscription = host.client.subscribe(&request).await.unwrap();
        Person {
            hosts: sessions.into_iter().map(|(host, _)| host).collect(),
            secret,
            subscription,
            locks: Locks::default(),
            versions: Versions::default(),
            random: Random::new(seed),
        }
    }

    async fn visitor(&self, name: &str) -> Visitor {
        let login = self.user(name).await;
        let (_, host) = self.join(&format!("{name}-0")).await;
        Visitor { people: self.clone(), host, login, session: None, ended: None }
    }

    async fn user(&self, name: &str) -> Login {
        let parameters = PasswordParameters::generate();
        let keys = PasswordKeys::derive(super::world::PASSWORD, &parameters).unwrap();
        let (keybag, _) = Keybag::create(&UserSecret::generate(), &keys);
        let proof = keys.proof.clone();
        let password = PasswordChange { parameters, proof, keybag, current: None };
        let groups = vec!["staff".parse().unwrap()];
        let name = name.to_owned();
        let user =
            CreateUser { name: name.parse().unwrap(), administrator: false, groups, password };
        self.admin.create_user(&user).await.unwrap();
        Login { user: name, keys }
    }

    async fn join(&self, name: &str) -> (HostId, ServerClient) {
        let request = CreateToken { note: "test".to_owned(), life_s: 600 };
        let token = self.admin.create_token(&request).await.unwrap().secret;
        let key = DeviceKey::generate().unwrap();
        let request = key.request().unwrap();
        let request = JoinRequest { token, name: name.parse().unwrap(), request };
        let reply = self.client(None).join(&request).await.unwrap();
        let identity = Identity { certificate: reply.issued.certificate, key };
        (reply.host, self.client(Some(&identity)))
    }

    async fn log_in(
        &self,
        host: &ServerClient,
        login: &Login,
    ) -> Result<(ServerClient, UserSecret)> {
        let key = DeviceKey::generate()?;
        let request = LoginRequest {
            user: login.user.parse()?,
            proof: login.keys.proof.clone(),
            request: key.request()?,
            guest: None,
        };
        let reply = host.login(&request).await?;
        let secret = reply.keybag.open(&login.keys)?;
        let identity = Identity { certificate: reply.issued.certificate, key };
        Ok((self.client(Some(&identity)), secret))
    }

    fn client(&self, identity: Option<&Identity>) -> ServerClient {
        ServerClient::https(&self.address, &self.anchor, identity).unwrap()
    }
}

async fn open(
    client: &ServerClient,
    descriptor: &Descriptor,
    epoch: Epoch,
    secret: Option<RepositorySecret>,
) -> Result<Repository> {
    let backend = Http::new(client.http().clone(), &client.repository_url(descriptor.id), epoch);
    let trust = Trust { id: descriptor.id, publisher: descriptor.publisher, secret };
    Repository::open(Arc::new(backend), trust).await
}

fn new_id() -> RepositoryId {
    let mut id = [0; 16];
    getrandom::fill(&mut id).unwrap();
    RepositoryId(id)
}

fn files(directory: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}
