//! `collective appliance build`: a recipe becomes disks in a directory, ready to be published.

use std::path::PathBuf;

use clap::Args;
use collective_model::{Hardware, Result};
use collective_vm::image::{BuildMonitor, BuildOptions, BuildStep, Recipe, build};
use serde::Serialize;

use crate::context::Context;
use crate::progress::{Meter, Step};
use crate::wait;

/// Build an appliance's disks from a recipe
///
/// A recipe is a directory with a `recipe.toml`; `appliances/debian` and `appliances/tiny` are two. It is built with
/// Debian's own tools from Debian's packages, needs root, and needs nothing done by hand. The directory that comes out
/// holds raw disks and `appliance.json`; give it to `collective appliance publish --built`.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  collective appliance build appliances/debian --output /tmp/debian"
)]
pub struct Arguments {
    /// Directory of the recipe
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,
    /// Directory for the disks; made if need be
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// A package beside those of the recipe; may be given several times
    #[arg(long = "package", value_name = "PACKAGE")]
    packages: Vec<String>,
    /// What the guest finds in `/etc/appliance-version`
    #[arg(long, value_name = "TEXT", default_value = "1")]
    version_text: String,
    /// Directory that keeps downloaded packages for the next build
    #[arg(long, value_name = "DIR", env = "COLLECTIVE_DOWNLOADS", hide_env_values = true)]
    downloads: Option<PathBuf>,
}

/// What a program reads.
#[derive(Serialize)]
struct Built {
    directory: PathBuf,
    system: PathBuf,
    user: Option<PathBuf>,
    hardware: Hardware,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<u8> {
    let recipe = Recipe::load(&arguments.recipe)?;
    let options = BuildOptions {
        extra_packages: arguments.packages,
        version_text: arguments.version_text,
        downloads: arguments.downloads,
    };
    let watch = Watch(context.output.meter("build"));
    let work = build(&recipe, &options, &arguments.output, &watch);
    let Some(built) = wait::or_interrupt(work).await? else {
        watch.0.note("Stopped; only downloaded packages were kept.");
        return Ok(wait::INTERRUPTED);
    };
    drop(watch);
    let shown = arguments.output.display();
    let text = format!(
        "built {shown}; publish it with `collective appliance publish NAME --built {shown}`"
    );
    let built = Built {
        directory: arguments.output.clone(),
        system: built.system,
        user: built.user,
        hardware: built.hardware,
    };
    context.output.say("built", &built, || text);
    Ok(0)
}

/// Shows the steps of a build on a meter.
struct Watch(Meter);

impl BuildMonitor for Watch {
    fn step(&self, step: BuildStep<'_>) {
        self.0.step(&shown(step));
    }
}

fn shown(step: BuildStep<'_>) -> Step {
    let before = step.number.saturating_sub(1) * 100;
    let percent = before.checked_div(step.count).and_then(|percent| u8::try_from(percent).ok());
    Step {
        stage: format!("{}/{} {}", step.number, step.count, step.name),
        percent,
        ..Step::default()
    }
}

#[cfg(test)]
mod tests {
    use collective_vm::image::BuildStep;

    use super::shown;

    #[test]
    fn a_step_counts_those_before_it_as_done() {
        let step = shown(BuildStep { number: 3, count: 8, name: "install packages", detail: "" });
        assert_eq!((step.stage.as_str(), step.percent), ("3/8 install packages", Some(25)));
    }
}
