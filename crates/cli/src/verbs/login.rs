//! `collective login`: a person arrives at this computer.

use clap::Args;
use collective_api::host::LoginRequest;
use collective_model::{Error, ErrorKind, Result, UserName};

use crate::context::Context;
use crate::prompt::SecretSource;
use crate::verbs::join::{self, Trust};

/// Log in on this computer
///
/// The password is asked for, or read from a file; it never leaves this computer. Where the server cannot be reached, the
/// last password that worked here is enough, and backups wait until it is back.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  collective login ann\n  \
    collective login ann --url https://server:7443 --password-file ann.txt")]
pub struct Arguments {
    /// Who
    user: UserName,
    /// File with the password (`-`: stdin)
    #[arg(long, value_name = "FILE", value_parser = SecretSource::parse)]
    password_file: Option<SecretSource>,
    /// Where the server is, if this computer has none yet (as `collective join`)
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    trust: Trust,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<()> {
    let client = context.host()?;
    let host = client.host().await?;
    let mut first = None;
    match (&host.server, &arguments.url) {
        (None, None) => {
            return Err(Error::new(
                ErrorKind::Invalid,
                "this computer is not tied to a server yet",
            )
            .with_hint("say which with --url, or run `collective join URL` once"));
        }
        (None, Some(url)) => {
            // The computer is tied to it only if the log-in succeeds.
            first = Some(join::request(context, &client, url, &arguments.trust).await?);
        }
        (Some(server), Some(url))
            if server.url.trim_end_matches('/') != url.trim_end_matches('/') =>
        {
            let message = format!("this computer is tied to {}, not to {url}", server.url);
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        (Some(_), _) => {}
    }
    let password = context.prompt.secret(arguments.password_file.as_ref(), "password")?;
    let session =
        client.login(&LoginRequest { user: arguments.user, password, join: first }).await?;
    context.output.say("session", &session, || match session.online {
        true => format!("{} is logged in", session.user),
        false => format!(
            "{} is logged in; the server cannot be reached, so backups wait until it can",
            session.user
        ),
    });
    Ok(())
}
