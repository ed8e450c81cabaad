//! `cargo xtask demo`: the main job with the built command, as people would type it.
//!
//! An administrator, a user called Ann and two computers, A and B, each in a directory of its own below `target/demo`;
//! their sockets are in a short directory that belongs to this checkout and this user. One line for each step with its
//! time and its bytes; the same facts go to `target/demo/report.json`. Nothing is left running unless `KEEP=1` asks for
//! it. The steps are in `story`, the computers and their daemons in `xtask::stage`.

mod story;

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use xtask::stage::Stage;

use crate::root;

/// What the demo found out; the names of the fields are part of the interface.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    accelerator: String,
    steps: Vec<Step>,
    /// Seconds in all, the build of the program apart.
    seconds: f64,
    /// From `start` to multi-user on host A, with an empty cache.
    boot_seconds: f64,
    /// The share of the system disk that host A ever fetched.
    fetched_share: f64,
    fetched_bytes_a: u64,
    stored_bytes_v1: u64,
    /// What version 2 added to the repository.
    stored_bytes_v2: u64,
    boot_seconds_b: f64,
    /// Everything that host B fetched, user disk included.
    fetched_bytes_b: u64,
}

/// One line of the demo.
#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    seconds: f64,
    what: String,
}

/// Plays the story.
pub fn run() -> Result<()> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent")?;
    let keep = std::env::var("KEEP").is_ok_and(|value| !matches!(value.as_str(), "" | "0"));
    let started = Instant::now();
    let command = match std::env::args_os().nth(2) {
        Some(built) => PathBuf::from(built),
        None => {
            say("building the program: some minutes the first time, seconds after that");
            let built = build(checkout)?;
            say(&format!("{:>7.1} s  build the program", started.elapsed().as_secs_f64()));
            built
        }
    };
    if !root::is_root()? {
        let status = root::again()?.arg("demo").arg(command).status().context("cannot run sudo")?;
        anyhow::ensure!(status.success(), "the demo failed");
        return Ok(());
    }

    let mut stage = empty_stage(checkout, command)?;
    let started = Instant::now();
    let mut report = Report::default();
    let played = story::play(&mut stage, &checkout.join("appliances/debian"), &mut report, keep);
    report.seconds = started.elapsed().as_secs_f64();
    if keep && played.is_ok() {
        say(&how_to_look_around(&stage)?);
        stage.leave_running();
    } else {
        end(&mut stage)?;
    }
    played?;
    let path = stage.path("report.json");
    std::fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
    say(&format!("{:>7.1} s  in all; the facts are in {}", report.seconds, path.display()));
    Ok(())
}

/// Builds the command and returns where it is.
fn build(checkout: &Path) -> Result<PathBuf> {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--package", "collective-cli"])
        .current_dir(checkout)
        .status()?;
    if !status.success() {
        bail!("cannot build the program");
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout.join("target"), Into::into);
    Ok(target.join("release/collective"))
}

/// Makes the stage; what an earlier demo left is ended and removed, but for downloaded packages.
fn empty_stage(checkout: &Path, command: PathBuf) -> Result<Stage> {
    let directory = checkout.join("target/demo");
    let runtime = std::env::temp_dir().join(runtime_name(checkout, root::user()?));
    Stage::set(command.clone(), directory.clone(), runtime.clone())?.end_all()?;
    let old = ["server", "a", "b", "images", "keys"].map(|name| directory.join(name));
    for path in old.iter().chain([&runtime]).filter(|path| path.exists()) {
        std::fs::remove_dir_all(path)
            .with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Stage::set(command, directory, runtime)
}

/// Ends all that runs on the stage, and takes the directory of its sockets away.
fn end(stage: &mut Stage) -> Result<()> {
    stage.close()?;
    let left = stage.processes()?;
    if !left.is_empty() {
        bail!("the processes {left:?} are left behind");
    }
    let runtime = stage.runtime("");
    std::fs::remove_dir_all(&runtime)
        .with_context(|| format!("cannot remove {}", runtime.display()))
}

/// Names the directory of the sockets: short, because the system allows 107 bytes for a socket's path, and another one
/// for each checkout and user, because a demo ends what it finds running there.
fn runtime_name(checkout: &Path, user: u32) -> String {
    // FNV-1a; a name that differs is all that is wanted.
    let user = user.to_le_bytes();
    let bytes = checkout.as_os_str().as_bytes().iter().chain(&user);
    let hash = bytes
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("collective-demo-{hash:08x}")
}

fn how_to_look_around(stage: &Stage) -> Result<String> {
    let command = stage.command().display();
    let (a, b) = (stage.host_socket("a"), stage.host_socket("b"));
    let (a, b) = (a.display(), b.display());
    let pids: Vec<String> = stage.processes()?.iter().map(u32::to_string).collect();
    Ok(format!(
        "\nEverything is still running. To look around:\n\n  \
         alias a='{command} --host {a}' b='{command} --host {b}'\n  \
         a list                                   what Ann sees on computer A\n  \
         b status debian                          and on computer B, where it runs\n  \
         b exec debian -- systemctl status nginx  inside the guest\n  \
         b versions debian                        the versions to which she can go back\n  \
         {command} user list --server {}\n\n\
         `make demo` ends all this and plays anew. To end it without that:\n\n  \
         kill {}; rm -r {}\n",
        stage.admin_server(),
        pids.join(" "),
        stage.runtime("").display()
    ))
}

impl Report {
    /// Does one step and prints its line.
    fn step(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&mut Self) -> Result<String>,
    ) -> Result<()> {
        let started = Instant::now();
        let what = work(self).with_context(|| format!("step \"{name}\""))?;
        let seconds = started.elapsed().as_secs_f64();
        say(&format!("{seconds:>7.1} s  {name}{}{what}", if what.is_empty() { "" } else { ": " }));
        self.steps.push(Step { name, seconds, what });
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "the demo is for people to watch")]
fn say(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::runtime_name;

    #[test]
    fn each_checkout_and_each_user_has_sockets_of_its_own_with_short_paths() {
        let mine = runtime_name(Path::new("/home/ann/collective"), 1000);
        assert_eq!(mine, runtime_name(Path::new("/home/ann/collective"), 1000));
        assert_ne!(mine, runtime_name(Path::new("/home/ann/other"), 1000));
        assert_ne!(mine, runtime_name(Path::new("/home/ann/collective"), 1001));
        assert!(mine.len() < 30, "{mine}");
    }
}
