//! `collective user password`: a new password, under which the user's disks stay readable.

use clap::Args;
use collective_api::ServerClient;
use collective_api::host::LoginRequest;
use collective_api::keybag::{Keybag, PasswordKeys, RecoveryKey, UserSecret};
use collective_api::server::PasswordChange;
use collective_model::{Error, ErrorKind, Result, UserName};
use serde::Serialize;

use super::new_keys;
use crate::context::Context;
use crate::prompt::SecretSource;

/// Set the password of an account
///
/// The user's disks are encrypted with a key that only the password and the recovery key open, so one of the two is needed
/// besides the new password: the recovery key by default, the current password with --current-password-file. With
/// --forget-disks neither is; then nobody can ever read the disks that the user has now, and there is a new recovery key.
///
/// Without a user it is your own password that is changed, with the current one; for that nobody needs to be an administrator.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  collective user password\n  collective user password ann --recovery-key-file ann-recovery.txt\n  \
    collective user password ann --forget-disks"
)]
pub struct Arguments {
    /// Who; yourself if not given
    user: Option<UserName>,
    /// File with the new password (`-`: stdin); asked for if not given
    #[arg(long, value_name = "FILE", value_parser = SecretSource::parse)]
    password_file: Option<SecretSource>,
    /// File with the recovery key; asked for if not given
    #[arg(long, value_name = "FILE", value_parser = SecretSource::parse)]
    recovery_key_file: Option<SecretSource>,
    /// File with the current password, instead of the recovery key
    #[arg(
        long,
        value_name = "FILE",
        value_parser = SecretSource::parse,
        conflicts_with = "recovery_key_file"
    )]
    current_password_file: Option<SecretSource>,
    /// Give up the disks that the user has now
    #[arg(long, conflicts_with_all = ["recovery_key_file", "current_password_file"])]
    forget_disks: bool,
    /// Do not ask before disks are given up
    #[arg(long)]
    yes: bool,
}

/// What a program reads.
#[derive(Serialize)]
struct Changed {
    user: UserName,
    /// Only where the old one is void.
    recovery_key: Option<String>,
}

pub async fn run(arguments: Arguments, server: &ServerClient, context: &Context) -> Result<()> {
    let Some(user) = arguments.user.clone() else {
        return change_own(&arguments, server, context).await;
    };
    if arguments.forget_disks && !arguments.yes {
        let question = format!("Nobody will ever read the user disks of `{user}` again. Go on?");
        context.prompt.confirm_name(&question, user.as_str())?;
    }
    let bag = server.keybag(&user).await?;
    let opener = Opener::read(&arguments, &user, server, context).await?;
    let password = context.prompt.new_secret(arguments.password_file.as_ref(), "password")?;
    let (keys, parameters) = new_keys(&password)?;
    let (keybag, recovery) = opener.wrap(&bag, &keys)?;
    let change = PasswordChange { parameters, proof: keys.proof.clone(), keybag, current: None };
    server.set_password(&user, &change).await?;
    say_changed(user, recovery, context);
    Ok(())
}

/// Changes the password of who is logged in: the current one proves them, and opens their keybag.
async fn change_own(arguments: &Arguments, server: &ServerClient, context: &Context) -> Result<()> {
    if arguments.recovery_key_file.is_some() || arguments.forget_disks {
        let message = "your own password is changed with the current one";
        return Err(Error::new(ErrorKind::Invalid, message)
            .with_hint("an administrator sets it without: `collective user password NAME`"));
    }
    let profile = server.profile(None).await?;
    let (profile, _) = profile.ok_or_else(|| {
        Error::new(ErrorKind::Internal, "the server answered that nothing changed, unasked")
    })?;
    let user = profile.user.name;
    let source = arguments.current_password_file.as_ref();
    let current = current_keys(source, &user, server, context).await?;
    let bag = server.own_keybag().await?;
    let secret = open(&bag, &current)?;
    let password = context.prompt.new_secret(arguments.password_file.as_ref(), "password")?;
    let (keys, parameters) = new_keys(&password)?;
    let keybag = bag.rewrap(&secret, &keys);
    let (proof, current) = (keys.proof.clone(), Some(current.proof.clone()));
    server.change_password(&PasswordChange { parameters, proof, keybag, current }).await?;
    say_changed(user.clone(), None, context);
    // The host has dropped what the old password opens; a log-in with the new one is what replaces it.
    let session = context.host()?.login(&LoginRequest { user, password, join: None }).await;
    session
        .map(drop)
        .map_err(|error| error.context("the password is set, and logging in with it failed"))
}

async fn current_keys(
    source: Option<&SecretSource>,
    user: &UserName,
    server: &ServerClient,
    context: &Context,
) -> Result<PasswordKeys> {
    let current =
        context.prompt.secret_of_flag(source, "current password", "--current-password-file")?;
    let parameters = server.login_parameters(user).await?;
    PasswordKeys::derive(&current, &parameters)
}

/// Opens a keybag with the current password; that it does not open says most of all that another one was typed.
fn open(bag: &Keybag, current: &PasswordKeys) -> Result<UserSecret> {
    bag.open(current).map_err(|_| {
        Error::new(ErrorKind::Denied, "the current password is wrong").with_hint(
            "without it an administrator sets a new one with the recovery key: \
             `collective user password NAME`",
        )
    })
}

fn say_changed(user: UserName, recovery: Option<RecoveryKey>, context: &Context) {
    let recovery_key = recovery.map(|key| key.to_string());
    let text = match &recovery_key {
        Some(key) => format!(
            "the password of {user} is set\nnew recovery key, shown only now (keep it on paper):\n  {key}"
        ),
        None => format!("the password of {user} is set"),
    };
    context.output.say("password_set", &Changed { user, recovery_key }, || text);
}

/// What opens the keybag as it is.
enum Opener {
    Recovery(RecoveryKey),
    Current(PasswordKeys),
    Nothing,
}

impl Opener {
    async fn read(
        arguments: &Arguments,
        user: &UserName,
        server: &ServerClient,
        context: &Context,
    ) -> Result<Self> {
        if arguments.forget_disks {
            return Ok(Self::Nothing);
        }
        if let Some(source) = &arguments.current_password_file {
            return current_keys(Some(source), user, server, context).await.map(Self::Current);
        }
        let key = context.prompt.secret_of_flag(
            arguments.recovery_key_file.as_ref(),
            "recovery key",
            "--recovery-key-file",
        )?;
        key.parse().map(Self::Recovery)
    }

    /// Wraps the user's secret under the new password; a new secret has a new recovery key.
    fn wrap(&self, bag: &Keybag, keys: &PasswordKeys) -> Result<(Keybag, Option<RecoveryKey>)> {
        match self {
            Self::Recovery(recovery) => Ok((bag.recover(recovery, keys)?, None)),
            Self::Current(current) => Ok((bag.rewrap(&open(bag, current)?, keys), None)),
            Self::Nothing => {
                let (bag, recovery) = Keybag::create(&UserSecret::generate(), keys);
                Ok((bag, Some(recovery)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use collective_api::keybag::{Keybag, PasswordKeys, PasswordParameters, UserSecret};

    use collective_model::ErrorKind;

    use super::Opener;

    #[test]
    fn a_wrong_current_password_is_refused_in_words_for_a_person() {
        let keys = |password: &str| {
            PasswordKeys::derive(password, &PasswordParameters::with_salt([1; 16])).unwrap()
        };
        let (bag, _) = Keybag::create(&UserSecret::generate(), &keys("old password"));
        let error = Opener::Current(keys("typed wrong")).wrap(&bag, &keys("new one")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert_eq!(error.chain(), "the current password is wrong");
    }

    #[test]
    fn the_secret_stays_unless_the_disks_are_given_up() {
        let keys = |password: &str, salt| {
            PasswordKeys::derive(password, &PasswordParameters::with_salt([salt; 16])).unwrap()
        };
        let (old, new) = (keys("old password", 1), keys("new password", 2));
        let secret = UserSecret::generate();
        let (bag, recovery) = Keybag::create(&secret, &old);
        for opener in [Opener::Recovery(recovery), Opener::Current(old)] {
            let (renewed, recovery) = opener.wrap(&bag, &new).unwrap();
            assert_eq!(renewed.open(&new).unwrap(), secret);
            assert!(recovery.is_none(), "the recovery key on paper stays good");
        }
        let (renewed, recovery) = Opener::Nothing.wrap(&bag, &new).unwrap();
        assert_ne!(renewed.open(&new).unwrap(), secret);
        assert!(recovery.is_some());
    }
}
