//! `collective join`: ties this computer to a server, after its fingerprint was compared.

use clap::Args;
use collective_api::HostClient;
use collective_api::host::{ContactRequest, HostStatus, JoinRequest};
use collective_model::{Error, ErrorKind, HostName, Result};

use crate::context::Context;
use crate::prompt::SecretSource;

/// Tie this computer to a server
///
/// At the first contact the server's fingerprint is shown; compare it with the one that `collective serve` printed, or
/// give that one with --fingerprint. With a join token (`collective token create`) the host becomes a member that
/// its administrators see; without one it is a guest: people can log in on it all the same.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  collective join https://server:7443\n  \
    collective join https://server:7443 --name attic --token-file token.txt")]
pub struct Arguments {
    /// Where the server is
    #[arg(value_name = "URL")]
    url: String,
    #[command(flatten)]
    trust: Trust,
}

/// How a server is trusted: also taken by `login` and `host`.
#[derive(Args, Clone, Debug, Default)]
pub struct Trust {
    /// The server's fingerprint, instead of being asked whether the one it shows is right
    #[arg(long, value_name = "FINGERPRINT")]
    pub fingerprint: Option<String>,
    /// What people will call this computer; its host name if not given
    #[arg(long, value_name = "NAME")]
    pub name: Option<HostName>,
    /// File with a join token (`-`: stdin)
    #[arg(long, value_name = "FILE", value_parser = SecretSource::parse)]
    pub token_file: Option<SecretSource>,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<()> {
    let client = context.host()?;
    let status = join(context, &client, &arguments.url, &arguments.trust).await?;
    context.output.say("host", &status, || match (&status.name, &status.id) {
        (Some(name), Some(_)) => format!("{name} is a member of {}", arguments.url),
        _ => format!("this computer trusts {}; people can log in", arguments.url),
    });
    Ok(())
}

/// Ties the host behind `client` to the server at `url`.
pub async fn join(
    context: &Context,
    client: &HostClient,
    url: &str,
    trust: &Trust,
) -> Result<HostStatus> {
    client.join(&request(context, client, url, trust).await?).await
}

/// Finds out what ties a host to the server at `url`.
pub async fn request(
    context: &Context,
    client: &HostClient,
    url: &str,
    trust: &Trust,
) -> Result<JoinRequest> {
    let token = trust
        .token_file
        .as_ref()
        .map(|source| context.prompt.secret(Some(source), "token"))
        .transpose()?;
    let name = match &trust.name {
        Some(name) => name.clone(),
        None => own_name()?,
    };
    let fingerprint = accepted(context, client, url, trust.fingerprint.as_deref()).await?;
    Ok(JoinRequest { url: url.to_owned(), fingerprint, token, name })
}

/// Shows the fingerprint of the server and asks, unless it was given.
async fn accepted(
    context: &Context,
    client: &HostClient,
    url: &str,
    given: Option<&str>,
) -> Result<String> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let contact = client.contact(&ContactRequest { url: url.to_owned() }).await?;
    let known = client.host().await?.server.filter(|server| server.url == contact.url);
    let is_known = match known {
        Some(server) if server.fingerprint == contact.fingerprint => return Ok(contact.fingerprint),
        Some(_) => "is known here, and shows another fingerprint than before",
        None => "is not known here yet",
    };
    let question = format!(
        "The server at {url} {is_known}. Its fingerprint is\n  {}\nIs that the one that its \
         administrator told you?",
        contact.fingerprint
    );
    context.prompt.confirm_with(&question, "give the right one with --fingerprint")?;
    Ok(contact.fingerprint)
}

/// The computer's own name, if it can be one of ours.
fn own_name() -> Result<HostName> {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy().to_lowercase();
    let short = name.split('.').next().unwrap_or_default();
    short.parse().map_err(|cause: Error| {
        Error::new(ErrorKind::Invalid, format!("this computer's own name, `{short}`, will not do"))
            .with_source(cause)
            .with_hint("give another with --name")
    })
}
