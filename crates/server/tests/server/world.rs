//! A server in a directory of its own, on either database, and the people and computers around it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use collective_api::identity::{DeviceKey, Identity};
use collective_api::keybag::{Keybag, PasswordKeys, PasswordParameters, UserSecret};
use collective_api::server::{
    CreateAppliance, CreateToken, CreateUser, JoinRequest, LoginRequest, PasswordChange,
    ServerClient, SubscribeRequest, Subscription,
};
use collective_api::trust::{Anchor, ServerAddress, contact};
use collective_model::{ApplianceName, HostId, RepositoryId, Result};
use collective_repository::backend::{Bucket, Http};
use collective_repository::{Descriptor, Kind, Repository, SigningKey, Trust};
use collective_server::{Server, ServerOptions, UpkeepSettings};
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::s3_server::S3Server;

/// The password of everybody.
pub const PASSWORD: &str = "correct horse";

/// Makes one test per database of an async function that takes a [`World`].
macro_rules! on_both_databases {
    ($($name:ident)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::world::World::sqlite().await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::world::World::postgres().await).await;
            })*
        }
    };
}
pub(crate) use on_both_databases;

/// Makes one test of an async function that takes a [`World`] whose objects are in S3.
macro_rules! on_s3 {
    ($($name:ident)*) => {
        mod s3 {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::world::World::s3().await).await;
            })*
        }
    };
}
pub(crate) use on_s3;

/// A server and its administrator.
pub struct World {
    pub server: Option<Server>,
    pub dir: TempDir,
    pub admin: ServerClient,
    pub address: ServerAddress,
    pub anchor: Anchor,
    /// What the next start is given.
    pub upkeep: UpkeepSettings,
    database: Option<String>,
    pub s3: Option<S3Server>,
    /// Held for its end: the last world stops the cluster.
    _cluster: Option<Arc<Cluster>>,
}

/// A computer that joined.
pub struct Computer {
    pub id: HostId,
    pub client: ServerClient,
}

/// A person at a computer.
pub struct Person {
    pub client: ServerClient,
    pub secret: UserSecret,
}

impl World {
    pub async fn sqlite() -> Self {
        Self::new(None, None, None).await
    }

    pub async fn postgres() -> Self {
        let cluster = Cluster::shared();
        let url = cluster.new_database();
        Self::new(Some(url), Some(cluster), None).await
    }

    pub async fn s3() -> Self {
        Self::new(None, None, Some(S3Server::start().await)).await
    }

    async fn new(
        database: Option<String>,
        cluster: Option<Arc<Cluster>>,
        s3: Option<S3Server>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (bucket, upkeep) = (s3.as_ref().map(S3Server::bucket), UpkeepSettings::default());
        let server = start(dir.path(), database.clone(), bucket, upkeep).await.unwrap();
        let (address, anchor) = reach(&server).await;
        let admin = ServerClient::unix(&server.socket).unwrap();
        let server = Some(server);
        Self { server, dir, admin, address, anchor, upkeep, database, s3, _cluster: cluster }
    }

    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
    }

    /// Starts the server again, on another port.
    pub async fn start(&mut self) -> Result<()> {
        let bucket = self.s3.as_ref().map(S3Server::bucket);
        let server = start(self.dir.path(), self.database.clone(), bucket, self.upkeep).await?;
        self.address = server.address.to_string().parse().unwrap();
        self.admin = ServerClient::unix(&server.socket).unwrap();
        self.server = Some(server);
        Ok(())
    }

    /// Returns where the objects of repositories are files.
    pub fn repositories(&self) -> PathBuf {
        let dir = self.s3.as_ref().map_or(self.dir.path().to_owned(), S3Server::files);
        dir.join("repositories")
    }

    pub fn client(&self, identity: Option<&Identity>) -> ServerClient {
        ServerClient::https(&self.address, &self.anchor, identity).unwrap()
    }

    /// Changes the database behind the server's back, as time does.
    pub async fn sql(&self, statement: &'static str) {
        match &self.database {
            Some(url) => {
                let pool = sqlx::PgPool::connect(url).await.unwrap();
                sqlx::raw_sql(statement).execute(&pool).await.unwrap();
                pool.close().await;
            }
            None => {
                let path = self.dir.path().join("server.sqlite");
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
                let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
                sqlx::raw_sql(statement).execute(&pool).await.unwrap();
                pool.close().await;
            }
        }
    }

    /// Makes a user in a group of the same name.
    pub async fn user(&self, name: &str) {
        self.admin.create_group(&name.parse().unwrap()).await.unwrap();
        self.admin.create_user(&new_user(name)).await.unwrap();
    }

    /// Makes an appliance with an empty repository.
    pub async fn appliance(&self, name: &str) -> SigningKey {
        let key = SigningKey::generate();
        let repository = Descriptor::public(new_id(), Kind::Appliance, key.publisher());
        let request = CreateAppliance { name: name.parse().unwrap(), repository };
        self.admin.create_appliance(&request).await.unwrap();
        key
    }

    /// Makes `ann`, who may start `debian`, and `bob`, who may start nothing.
    pub async fn peopled(&self) -> SigningKey {
        let key = self.appliance("debian").await;
        self.user("ann").await;
        self.user("bob").await;
        self.admin.grant(&debian(), &"ann".parse().unwrap()).await.unwrap();
        key
    }

    pub async fn join(&self, name: &str) -> Computer {
        let request = CreateToken { note: "test".to_owned(), life_s: 60 };
        let token = self.admin.create_token(&request).await.unwrap().secret;
        let key = DeviceKey::generate().unwrap();
        let request =
            JoinRequest { token, name: name.parse().unwrap(), request: key.request().unwrap() };
        let reply = self.client(None).join(&request).await.unwrap();
        let identity = Identity { certificate: reply.issued.certificate, key };
        Computer { id: reply.host, client: self.client(Some(&identity)) }
    }

    pub async fn login(&self, computer: &Computer, user: &str) -> Person {
        self.try_login(computer, user, PASSWORD).await.unwrap()
    }

    pub async fn try_login(
        &self,
        computer: &Computer,
        user: &str,
        password: &str,
    ) -> Result<Person> {
        let user = user.parse().unwrap();
        let parameters = computer.client.login_parameters(&user).await?;
        let keys = PasswordKeys::derive(password, &parameters)?;
        let key = DeviceKey::generate()?;
        let request =
            LoginRequest { user, proof: keys.proof.clone(), request: key.request()?, guest: None };
        let reply = computer.client.login(&request).await?;
        let secret = reply.keybag.open(&keys)?;
        let identity = Identity { certificate: reply.issued.certificate, key };
        Ok(Person { client: self.client(Some(&identity)), secret })
    }

    /// Opens an appliance's repository as the administrator.
    pub async fn open(&self, name: &str) -> Repository {
        let descriptor = self.admin.appliance(&name.parse().unwrap()).await.unwrap().repository;
        open(&self.admin, &descriptor, collective_model::Epoch(0), None).await.unwrap()
    }
}

impl Person {
    /// Subscribes to `debian`.
    pub async fn subscribe(&self) -> Result<Subscription> {
        let id = new_id();
        let secret = self.secret.repository_secret(id);
        let repository = Descriptor::private(id, Kind::UserDisk, &secret);
        self.client.subscribe(&SubscribeRequest { appliance: debian(), repository }).await
    }

    /// Opens a subscription's repository to write it under a lock.
    pub async fn open(
        &self,
        subscription: &Subscription,
        epoch: collective_model::Epoch,
    ) -> Repository {
        let descriptor = &subscription.repository;
        let secret = self.secret.repository_secret(descriptor.id);
        open(&self.client, descriptor, epoch, Some(secret)).await.unwrap()
    }
}

/// Opens a repository over HTTP.
pub async fn open(
    client: &ServerClient,
    descriptor: &Descriptor,
    epoch: collective_model::Epoch,
    secret: Option<collective_repository::RepositorySecret>,
) -> Result<Repository> {
    let url = client.repository_url(descriptor.id);
    let backend = Http::new(client.http().clone(), &url, epoch);
    let trust = Trust { id: descriptor.id, publisher: descriptor.publisher, secret };
    Repository::open(Arc::new(backend), trust).await
}

pub fn new_user(name: &str) -> CreateUser {
    let parameters = PasswordParameters::generate();
    let keys = PasswordKeys::derive(PASSWORD, &parameters).unwrap();
    let (keybag, _) = Keybag::create(&UserSecret::generate(), &keys);
    let password = PasswordChange { parameters, proof: keys.proof, keybag, current: None };
    let groups = vec![name.parse().unwrap()];
    CreateUser { name: name.parse().unwrap(), administrator: false, groups, password }
}

pub fn debian() -> ApplianceName {
    "debian".parse().unwrap()
}

pub fn new_id() -> RepositoryId {
    let mut id = [0; 16];
    getrandom::fill(&mut id).unwrap();
    RepositoryId(id)
}

pub async fn start(
    dir: &Path,
    database: Option<String>,
    objects: Option<Bucket>,
    upkeep: UpkeepSettings,
) -> Result<Server> {
    let (dir, listen) = (dir.to_owned(), "127.0.0.1:0".parse().unwrap());
    let options = ServerOptions { dir, listen, database, objects, certificate_life: None, upkeep };
    Server::start(options).await
}

async fn reach(server: &Server) -> (ServerAddress, Anchor) {
    let address: ServerAddress = server.address.to_string().parse().unwrap();
    let anchor = contact(&address).await.unwrap();
    assert_eq!(anchor.fingerprint().unwrap(), server.fingerprint);
    (address, anchor)
}
