//! The disks of a running machine: freezing the layer that takes the writes, and putting the chain on a new base, while
//! the guest goes on (DESIGN 4.1).
//!
//! ```text
//! before       base-0 <- layer-0                      layer-0 takes the writes
//! freeze       base-0 <- layer-0 <- layer-1           layer-0 will never change again: publish it at leisure
//! rebase       base-1 <- layer-1                      base-1 is the version that holds layer-0; its file may be deleted
//! ```
//!
//! Both are told the wanted end, look at what is there and do the rest; so they can be repeated after any interruption, and what an
//! interrupted one left over is swept by the next. What is truly there, [`nodes`] says: QEMU's own graph, not our memory of it. Works
//! the same with QEMU and with `qemu-storage-daemon`, and with any number of frozen layers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use collective_model::{DiskRole, Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::blockdev::{self, NodeKind, node_name, parse_node};
use crate::qmp::{Qmp, parse};
use crate::spec::NbdExport;

/// Nodes of one chain, at most: a chain that is longer is a loop, or not ours.
const CHAIN_NODES: usize = 1024;

/// A layer is synced again before a step until that takes less than this, a moment that no guest notices…
const SETTLED: Duration = Duration::from_millis(20);
/// …but not more often: a guest that writes as fast as the disk beneath it never lets a sync be short.
const SETTLING_SYNCS: usize = 8;

/// The chain of one disk, as QEMU has it open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The layers, oldest first; the last takes the writes.
    pub layers: Vec<LayerNode>,
    /// The node below all layers; none if there is nothing.
    pub base: Option<String>,
    /// Nodes of this disk that an interrupted step left over, each after those that use it.
    pub strays: Vec<String>,
    /// The first number that no node of this disk has.
    next: u32,
}

/// One layer in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerNode {
    /// The node's name.
    pub node: String,
    /// The name of the node of its file.
    pub file_node: String,
    /// Its file.
    pub file: PathBuf,
}

impl Chain {
    /// Returns the layer that takes the writes.
    ///
    /// # Panics
    /// Never: a chain without layers is not made.
    #[must_use]
    pub fn top(&self) -> &LayerNode {
        self.layers.last().expect("a chain has at least one layer")
    }
}

/// Looks at the chain of one disk.
///
/// # Errors
/// `NotFound` when the machine has no such disk; `Corrupt` when its chain has another form than ours; else as [`Qmp::execute`].
pub async fn nodes(qmp: &Qmp, role: DiskRole) -> Result<Chain> {
    let graph = parse(GRAPH, qmp.execute(GRAPH, json!({})).await?)?;
    let named = qmp.execute(NAMED, json!({ "flat": true })).await?;
    chain(role, &graph, &parse::<Vec<NamedNode>>(NAMED, named)?)
}

/// Freezes the layer that takes the writes: from now on they go to the layer in `new_file`, which is empty and of the disk's size. Done
/// already, it does nothing.
///
/// # Errors
/// As [`nodes`], and `Invalid` with QEMU's words when it refuses; then the old layer still takes the writes.
pub async fn freeze(qmp: &Qmp, role: DiskRole, new_file: &Path) -> Result<Chain> {
    let before = nodes(qmp, role).await?;
    if before.top().file == new_file {
        return Ok(before);
    }
    sweep(qmp, &before).await?;
    let file = node_name(role, NodeKind::File, before.next);
    let layer = node_name(role, NodeKind::Layer, before.next);
    let step = format!("cannot freeze the {role} disk onto {}", new_file.display());
    run(qmp, "blockdev-add", blockdev::file(&file, new_file, false), &step).await?;
    run(qmp, "blockdev-add", blockdev::layer(&layer, &file, None, false), &step).await?;
    settle(&before.top().file).await;
    let arguments = json!({ "node": before.top().node, "overlay": layer });
    run(qmp, "blockdev-snapshot", arguments, &step).await?;
    nodes(qmp, role).await
}

/// Puts the layers from the one in `bottom_file` upwards on a new base, which holds what those below it held; they are closed, and
/// their files may be deleted afterwards. Done already, it does nothing.
///
/// # Errors
/// As [`nodes`]; `NotFound` when no layer is in `bottom_file`; `Invalid` with QEMU's words when it refuses or cannot reach the export;
/// then the chain still has its old base.
pub async fn rebase(
    qmp: &Qmp,
    role: DiskRole,
    bottom_file: &Path,
    base: &NbdExport,
) -> Result<Chain> {
    let before = nodes(qmp, role).await?;
    let step = format!("cannot put the {role} disk on export `{}`", base.export);
    let Some(at) = before.layers.iter().position(|layer| layer.file == bottom_file) else {
        let text = format!("no layer of the {role} disk is in {}", bottom_file.display());
        return Err(Error::new(ErrorKind::NotFound, text));
    };
    sweep(qmp, &before).await?;
    if at == 0 && serves(qmp, before.base.as_deref(), base).await? {
        return nodes(qmp, role).await;
    }
    let node = node_name(role, NodeKind::Base, before.next);
    run(qmp, "blockdev-add", blockdev::nbd(&node, base), &step).await?;
    let bottom = &before.layers[at];
    let read_only = at + 1 < before.layers.len();
    let options = blockdev::layer(&bottom.node, &bottom.file_node, Some(&node), read_only);
    settle(&bottom.file).await;
    run(qmp, "blockdev-reopen", json!({ "options": [options] }), &step).await?;
    // What was below is left over now.
    let after = nodes(qmp, role).await?;
    sweep(qmp, &after).await?;
    nodes(qmp, role).await
}

/// Closes what an interrupted step left over.
///
/// # Errors
/// As [`Qmp::execute`].
pub async fn sweep(qmp: &Qmp, chain: &Chain) -> Result<()> {
    for node in &chain.strays {
        let step = format!("cannot close the node {node}");
        run(qmp, "blockdev-del", json!({ "node-name": node }), &step).await?;
    }
    Ok(())
}

/// Syncs a layer's file until little of it is left to sync: QEMU syncs what it freezes and what it reopens, and the whole
/// guest stands still for that. What cannot be synced here, QEMU will find so itself.
async fn settle(path: &Path) {
    let path = path.to_owned();
    let synced = tokio::task::spawn_blocking(move || {
        let file = File::open(&path)?;
        for _ in 0..SETTLING_SYNCS {
            let begun = Instant::now();
            file.sync_data()?;
            if begun.elapsed() < SETTLED {
                break;
            }
        }
        std::io::Result::Ok(())
    });
    if let Ok(Err(error)) = synced.await {
        tracing::warn!("cannot sync a layer ahead of QEMU: {error}");
    }
}

async fn run(qmp: &Qmp, command: &str, arguments: Value, step: &str) -> Result<()> {
    qmp.execute(command, arguments).await.map(drop).map_err(|error| error.context(step))
}

/// Tells whether a node is this export's.
async fn serves(qmp: &Qmp, node: Option<&str>, export: &NbdExport) -> Result<bool> {
    let Some(node) = node else { return Ok(false) };
    let named = qmp.execute(NAMED, json!({ "flat": true })).await?;
    let named: Vec<NamedNode> = parse(NAMED, named)?;
    let wanted = nbd_name(export);
    Ok(named.iter().any(|other| other.name == node && other.file == wanted))
}

/// Returns what QEMU calls an export.
fn nbd_name(export: &NbdExport) -> String {
    format!("nbd+unix:///{}?socket={}", export.export, export.socket.display())
}

/// The only command that says which node is on which: its name promises nothing, its form has not changed since QEMU 3.1.
const GRAPH: &str = "x-debug-query-block-graph";
const NAMED: &str = "query-named-block-nodes";

#[derive(Deserialize)]
struct Graph {
    nodes: Vec<GraphNode>,
    edges: Vec<Edge>,
}

#[derive(Deserialize)]
struct GraphNode {
    id: u64,
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Edge {
    parent: u64,
    child: u64,
    name: String,
}

#[derive(Deserialize)]
struct NamedNode {
    #[serde(rename = "node-name")]
    name: String,
    file: String,
}

fn chain(role: DiskRole, graph: &Graph, named: &[NamedNode]) -> Result<Chain> {
    let names: BTreeMap<u64, &str> =
        graph.nodes.iter().map(|node| (node.id, node.name.as_str())).collect();
    let users: BTreeSet<u64> =
        graph.nodes.iter().filter(|node| node.kind != "block-driver").map(|node| node.id).collect();
    let files: BTreeMap<&str, &str> =
        named.iter().map(|node| (node.name.as_str(), node.file.as_str())).collect();
    let child = |parent: u64, edge: &str| {
        graph.edges.iter().find(|e| e.parent == parent && e.name == edge).map(|e| e.child)
    };
    let ours = |id: u64| parse_node(role, names.get(&id).copied().unwrap_or_default());
    let top = graph.edges.iter().find(|edge| {
        users.contains(&edge.parent)
            && ours(edge.child).is_some_and(|(kind, _)| kind == NodeKind::Layer)
    });
    let Some(top) = top else {
        let text = format!("the machine has no {role} disk");
        return Err(Error::new(ErrorKind::NotFound, text));
    };
    let (mut layers, mut base, mut used) = (Vec::new(), None, BTreeSet::new());
    let mut next = Some(top.child);
    while let Some(id) = next {
        used.insert(id);
        if ours(id).is_none_or(|(kind, _)| kind != NodeKind::Layer) {
            base = names.get(&id).map(|name| (*name).to_owned());
            break;
        }
        let file = child(id, "file").ok_or_else(|| misshapen(role))?;
        used.insert(file);
        let file_node = names.get(&file).copied().unwrap_or_default();
        let path = files.get(file_node).ok_or_else(|| misshapen(role))?;
        layers.push(LayerNode {
            node: names[&id].to_owned(),
            file_node: file_node.to_owned(),
            file: PathBuf::from(path),
        });
        if layers.len() > CHAIN_NODES {
            return Err(misshapen(role));
        }
        next = child(id, "backing");
    }
    layers.reverse();
    let strays = strays(role, graph, &used);
    let next = graph.nodes.iter().filter_map(|node| ours(node.id)).map(|(_, number)| number).max();
    let next = next.map_or(0, |number| number.saturating_add(1));
    Ok(Chain { layers, base, strays, next })
}

/// Lists this disk's nodes outside its chain: layers before what they stand on, newest first, as they can be closed.
fn strays(role: DiskRole, graph: &Graph, used: &BTreeSet<u64>) -> Vec<String> {
    let mut strays: Vec<_> = graph
        .nodes
        .iter()
        .filter(|node| !used.contains(&node.id))
        .filter_map(|node| parse_node(role, &node.name).map(|parsed| (parsed, &node.name)))
        .collect();
    strays.sort_by_key(|&((kind, number), _)| (kind != NodeKind::Layer, std::cmp::Reverse(number)));
    strays.into_iter().map(|(_, name)| name.clone()).collect()
}

fn misshapen(role: DiskRole) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the chain of the {role} disk is not one of ours"))
}
