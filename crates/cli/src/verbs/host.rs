//! `collective host`: the daemon of this computer, in the foreground.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use collective_api::HostClient;
use collective_host::{Host, HostOptions, MAX_MIRRORS, Metered, MirrorUrl};
use collective_model::{Error, ErrorKind, Result};
use serde::Serialize;

use crate::context::Context;
use crate::daemon::{self, DaemonArguments};
use crate::text::{self, Size};
use crate::verbs::join::{self, Trust};

/// Run the host daemon: it caches and runs appliances on this computer
///
/// It runs in the foreground, logs to stderr, and prints one line when it is ready. SIGTERM or Ctrl-C stops it cleanly;
/// appliances that run go on running, and the next daemon finds them again. Everything but `serve` and the
/// administrator's verbs needs it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  collective host\n  \
    collective host --join https://server:7443 --token-file token.txt --fingerprint 1A:2B:…\n  \
    collective host --mirror http://mirror.school.example/appliances")]
pub struct Arguments {
    /// Directory for the cache, for layers that are not backed up, and for keys
    #[arg(long, value_name = "DIR", env = "COLLECTIVE_HOST_DIR", hide_env_values = true)]
    dir: Option<PathBuf>,
    /// Directory for sockets and sessions, best emptied at a restart of the computer
    #[arg(long, value_name = "DIR", env = "COLLECTIVE_RUNTIME_DIR", hide_env_values = true)]
    runtime_dir: Option<PathBuf>,
    /// What the cache may hold [default: 20GiB]
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<Size>,
    /// What running appliances may have together [default: three quarters of the computer's memory]
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Minutes between backups of a running appliance's user disk; 0: only when it stops [default: 10]
    #[arg(
        long,
        value_name = "MINUTES",
        value_parser = text::number::<u32>,
        allow_negative_numbers = true
    )]
    publish_minutes: Option<u32>,
    /// Fetch nothing before it is asked for
    #[arg(long)]
    no_prefetch: bool,
    /// Whether the connection is paid for by what it carries: then nothing is fetched before it is asked for, and what is
    /// held stays as it is; `auto` does as NetworkManager says
    #[arg(long, value_name = "WHETHER", value_enum, default_value_t = Whether::Auto)]
    metered: Whether,
    /// Do not tell the server which parts of appliances' system disks are read here
    #[arg(long)]
    no_report: bool,
    /// Also fetch appliances from this web place, which `collective appliance mirror` fills; may be given up to 8 times
    #[arg(long = "mirror", value_name = "URL")]
    mirrors: Vec<MirrorUrl>,
    /// Tie this computer to a server at start, if it is tied to none (as `collective join`)
    #[arg(long, value_name = "URL")]
    join: Option<String>,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    daemon: DaemonArguments,
}

/// What `--metered` may say.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Whether {
    Auto,
    Yes,
    No,
}

/// What a program reads when the daemon is ready.
#[derive(Serialize)]
struct Facts {
    socket: PathBuf,
    dir: PathBuf,
    pid: u32,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<()> {
    arguments.daemon.start_log()?;
    let options = options(&arguments, context)?;
    let dir = options.dir.clone();
    let host = Host::start(options).await?;
    let socket = host.socket();
    let joined = tie(&arguments, context, &socket).await;
    let waited = match joined {
        Ok(()) => {
            let facts = Facts { socket, dir, pid: std::process::id() };
            let line = format!("collective host is ready at {}", facts.socket.display());
            wait(&arguments.daemon, context, &facts, line).await
        }
        Err(error) => Err(error),
    };
    host.shutdown().await?;
    waited?;
    context.output.note("The host daemon has stopped; appliances that run go on running.");
    Ok(())
}

/// Says that the daemon is ready, and waits until it is told to stop.
async fn wait(
    arguments: &DaemonArguments,
    context: &Context,
    facts: &Facts,
    line: String,
) -> Result<()> {
    let _ready = arguments.ready(&context.output, facts, line)?;
    daemon::told_to_stop().await
}

fn options(arguments: &Arguments, context: &Context) -> Result<HostOptions> {
    let defaults = &context.directories;
    let dir = arguments.dir.clone().unwrap_or_else(|| defaults.host.clone());
    let runtime_dir = arguments.runtime_dir.clone().unwrap_or_else(|| defaults.runtime.clone());
    let mut options = HostOptions::new(dir, runtime_dir);
    if let Some(Size(bytes)) = arguments.cache_size {
        options.cache_bytes = bytes;
    }
    if let Some(Size(bytes)) = arguments.memory {
        options.memory_mib = bytes >> 20;
    }
    options.prefetch = !arguments.no_prefetch;
    options.metered = match arguments.metered {
        Whether::Auto => Metered::Ask,
        Whether::Yes => Metered::Yes,
        Whether::No => Metered::No,
    };
    options.reports = !arguments.no_report;
    if let Some(minutes) = arguments.publish_minutes {
        options.publish_minutes = minutes;
    }
    if arguments.mirrors.len() > MAX_MIRRORS {
        let message = format!("a computer may have {MAX_MIRRORS} mirrors at most");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    options.mirrors.clone_from(&arguments.mirrors);
    Ok(options)
}

/// Ties the host to the server of `--join`, unless it is tied to it already.
async fn tie(arguments: &Arguments, context: &Context, socket: &std::path::Path) -> Result<()> {
    let Some(url) = &arguments.join else { return Ok(()) };
    let client = HostClient::new(socket)?;
    if client.host().await?.server.is_none() {
        join::join(context, &client, url, &arguments.trust).await?;
    }
    Ok(())
}
