//! Who may depend on whom: an arrow goes to a lower rank only, and some arrows are forbidden by name.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Every crate with its rank; `cli` links the other programs of rank 3 because they are shipped as one, and the bench plays
/// on the stage of `xtask`.
const RANKS: [(&str, u32); 12] = [
    ("collective-model", 0),
    ("collective-testing", 0),
    ("collective-repository", 1),
    ("collective-vm", 1),
    ("collective-disk", 2),
    ("collective-api", 2),
    ("collective-host", 3),
    ("collective-server", 3),
    ("collective-cli", 4),
    ("collective-bench", 5),
    ("xtask", 4),
    ("collective-fuzz", 4),
];

/// Libraries that only some rooms may know, with those rooms; their tests may know what they like.
const KEPT_IN: [(&str, &[&str]); 8] = [
    ("collective-testing", &["collective-bench"]),
    ("sqlx", &["collective-server"]),
    ("axum", &["collective-server", "collective-host"]),
    ("rcgen", &["collective-server", "collective-api"]),
    ("clap", &["collective-cli", "collective-bench"]),
    ("indicatif", &["collective-cli"]),
    ("object_store", &["collective-repository"]),
    ("zstd", &["collective-repository", "collective-bench"]),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// None for an ordinary dependency, else `dev` or `build`.
    kind: Option<String>,
}

/// Reads the workspace's own metadata and lists the arrows that should not be.
pub fn faults(root: &Path) -> Result<Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root)
        .output()
        .context("cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    Ok(metadata.packages.iter().flat_map(package_faults).collect())
}

fn package_faults(package: &Package) -> Vec<String> {
    let Some(rank) = rank_of(&package.name) else {
        return vec![format!("{}: has no rank in xtask/src/tidy/ranks.rs", package.name)];
    };
    let shipped = package.dependencies.iter().filter(|dependency| dependency.kind.is_none());
    let mut faults = Vec::new();
    for dependency in shipped {
        if rank_of(&dependency.name).is_some_and(|below| below >= rank) {
            faults.push(format!(
                "{} (rank {rank}) depends on {}, which is not of a lower rank",
                package.name, dependency.name
            ));
        }
        let kept = KEPT_IN.iter().find(|(library, _)| *library == dependency.name);
        if kept.is_some_and(|(_, rooms)| !rooms.contains(&package.name.as_str())) {
            faults.push(format!("{} must not know {}", package.name, dependency.name));
        }
    }
    faults
}

fn rank_of(name: &str) -> Option<u32> {
    RANKS.iter().find(|row| row.0 == name).map(|row| row.1)
}

#[cfg(test)]
mod tests {
    use super::{Dependency, Package, package_faults};

    fn package(name: &str, dependencies: &[&str]) -> Package {
        let dependencies = dependencies
            .iter()
            .map(|name| Dependency { name: (*name).to_owned(), kind: None })
            .collect();
        Package { name: name.to_owned(), dependencies }
    }

    #[test]
    fn an_arrow_upwards_or_sideways_is_a_fault() {
        for (from, to) in [
            ("collective-repository", "collective-disk"),
            ("collective-vm", "collective-repository"),
            ("collective-host", "collective-server"),
            ("collective-disk", "sqlx"),
            ("collective-unknown", "collective-model"),
        ] {
            assert_eq!(package_faults(&package(from, &[to])).len(), 1, "{from} -> {to}");
        }
    }

    #[test]
    fn an_arrow_downwards_is_none() {
        let host = package("collective-host", &["collective-disk", "collective-vm", "axum"]);
        assert!(package_faults(&host).is_empty());
    }
}
