//! How each node of a disk is described to QEMU, the same on its command line and over QMP.
//!
//! A disk is a chain: qcow2 layers, each on a file node of its own, over one read-only NBD node. Every node has a
//! name, because only what has a name can be reopened and deleted later (see [`crate::graph`]).

use std::path::Path;

use collective_model::DiskRole;
use serde_json::{Value, json};

use crate::spec::NbdExport;

/// Seconds for which QEMU keeps a read waiting while the export is away, before the guest sees an error: a year. The
/// daemon may be restarted, updated or broken for long; the read has to wait (DESIGN 4.6).
const RECONNECT_SECONDS: u32 = 365 * 24 * 3600;

/// What a node is in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NodeKind {
    /// The read-only NBD node, or file, at the bottom.
    Base,
    /// A qcow2 layer.
    Layer,
    /// The file that a layer is in.
    File,
}

impl NodeKind {
    const ALL: [(Self, &str); 3] =
        [(Self::Base, "base"), (Self::Layer, "layer"), (Self::File, "file")];

    fn word(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Layer => "layer",
            Self::File => "file",
        }
    }
}

/// Returns the name of a node, such as `system-layer-3`: at most 31 signs, as QEMU demands, for every number.
pub(crate) fn node_name(role: DiskRole, kind: NodeKind, number: u32) -> String {
    format!("{role}-{}-{number}", kind.word())
}

/// Returns what a name that [`node_name`] made says; none for names of others.
pub(crate) fn parse_node(role: DiskRole, name: &str) -> Option<(NodeKind, u32)> {
    let rest = name.strip_prefix(role.name())?.strip_prefix('-')?;
    let (word, number) = rest.split_once('-')?;
    let kind = NodeKind::ALL.iter().find(|row| row.1 == word)?.0;
    Some((kind, number.parse().ok()?))
}

/// Describes the read-only node of an export.
pub(crate) fn nbd(node: &str, export: &NbdExport) -> Value {
    json!({
        "driver": "nbd",
        "node-name": node,
        "server": { "type": "unix", "path": export.socket },
        "export": export.export,
        "reconnect-delay": RECONNECT_SECONDS,
        "read-only": true,
    })
}

/// Describes a raw image of this computer as a base.
pub(crate) fn raw_base(node: &str, path: &Path) -> Value {
    json!({
        "driver": "raw",
        "node-name": node,
        "file": { "driver": "file", "filename": path, "read-only": true },
        "read-only": true,
    })
}

/// Describes the file of a layer.
pub(crate) fn file(node: &str, path: &Path, read_only: bool) -> Value {
    json!({
        "driver": "file",
        "node-name": node,
        "filename": path,
        "discard": "unmap",
        "read-only": read_only,
    })
}

/// Describes a layer over `backing`; with none, what it does not hold reads as zero.
pub(crate) fn layer(node: &str, file: &str, backing: Option<&str>, read_only: bool) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": node,
        "file": file,
        "backing": backing,
        "discard": "unmap",
        "detect-zeroes": if read_only { "off" } else { "unmap" },
        "read-only": read_only,
    })
}

#[cfg(test)]
mod tests {
    use collective_model::DiskRole;

    use super::{NodeKind, node_name, parse_node};

    #[test]
    fn names_of_nodes_are_short_enough_and_come_back() {
        for role in [DiskRole::System, DiskRole::User, DiskRole::Ephemeral] {
            for kind in [NodeKind::Base, NodeKind::Layer, NodeKind::File] {
                let name = node_name(role, kind, u32::MAX);
                assert!(name.len() <= 31, "{name}");
                assert_eq!(parse_node(role, &name), Some((kind, u32::MAX)));
            }
        }
        for foreign in ["", "system", "system-top-1", "user-layer-1", "system-layer-x", "#block123"]
        {
            assert_eq!(parse_node(DiskRole::System, foreign), None, "{foreign}");
        }
    }
}
