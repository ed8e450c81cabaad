//! The table of a run: one row a measure, ours beside each peer, with the ratio to the first peer.

use anyhow::Result;
use serde::Serialize;

use crate::sample::Sample;
use crate::scene::Scene;

/// All rows of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    accelerator: String,
    processors: usize,
    measures: Vec<Measure>,
}

/// What a row is of.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Names it for good.
    pub id: &'static str,
    pub unit: &'static str,
    /// What the ratio, or ours where there is no peer, has to reach.
    pub goal: &'static str,
}

/// One row with its figures.
#[derive(Debug, Serialize)]
pub struct Measure {
    /// Names the row for good.
    id: &'static str,
    unit: &'static str,
    ours: f64,
    peers: Vec<Peer>,
    /// Ours ÷ the first peer; none where there is no peer.
    ratio: Option<f64>,
    /// (greatest − least) ÷ median of ours.
    spread: f64,
    /// What the ratio, or ours where there is no peer, has to reach.
    goal: &'static str,
}

/// What a peer took.
#[derive(Debug, Serialize)]
pub struct Peer {
    /// Which program.
    name: &'static str,
    value: f64,
    spread: f64,
}

impl Report {
    /// Adds a row.
    pub fn add(&mut self, row: Row, ours: &Sample, peers: &[(&'static str, Sample)]) {
        let Row { id, unit, goal } = row;
        let peers: Vec<Peer> = peers
            .iter()
            .map(|(name, sample)| Peer { name, value: sample.median(), spread: sample.spread() })
            .collect();
        let ratio = peers.first().map(|peer| ours.median() / peer.value);
        let measure =
            Measure { id, unit, ours: ours.median(), peers, ratio, spread: ours.spread(), goal };
        say(&line(&measure));
        self.measures.push(measure);
    }

    /// Prints the table as Markdown and writes the report.
    pub fn finish(mut self, scene: &Scene) -> Result<()> {
        self.accelerator = scene.accelerator.accelerator.to_string();
        self.processors = std::thread::available_parallelism()?.get();
        say("\n| id | unit | ours | peers | ratio | spread | goal |");
        say("| --- | --- | ---: | --- | ---: | ---: | --- |");
        for measure in &self.measures {
            say(&row(measure));
        }
        let path = scene.directory.join("report.json");
        std::fs::write(&path, serde_json::to_string_pretty(&self)? + "\n")?;
        say(&format!("\nwritten to {}", path.display()));
        Ok(())
    }
}

fn row(measure: &Measure) -> String {
    let peers: Vec<String> =
        measure.peers.iter().map(|peer| format!("{} {}", peer.name, short(peer.value))).collect();
    format!(
        "| {} | {} | {} | {} | {} | {:.0}% | {} |",
        measure.id,
        measure.unit,
        short(measure.ours),
        peers.join(", "),
        measure.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
        measure.spread * 100.0,
        measure.goal
    )
}

fn line(measure: &Measure) -> String {
    let peers: Vec<String> =
        measure.peers.iter().map(|peer| format!(", {} {}", peer.name, short(peer.value))).collect();
    format!("{}: {} {}{}", measure.id, short(measure.ours), measure.unit, peers.concat())
}

/// Three digits.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 99.95 => format!("{value:.0}"),
        middle if middle >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[expect(clippy::print_stdout, reason = "the table is what the program is for")]
pub fn say(line: &str) {
    println!("{line}");
}
