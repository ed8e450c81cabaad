//! `collective logout`: a person leaves this computer.

use clap::Args;
use collective_api::host::{LogoutRequest, Session};
use collective_model::{Error, ErrorKind, Result, UserName};
use serde::Serialize;

use crate::context::Context;

/// Log out on this computer
///
/// Refused while appliances run or changes wait to be backed up. With --force they wait on this computer until the
/// same person logs in again.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective logout")]
pub struct Arguments {
    /// Who, where several people are logged in
    user: Option<UserName>,
    /// Log out although something is not backed up
    #[arg(long)]
    force: bool,
}

/// What a program reads.
#[derive(Serialize)]
struct LoggedOut {
    user: UserName,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<()> {
    let client = context.host()?;
    let given = arguments.user.or_else(|| context.user().cloned());
    let user = match given {
        Some(user) => user,
        None => only(&client.host().await?.sessions)?,
    };
    client.logout(&LogoutRequest { user: user.clone(), force: arguments.force }).await?;
    let text = format!("{user} is logged out");
    context.output.say("logged_out", &LoggedOut { user }, || text);
    Ok(())
}

/// The one person who is logged in.
fn only(sessions: &[Session]) -> Result<UserName> {
    match sessions {
        [session] => Ok(session.user.clone()),
        [] => Err(Error::new(ErrorKind::Denied, "nobody is logged in on this computer")),
        several => {
            let names: Vec<String> =
                several.iter().map(|session| session.user.to_string()).collect();
            Err(Error::new(ErrorKind::Invalid, "several people are logged in on this computer")
                .with_hint(format!("say who: {}", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use collective_api::host::Session;
    use collective_model::{ErrorKind, Timestamp};

    use super::only;

    #[test]
    fn who_logs_out_is_clear_only_if_one_person_is_here() {
        let session = |user: &str| Session {
            user: user.parse().unwrap(),
            online: true,
            since: Timestamp(0),
            certificate: None,
            problem: None,
        };
        assert_eq!(only(&[session("ann")]).unwrap().as_str(), "ann");
        assert_eq!(only(&[]).unwrap_err().kind(), ErrorKind::Denied);
        let error = only(&[session("ann"), session("bob")]).unwrap_err();
        assert_eq!(error.hint(), Some("say who: ann, bob"));
    }
}
