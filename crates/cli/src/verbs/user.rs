//! `collective user …`: accounts.
//!
//! The keys of an account are derived here, on the administrator's computer, so that the server never sees a password:
//! see `collective_api::keybag`.

mod password;
mod retention;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use collective_api::ServerClient;
use collective_api::keybag::{
    Keybag, PasswordKeys, PasswordParameters, RecoveryKey, UserSecret, check_new_password,
};
use collective_api::server::{CreateUser, PasswordChange, User};
use collective_model::{GroupName, IoResultExt as _, Result, UserName};
use serde::Serialize;

use crate::context::{Context, ServerArguments, now};
use crate::prompt::SecretSource;
use crate::table::{draw, words};
use crate::text;

/// Make and remove accounts, set passwords, and say what stays of user disks
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    server: ServerArguments,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Add(AddArguments),
    List(ListArguments),
    Remove(RemoveArguments),
    Password(password::Arguments),
    Retention(retention::Arguments),
}

/// Make an account
///
/// Prints the account's recovery key, this once: it opens the user's disks if the password is lost, and nothing else
/// does. Give it to the user, on paper.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective user add ann --group office")]
struct AddArguments {
    /// The name
    user: UserName,
    /// A group to put them in; may be given several times
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<GroupName>,
    /// Let them administrate the server
    #[arg(long)]
    administrator: bool,
    /// File with the password (`-`: stdin); asked for if not given
    #[arg(long, value_name = "FILE", value_parser = SecretSource::parse)]
    password_file: Option<SecretSource>,
    /// Write the recovery key into this new file instead
    #[arg(long, value_name = "FILE")]
    recovery_file: Option<PathBuf>,
}

/// List the accounts
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective user list")]
struct ListArguments {}

/// Remove an account, with the user disks of that user
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  collective user remove ann")]
struct RemoveArguments {
    /// Who
    user: UserName,
    /// Do not ask for the name to be typed
    #[arg(long)]
    yes: bool,
}

/// What a program reads of a new account.
#[derive(Serialize)]
struct Added<'a> {
    #[serde(flatten)]
    user: &'a User,
    /// None if it went to a file.
    recovery_key: Option<String>,
}

/// What a program reads of a removed account.
#[derive(Serialize)]
struct Removed {
    user: UserName,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<()> {
    let server = context.server(&arguments.server)?;
    match arguments.verb {
        Verb::Add(arguments) => add(arguments, &server, context).await,
        Verb::List(ListArguments {}) => list(&server, context).await,
        Verb::Remove(RemoveArguments { user, yes }) => {
            if !yes {
                let question = format!("Remove the account of `{user}` and the user disks it has?");
                context.prompt.confirm_name(&question, user.as_str())?;
            }
            server.remove_user(&user).await?;
            let text = format!("the account of {user} is removed");
            context.output.say("user_removed", &Removed { user }, || text);
            Ok(())
        }
        Verb::Password(arguments) => password::run(arguments, &server, context).await,
        Verb::Retention(arguments) => retention::run(arguments, &server, context).await,
    }
}

async fn add(arguments: AddArguments, server: &ServerClient, context: &Context) -> Result<()> {
    let AddArguments { user: name, groups, administrator, password_file, recovery_file } =
        arguments;
    let password = context.prompt.new_secret(password_file.as_ref(), "password")?;
    let (keys, parameters) = new_keys(&password)?;
    let (keybag, recovery) = Keybag::create(&UserSecret::generate(), &keys);
    let password = PasswordChange { parameters, proof: keys.proof.clone(), keybag, current: None };
    // The file goes first: an account whose recovery key could not be written would be made for nothing.
    if let Some(path) = &recovery_file {
        write_recovery(path, &recovery)?;
    }
    let request = CreateUser { name, administrator, groups, password };
    let made = server.create_user(&request).await;
    if let (Err(_), Some(path)) = (&made, &recovery_file) {
        // It opens nothing; if it stays, the next try refuses to write over it and says so.
        let _ = std::fs::remove_file(path);
    }
    let user = made?;
    let recovery_key = recovery_file.is_none().then(|| recovery.to_string());
    context.output.say("user", &Added { user: &user, recovery_key: recovery_key.clone() }, || {
        match recovery_key {
            Some(key) => format!(
                "{} is added\nrecovery key, shown only now (keep it on paper):\n  {key}",
                user.name
            ),
            None => format!("{} is added", user.name),
        }
    });
    Ok(())
}

/// Derives the keys of a new password.
fn new_keys(password: &str) -> Result<(PasswordKeys, PasswordParameters)> {
    check_new_password(password)?;
    let parameters = PasswordParameters::generate();
    Ok((PasswordKeys::derive(password, &parameters)?, parameters))
}

/// Writes a recovery key into a file that is not there yet and that nobody else can read.
fn write_recovery(path: &Path, recovery: &RecoveryKey) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let cannot = || format!("cannot write the recovery key to `{}`", path.display());
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).or_io(cannot)?;
    writeln!(file, "{recovery}").and_then(|()| file.sync_all()).or_io(cannot)
}

async fn list(server: &ServerClient, context: &Context) -> Result<()> {
    let users = server.users().await?;
    for user in &users {
        context.output.object("user", user);
    }
    if !context.output.is_json() {
        context.output.text(&table(&users));
    }
    Ok(())
}

fn table(users: &[User]) -> String {
    let now = now();
    let rows = users
        .iter()
        .map(|user| {
            let rights = if user.administrator { "administrator" } else { "" };
            vec![
                user.name.to_string(),
                super::names(&user.groups),
                rights.to_owned(),
                text::ago(user.created, now),
            ]
        })
        .collect();
    let columns = [words("USER"), words("GROUPS"), words("RIGHTS"), words("MADE")];
    draw(&columns, rows, "no account yet: `collective user add NAME`")
}
