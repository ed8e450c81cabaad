//! What a verb is given beside its arguments: the way out, the prompt, the places, and the daemons it may talk to.

use std::path::PathBuf;

use collective_api::HostClient;
use collective_model::{Error, ErrorKind, Result, Timestamp, UserName};

use crate::arguments::{Command, Everywhere};
use crate::directories::Directories;
use crate::output::Output;
use crate::prompt::Prompt;

/// The surroundings of one command.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where its answers go.
    pub output: Output,
    /// How it asks.
    pub prompt: Prompt,
    host_socket: PathBuf,
    user: Option<UserName>,
}

impl Context {
    /// Makes the surroundings of `command`.
    pub fn new(command: &Command, output: Output) -> Self {
        let directories = Directories::of_process();
        let Everywhere { host_socket, as_user, .. } = command.everywhere.clone();
        let host_socket = host_socket.unwrap_or_else(|| directories.host_socket());
        Self { output, prompt: Prompt::new(), host_socket, user: as_user }
    }

    /// Whose session was asked for.
    pub fn user(&self) -> Option<&UserName> {
        self.user.as_ref()
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
