//! The verbs, one file each, in the order in which a person meets them.
//!
//! A verb is its arguments (a struct that clap fills, whose comments are its help) and `run`, which asks a library or a
//! daemon and says what came back. Nothing is decided here that a library could decide.

mod appliance;
mod audit;
mod cache;
mod completion;
mod delete;
mod doctor;
mod exec;
mod exit_codes;
mod grant;
mod group;
mod hold;
mod host;
mod join;
mod list;
mod login;
mod logout;
mod publish;
mod reset;
mod restart;
mod retention;
mod serve;
mod start;
mod status;
mod stop;
mod token;
mod undo;
mod user;
mod versions;

use clap::Subcommand;
use collective_model::{ErrorKind, Result, ResultExt as _};

use crate::context::Context;

/// What `collective` can be told to do.
#[derive(Subcommand, Debug)]
pub enum Verb {
    Login(login::Arguments),
    Logout(logout::Arguments),
    Join(join::Arguments),
    List(list::Arguments),
    Status(status::Arguments),
    Start(start::Arguments),
    Stop(stop::Arguments),
    Restart(restart::Arguments),
    Exec(exec::Arguments),
    Undo(undo::Arguments),
    Versions(versions::Arguments),
    Publish(publish::Arguments),
    Hold(hold::Arguments),
    Reset(reset::Arguments),
    Delete(delete::Arguments),
    Doctor(doctor::Arguments),
    Cache(cache::Arguments),
    Appliance(appliance::Arguments),
    User(user::Arguments),
    Group(group::Arguments),
    Grant(grant::Arguments),
    Token(token::Arguments),
    Audit(audit::Arguments),
    Host(host::Arguments),
    Serve(serve::Arguments),
    Completion(completion::Arguments),
    ExitCodes(exit_codes::Arguments),
}

/// Runs a verb and returns its exit code.
pub fn run(verb: Verb, context: &Context) -> Result<u8> {
    let runtime = tokio::runtime::Runtime::new()
        .or_error(ErrorKind::Internal, || "cannot set up the runtime".to_owned())?;
    runtime.block_on(dispatch(verb, context))
}

async fn dispatch(verb: Verb, context: &Context) -> Result<u8> {
    match verb {
        Verb::Login(arguments) => login::run(arguments, context).await.map(done),
        Verb::Logout(arguments) => logout::run(arguments, context).await.map(done),
        Verb::Join(arguments) => join::run(arguments, context).await.map(done),
        Verb::List(arguments) => list::run(arguments, context).await.map(done),
        Verb::Status(arguments) => status::run(arguments, context).await,
        Verb::Start(arguments) => start::run(arguments, context).await,
        Verb::Stop(arguments) => stop::run(arguments, context).await,
        Verb::Restart(arguments) => restart::run(arguments, context).await,
        Verb::Exec(arguments) => exec::run(arguments, context).await,
        Verb::Undo(arguments) => undo::run(arguments, context).await,
        Verb::Versions(arguments) => versions::run(arguments, context).await.map(done),
        Verb::Publish(arguments) => publish::run(arguments, context).await,
        Verb::Hold(arguments) => hold::run(arguments, context).await,
        Verb::Reset(arguments) => reset::run(arguments, context).await,
        Verb::Delete(arguments) => delete::run(arguments, context).await,
        Verb::Doctor(arguments) => doctor::run(arguments, context).await,
        Verb::Cache(arguments) => cache::run(arguments, context).await,
        Verb::Appliance(arguments) => appliance::run(arguments, context).await,
        Verb::User(arguments) => user::run(arguments, context).await.map(done),
        Verb::Group(arguments) => group::run(arguments, context).await.map(done),
        Verb::Grant(arguments) => grant::run(arguments, context).await.map(done),
        Verb::Token(arguments) => token::run(arguments, context).await.map(done),
        Verb::Audit(arguments) => audit::run(arguments, context).await.map(done),
        Verb::Serve(arguments) => serve::run(arguments, context).await.map(done),
        Verb::Host(arguments) => host::run(arguments, context).await.map(done),
        Verb::Completion(arguments) => completion::run(&arguments, context).map(done),
        Verb::ExitCodes(arguments) => exit_codes::run(&arguments, context).map(done),
    }
}

/// The exit code of a verb that did what was asked.
fn done((): ()) -> u8 {
    0
}

/// Writes names beside each other, as tables show them.
fn names<T: ToString>(names: &[T]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
