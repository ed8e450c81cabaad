//! `make bench`: our figures beside those of peers, on the same `debian` disk in one run.
//!
//! Each measure is a module; `report` prints the table and writes `target/bench/report.json`. Rounds of ours and of the
//! peer alternate, so that a machine that slows down slows both; figures are medians with their spread. `QUICK=1` takes
//! fewer rounds of the rows of one disk (`system`, `boot`), and stays under five minutes once the appliance is built. `ROWS`
//! names the groups of rows to measure, with commas between.

mod boot;
mod cold;
mod daemon;
mod export;
mod link;
mod open;
mod peers;
mod publish;
mod report;
mod sample;
mod scene;
mod store;
mod userdisk;
mod versions;
mod writer;

use anyhow::{Result, ensure};

use report::Report;
use scene::Scene;

/// What `ROWS` may name.
const GROUPS: [&str; 8] = ["system", "export", "boot", "store", "cpu", "open", "userdisk", "host"];

#[tokio::main]
async fn main() -> Result<()> {
    let quick = std::env::var("QUICK").is_ok_and(|value| !matches!(value.as_str(), "" | "0"));
    let rows = std::env::var("ROWS").unwrap_or_default();
    let rows: Vec<String> =
        rows.split(',').filter(|row| !row.is_empty()).map(str::to_owned).collect();
    for row in &rows {
        ensure!(GROUPS.contains(&row.as_str()), "ROWS may name {}: `{row}`?", GROUPS.join(", "));
    }
    // HTTP clients ask for it even where nothing is encrypted; only a second one would be refused.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let scene = Scene::set(quick, rows).await?;
    let mut report = Report::default();
    if scene.wants("system") || scene.wants("boot") {
        let (descriptor, version) = publish::measure(&scene, &mut report).await?;
        if scene.wants("boot") {
            let local_seconds = boot::measure(&scene, &version, &mut report).await?;
            cold::measure(&scene, &descriptor, &version, local_seconds, &mut report).await?;
        }
    }
    if scene.wants("export") {
        export::measure(&scene, &mut report).await?;
    }
    if scene.wants("store") || scene.wants("cpu") {
        store::measure(&scene, &mut report).await?;
    }
    if scene.wants("open") {
        open::measure(&scene, &mut report).await?;
    }
    if scene.wants("userdisk") {
        userdisk::measure(&scene, &mut report).await?;
    }
    if scene.wants("host") {
        daemon::measure(&scene, &mut report).await?;
    }
    report.finish(&scene)
}
