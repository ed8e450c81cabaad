//! No secret in any log, at the most talkative level, and none in `Debug`.

use std::io::Write;
use std::sync::{Arc, Mutex};

use collective_api::keybag::{PasswordKeys, PasswordParameters};
use collective_api::server::CreateToken;
use collective_server::{ServerOptions, UpkeepSettings};
use tracing_subscriber::fmt::MakeWriter;

use crate::world::{PASSWORD, World};

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

// One thread runs all tasks of this test, so that what each of them says is caught, and nothing of other tests is.
#[tokio::test(flavor = "current_thread")]
async fn no_secret_is_ever_logged() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    let caught = tracing::subscriber::set_default(subscriber);
    let world = World::sqlite().await;
    world.peopled().await;
    let request = CreateToken { note: "attic".to_owned(), life_s: 60 };
    let token = world.admin.create_token(&request).await.unwrap().secret;
    let attic = world.join("cellar").await;
    let ann = world.login(&attic, "ann").await;
    assert!(world.try_login(&attic, "ann", "guessed wrong").await.is_err());
    ann.subscribe().await.unwrap();
    let parameters: PasswordParameters =
        attic.client.login_parameters(&"ann".parse().unwrap()).await.unwrap();
    let keys = PasswordKeys::derive(PASSWORD, &parameters).unwrap();
    drop(caught);

    let said = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(said.contains("a wrong password") && said.contains("the server is up"), "{said}");
    let [token, proof, wrap] = [token, keys.proof, keys.wrap].map(String::from);
    for secret in [PASSWORD, "guessed wrong", &token, &proof, &wrap, "PRIVATE KEY"] {
        assert!(!said.contains(secret), "`{secret}` was logged");
    }
}

#[test]
fn the_password_of_a_database_is_not_shown() {
    let options = ServerOptions {
        dir: "/tmp/x".into(),
        listen: "127.0.0.1:1".parse().unwrap(),
        database: Some("postgres://me:hunter2@db/collective".to_owned()),
        objects: None,
        certificate_life: None,
        upkeep: UpkeepSettings::default(),
    };
    assert!(!format!("{options:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_database_that_is_away_is_named_without_its_password() {
    let dir = tempfile::tempdir().unwrap();
    let url = "postgres://me:hunter2@127.0.0.1:1/collective".to_owned();
    let upkeep = UpkeepSettings::default();
    let error = crate::world::start(dir.path(), Some(url), None, upkeep).await.unwrap_err();
    assert_eq!(error.kind(), collective_model::ErrorKind::Unavailable);
    assert!(error.to_string().contains("database"), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}
