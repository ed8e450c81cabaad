//! `collective appliance …`: making, publishing and keeping the appliances that others start.

mod build;
pub mod check;
mod list;
mod mirror;
mod prune;
mod publish;
mod pull;
mod push;
mod registry;
mod remove;
mod retention;
mod show;
mod verify;

use clap::{Args, Subcommand};
use collective_model::{Error, ErrorKind, Result};

use crate::context::{Context, ServerArguments};

/// Build, publish and look after appliances
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    server: ServerArguments,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Build(build::Arguments),
    Publish(publish::Arguments),
    List(list::Arguments),
    Show(show::Arguments),
    Verify(verify::Arguments),
    Prune(prune::Arguments),
    Push(push::Arguments),
    Pull(pull::Arguments),
    Mirror(mirror::Arguments),
    Retention(retention::Arguments),
    Remove(remove::Arguments),
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let server = || context.server(&arguments.server);
    let done = match arguments.verb {
        Verb::Build(arguments) => build::run(arguments, context).await,
        Verb::Publish(arguments) => publish::run(arguments, &server()?, context).await,
        Verb::List(arguments) => list::run(arguments, &server()?, context).await.map(super::done),
        Verb::Show(arguments) => show::run(arguments, &server()?, context).await.map(super::done),
        Verb::Verify(arguments) => verify::run(arguments, &server()?, context).await,
        Verb::Prune(arguments) => prune::run(arguments, &server()?, context).await.map(super::done),
        Verb::Push(arguments) => push::run(arguments, &server()?, context).await,
        Verb::Pull(arguments) => pull::run(arguments, &server()?, context).await,
        Verb::Mirror(arguments) => mirror::run(arguments, &server()?, context).await,
        Verb::Retention(arguments) => {
            retention::run(arguments, &server()?, context).await.map(super::done)
        }
        Verb::Remove(arguments) => {
            remove::run(arguments, &server()?, context).await.map(super::done)
        }
    };
    done.map_err(where_to_look)
}

/// Says where the names are, to who typed one that is none.
fn where_to_look(error: Error) -> Error {
    if error.kind() == ErrorKind::NotFound && error.to_string().starts_with("there is no appliance")
    {
        return error.with_hint("`collective appliance list` lists those that there are");
    }
    error
}
