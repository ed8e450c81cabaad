//! `collective completion`: the words that a shell completes, made from the tree of verbs.

use clap::Args;
use clap_complete::Shell;
use collective_model::Result;

use crate::context::Context;

/// Print the completion script of a shell
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  collective completion bash > /etc/bash_completion.d/collective"
)]
pub struct Arguments {
    /// For which shell
    shell: Shell,
}

pub fn run(arguments: &Arguments, context: &Context) -> Result<()> {
    let mut script = Vec::new();
    let mut tree = crate::arguments::tree();
    clap_complete::generate(arguments.shell, &mut tree, "collective", &mut script);
    context.output.bytes(&script);
    Ok(())
}
