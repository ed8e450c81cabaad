//! What a verb is given beside its arguments: the way out, the prompt, the places, and the daemons it may talk to.

use std::path::{Path, PathBuf};
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

impl ServerArguments {
    /// Tells whether a socket was named.
    pub fn is_named(&self) -> bool {
        self.server.is_some()
    }
}

/// The path of a server's socket for administrators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSocket(PathBuf);

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
                open(socket, "server", "start one with `collective serve`")?;
                ServerClient::unix(socket)
            }
            None => {
                let host = self.host().map_err(|error| match error.kind() {
                    ErrorKind::Denied => error,
                    _ => error.with_hint(
                        "start one with `collective host` and log in, or, on the server's own computer, \
                         use --server unix:/var/lib/collective-server/admin.sock",
                    ),
                })?;
                ServerClient::through(&host)
            }
        }
    }

    /// Connects to the host daemon, speaking for the user that was asked for.
    ///
    /// # Errors
    /// `Unavailable` if there is no socket: most often the daemon is not running; `Denied` if it is somebody else's.
    pub fn host(&self) -> Result<HostClient> {
        let hint = "start one with `collective host`, or say with --host where it listens";
        open(&self.host_socket, "host daemon", hint)?;
        let client = HostClient::new(&self.host_socket)?;
        Ok(match &self.user {
            Some(user) => client.for_user(user.clone()),
            None => client,
        })
    }
}

/// Looks whether we may talk on a socket, before anybody tries to: whoever cannot is told whose it is, or how to start
/// what should listen there.
fn open(socket: &Path, what: &str, hint: &str) -> Result<()> {
    use rustix::io::Errno;
    let Err(errno) = rustix::fs::access(socket, rustix::fs::Access::WRITE_OK) else {
        return Ok(());
    };
    let shown = socket.display();
    let error = match errno {
        Errno::ACCESS | Errno::PERM => {
            let message = format!("the {what} at `{shown}` is not yours");
            Error::new(ErrorKind::Denied, message).with_hint(whose(owner(socket).as_deref()))
        }
        _ => Error::new(ErrorKind::Unavailable, format!("no {what} at `{shown}`")).with_hint(hint),
    };
    Err(error.with_source(std::io::Error::from(errno)))
}

/// Says who can talk to a daemon: only who runs it.
fn whose(owner: Option<&str>) -> String {
    match owner {
        Some(owner) => format!("it belongs to {owner}: run the command as {owner}"),
        None => "run the command as the user who runs the daemon".to_owned(),
    }
}

/// Names who a socket belongs to: itself, or the directory in which it cannot be seen.
fn owner(socket: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let number = socket.ancestors().find_map(|path| std::fs::metadata(path).ok())?.uid();
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    Some(account(&accounts, number).map_or_else(|| format!("user {number}"), str::to_owned))
}

/// Finds the name of a user number among the accounts of a computer.
fn account(accounts: &str, number: u32) -> Option<&str> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(number)).then_some(name)
    })
}

/// Reads the clock.
pub fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::{account, owner, whose};

    #[test]
    fn whoever_is_refused_is_told_whose_daemon_it_is() {
        let accounts = "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(account(accounts, 1000), Some("ann"));
        assert_eq!(account(accounts, 1001), None);
        assert_eq!(whose(Some("ann")), "it belongs to ann: run the command as ann");
        assert_eq!(owner(std::path::Path::new("/proc/1/no/such.sock")).as_deref(), Some("root"));
    }
}
