//! What all measures share: the `debian` appliance, a directory to work in, QEMU and what it can use.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use collective_vm::accelerator::{self, Probed};
use collective_vm::image::{self, BuiltAppliance};
use collective_vm::qemu::Qemu;

use crate::report::say;

/// What the quick form measures of itself: with more it would take longer than five minutes.
const QUICK_GROUPS: [&str; 3] = ["system", "export", "boot"];

/// The scene of a run.
pub struct Scene {
    /// Fewer rounds.
    pub quick: bool,
    /// The groups of rows that are measured; none: all.
    rows: Vec<String>,
    /// `target/bench`.
    pub directory: PathBuf,
    /// The appliance that everything is measured on.
    pub appliance: BuiltAppliance,
    pub qemu: Qemu,
    pub accelerator: Probed,
}

impl Scene {
    /// Builds the appliance unless an earlier run did, and asks what there is to run it with.
    pub async fn set(quick: bool, rows: Vec<String>) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no parent")?;
        let directory = root.join("target/bench");
        std::fs::create_dir_all(&directory)?;
        say("building the appliance `debian`, unless an earlier run did");
        let recipe = root.join("appliances/debian");
        let appliance =
            image::build_cached(&recipe, &directory.join("images")).await.map_err(chain)?;
        let qemu = Qemu::discover().await.map_err(chain)?;
        let accelerator = accelerator::probe(&qemu).await;
        say(&format!("{}: {}", accelerator.accelerator, accelerator.why));
        Ok(Self { quick, rows, directory, appliance, qemu, accelerator })
    }

    /// An empty directory for one measure.
    pub fn fresh(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Whether a group of rows is asked for; the quick form has two unless it is told otherwise.
    pub fn wants(&self, group: &str) -> bool {
        match self.rows.as_slice() {
            [] => !self.quick || QUICK_GROUPS.contains(&group),
            rows => rows.iter().any(|row| row == group),
        }
    }

    /// How many rounds a measure takes.
    pub fn rounds(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

/// Our error with its causes, for people.
#[expect(clippy::needless_pass_by_value, reason = "goes into map_err")]
pub fn chain(error: collective_model::Error) -> anyhow::Error {
    anyhow!(error.chain())
}
