//! `collective appliance …`: making, publishing and keeping the appliances that others start.

mod build;
mod list;
mod prune;
mod publish;
mod show;
mod verify;

use clap::{Args, Subcommand};
use collective_model::Result;

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
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let server = || context.server(&arguments.server);
    match arguments.verb {
        Verb::Build(arguments) => build::run(arguments, context).await,
        Verb::Publish(arguments) => publish::run(arguments, &server()?, context).await,
        Verb::List(arguments) => list::run(arguments, &server()?, context).await.map(super::done),
        Verb::Show(arguments) => show::run(arguments, &server()?, context).await.map(super::done),
        Verb::Verify(arguments) => verify::run(arguments, &server()?, context).await,
        Verb::Prune(arguments) => prune::run(arguments, &server()?, context).await.map(super::done),
    }
}
