//! What a verb is given beside its arguments: the way out, the prompt, the places, and the daemons it may talk to.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use collective_api::{HostClient, ServerClient};
use collective_model::{Error, ErrorKind, Result, Timestamp, UserName};

use crate::arguments::{Command, Everywhere};
use crate::directories::Directories;
use crate::output::Output;
use crate::prompt::Prompt;

/// How an administrator reaches the server.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Everywhere")]
pub struct ServerArguments {
    /// The server's own socket, instead of the host daemon and who is logged in there
    #[arg(
        long,
        global = true,
        value_name = "unix:DIR/admin.sock",
        env = "COLLECTIVE_SERVER",
        hide_env_values = true
    )]
    server: Option<ServerSocket>,
}

/// The path of a server's socket for administrators.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ServerSocket(PathBuf);

impl FromStr for ServerSocket {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self(path.into())),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!("`{text}` is not the socket of a server"),
            )
            .with_hint("write it as unix:/var/lib/collective-server/admin.sock")),
        }
    }
}

/// The surroundings of one command.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where its answers go.
    pub output: Output,
    /// How it asks.
    pub prompt: Prompt,
    /// Where things are unless it was told otherwise.
    pub directories: Directories,
    host_socket: PathBuf,
    user: Option<UserName>,
}

impl Context {
    /// Makes the surroundings of `command`.
    pub fn new(command: &Command, output: Output) -> Self {
        let directories = Directories::of_process();
        let Everywhere { host_socket, as_user, .. } = command.everywhere.clone();
        let host_socket = host_socket.unwrap_or_else(|| directories.host_socket());
        Self { output, prompt: Prompt::new(), directories, host_socket, user: as_user }
    }

    /// Whose session was asked for.
    pub fn user(&self) -> Option<&UserName> {
        self.user.as_ref()
    }

    /// Connects to the server: on its administrators' socket if one was named, else through the host daemon, as the
    /// user who is logged in.
    ///
    /// # Errors
    /// `Unavailable` if there is no such socket.
    pub fn server(&self, arguments: &ServerArguments) -> Result<ServerClient> {
        match &arguments.server {
            Some(ServerSocket(socket)) => {
                std::fs::metadata(socket).map_err(|cause| {
                    let message = format!("no server at `{}`", socket.display());
                    Error::new(ErrorKind::Unavailable, message)
                        .with_source(cause)
                        .with_hint("start one with `collective serve`")
                })?;
                ServerClient::unix(socket)
            }
            None => {
                let host = self.host().map_err(|error| {
                    error.with_hint(
                        "start one with `collective host` and log in, or, on the server's own computer, \
                         use --server unix:/var/lib/collective-server/admin.sock",
                    )
                })?;
                ServerClient::through(&host)
            }
        }
    }

    /// Connects to the host daemon, speaking for the user that was asked for.
    ///
    /// # Errors
    /// `Unavailable` if there is no socket: most often the daemon is not running.
    pub fn host(&self) -> Result<HostClient> {
        if let Err(cause) = std::fs::metadata(&self.host_socket) {
            let message = format!("no host daemon at `{}`", self.host_socket.display());
            return Err(Error::new(ErrorKind::Unavailable, message).with_source(cause).with_hint(
                "start one with `collective host`, or say with --host where it listens",
            ));
        }
        let client = HostClient::new(&self.host_socket)?;
        Ok(match &self.user {
            Some(user) => client.for_user(user.clone()),
            None => client,
        })
    }
}

/// Reads the clock.
pub fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}
