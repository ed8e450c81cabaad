//! `collective serve`: the provider's side, in the foreground.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use collective_model::Result;
use collective_repository::backend::Bucket;
use collective_server::{Server, ServerOptions, UpkeepSettings};
use serde::Serialize;

use crate::context::Context;
use crate::daemon::{self, DaemonArguments};
use crate::text::{Size, Span};

/// Run a server: accounts, rights, locks, and repositories
///
/// It runs in the foreground, logs to stderr, and prints one line with its address and fingerprint when it is ready. The first
/// start makes its certificate authority. SIGTERM or Ctrl-C stops it cleanly. Whoever can open DIR/admin.sock is an
/// administrator: that is how the first account is made.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective serve\n  \
    collective user add ann --administrator --server unix:/var/lib/collective-server/admin.sock")]
pub struct Arguments {
    /// Directory for everything that the server keeps
    #[arg(long, value_name = "DIR", env = "COLLECTIVE_SERVER_DIR", hide_env_values = true)]
    dir: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7443")]
    listen: SocketAddr,
    /// A PostgreSQL database instead of the built-in SQLite, as postgres://…; one with a password belongs into the
    /// environment, not here
    #[arg(long, value_name = "URL", env = "COLLECTIVE_DATABASE", hide_env_values = true)]
    database: Option<String>,
    /// Where the objects of repositories are kept, instead of in DIR: a bucket of an S3 store, and a prefix in it
    ///
    /// Credentials, region and endpoint are taken from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
    /// AWS_ENDPOINT_URL and the like.
    #[arg(
        long,
        value_name = "s3://BUCKET/PREFIX",
        env = "COLLECTIVE_OBJECTS",
        hide_env_values = true
    )]
    objects: Option<String>,
    /// How long certificates of computers and log-ins are good; they renew them in time [default: 90d and 30d]
    ///
    /// A computer that cannot reach the server for longer has to be logged in at again.
    #[arg(long, value_name = "TIME")]
    certificate_life: Option<Span>,
    /// How many bytes a second it reads to check its repositories, each once a month; 0: it does not [default: 8MiB]
    #[arg(long, value_name = "SIZE")]
    verify_rate: Option<Size>,
    #[command(flatten)]
    daemon: DaemonArguments,
}

/// What a program reads when the server is ready.
#[derive(Serialize)]
struct Facts {
    url: String,
    fingerprint: String,
    admin_socket: PathBuf,
    dir: PathBuf,
    pid: u32,
}

/// Where others find a server that listens on `address`: where it listens on all of them, by the computer's name.
fn url(address: SocketAddr, name: &str) -> String {
    match address.ip().is_unspecified() && !name.is_empty() {
        true => format!("https://{name}:{}", address.port()),
        false => format!("https://{address}"),
    }
}

/// Opens a bucket as the environment says.
fn bucket(place: &str) -> Result<Bucket> {
    let variables = std::env::vars_os();
    let readable = variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Bucket::open(place, readable)
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<()> {
    arguments.daemon.start_log()?;
    let dir = arguments.dir.unwrap_or_else(|| context.directories.server.clone());
    let (listen, database) = (arguments.listen, arguments.database);
    let certificate_life = arguments.certificate_life.map(|Span(life)| life);
    let objects = arguments.objects.as_deref().map(bucket).transpose()?;
    let mut upkeep = UpkeepSettings::default();
    if let Some(Size(bytes)) = arguments.verify_rate {
        upkeep.verify_bytes_s = bytes;
    }
    let options =
        ServerOptions { dir: dir.clone(), listen, database, objects, certificate_life, upkeep };
    let server = Server::start(options).await?;
    let facts = Facts {
        url: url(server.address, &rustix::system::uname().nodename().to_string_lossy()),
        fingerprint: server.fingerprint.to_string(),
        admin_socket: server.socket.clone(),
        dir,
        pid: std::process::id(),
    };
    let line =
        format!("collective server is ready at {}, fingerprint {}", facts.url, facts.fingerprint);
    let waited = match arguments.daemon.ready(&context.output, &facts, line) {
        Ok(_ready) => daemon::told_to_stop().await,
        Err(error) => Err(error),
    };
    server.shutdown().await;
    waited
}

#[cfg(test)]
mod tests {
    use super::url;

    #[test]
    fn a_server_on_all_addresses_is_named_by_its_computer() {
        let shown = ["0.0.0.0:7443", "[::]:7443", "127.0.0.1:80", "[::1]:80"]
            .map(|address| url(address.parse().unwrap(), "attic"));
        let expected = [
            "https://attic:7443",
            "https://attic:7443",
            "https://127.0.0.1:80",
            "https://[::1]:80",
        ];
        assert_eq!(shown, expected);
    }
}
