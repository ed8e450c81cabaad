//! The rules of the house that a compiler does not hold (STYLE.md, ARCHITECTURE.md).
//!
//! Ranks: an arrow between crates goes to a lower rank only. Files: each opens with its story, none is longer than
//! 600 code lines, long tests stand in a sibling. Words: nothing unfinished, no path of a developer's machine.
//! Every library that we depend on has a line that says why. All faults are listed, not just the first.

mod ranks;
mod sources;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Checks every rule and lists every fault.
pub fn run() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent")?;
    let mut faults = ranks::faults(root)?;
    faults.extend(dependency_faults(&std::fs::read_to_string(root.join("Cargo.toml"))?));
    let tracked = tracked_files(root)?;
    for path in &tracked {
        let Ok(text) = std::fs::read_to_string(root.join(path)) else { continue };
        faults.extend(sources::faults(path, &text));
    }
    if faults.is_empty() {
        crate::report(&format!("tidy: {} files, no fault", tracked.len()));
        return Ok(());
    }
    bail!("{} faults\n{}", faults.len(), faults.join("\n"))
}

/// Every library in the workspace's table needs a reason on its line, or a heading that gives one for the block.
fn dependency_faults(manifest: &str) -> Vec<String> {
    let table = manifest.split("[workspace.dependencies]").nth(1).unwrap_or_default();
    let mut under_heading = false;
    let mut faults = Vec::new();
    for line in table.lines().take_while(|line| !line.starts_with('[')) {
        if line.starts_with('#') {
            under_heading = true;
        }
        let library = line.contains('=') && !line.starts_with("collective-");
        if library && !under_heading && !line.contains('#') {
            faults.push(format!("Cargo.toml: `{line}` does not say why we depend on it"));
        }
    }
    faults
}

/// Files that git knows or would take, so that a new file is checked before it is committed.
fn tracked_files(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("git ls-files")?;
    let listed = String::from_utf8(output.stdout).context("git ls-files")?;
    Ok(listed.lines().map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::dependency_faults;

    #[test]
    fn a_library_without_a_reason_is_a_fault() {
        let manifest =
            "[workspace.dependencies]\na = \"1\" # hashes\nb = \"1\"\n[other]\nc = \"1\"\n";
        let faults = dependency_faults(manifest);
        assert_eq!(faults.len(), 1);
        assert!(faults[0].contains("`b = "), "{faults:?}");
    }
}
