//! `collective appliance …`: making, publishing and keeping the appliances that others start.

mod build;

use clap::{Args, Subcommand};
use collective_model::Result;

use crate::context::Context;

/// Build, publish and look after appliances
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Build(build::Arguments),
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    match arguments.verb {
        Verb::Build(arguments) => build::run(arguments, context).await,
    }
}
