//! `make bench`: our figures beside those of peers, on the same `debian` disk in one run.
//!
//! Each measure is a module; `report` prints the table and writes `target/bench/report.json`. Rounds of ours and of the
//! peer alternate, so that a machine that slows down slows both; figures are medians with their spread. `QUICK=1` takes
//! fewer rounds and stays under five minutes once the appliance is built.

mod boot;
mod cold;
mod export;
mod link;
mod publish;
mod report;
mod sample;
mod scene;
mod web;

use anyhow::Result;

use report::Report;
use scene::Scene;

#[tokio::main]
async fn main() -> Result<()> {
    let quick = std::env::var("QUICK").is_ok_and(|value| !matches!(value.as_str(), "" | "0"));
    // HTTP clients ask for it even where nothing is encrypted; only a second one would be refused.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let scene = Scene::set(quick).await?;
    let mut report = Report::default();
    let (descriptor, version) = publish::measure(&scene, &mut report).await?;
    export::measure(&scene, &version, &mut report).await?;
    let local_seconds = boot::measure(&scene, &version, &mut report).await?;
    cold::measure(&scene, &descriptor, &version, local_seconds, &mut report).await?;
    report.finish(&scene)
}
