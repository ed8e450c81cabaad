//! The memory of a host's daemon that has much to do: an appliance of 100 GB held whole, four guests on its disks.
//!
//! A server, an administrator, a user and a computer, played with the built command. The held disk has a quarter of a
//! million runs of a block each, evenly scattered; the guests are the small appliance of the tests.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use collective_vm::image;
use serde_json::json;
use xtask::stage::Stage;

use crate::boot::private_directory;
use crate::report::{Report, Row, say};
use crate::sample::Sample;
use crate::scene::{Scene, chain};

const HOST: &str = "a";
const PASSWORD: &str = "correct horse battery staple";
const GUESTS: [&str; 4] = ["one", "two", "three", "four"];
const BLOCK_BYTES: u64 = collective_model::BLOCK_BYTES;
/// 100 GB in whole blocks.
const DISK_BLOCKS: u64 = 24_414_063;
const RUNS: u64 = 1 << 18;
/// How often, and how far apart, the daemon is looked at once everything runs.
const LOOKS: usize = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// Plays, looks and reports.
pub async fn measure(scene: &Scene, report: &mut Report) -> Result<()> {
    let command = std::env::current_exe()?.with_file_name("collective");
    ensure!(command.exists(), "{} is not built: `make bench` builds it", command.display());
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../appliances/tiny");
    let tiny =
        image::build_cached(&recipe, &scene.directory.join("images")).await.map_err(chain)?;
    let tiny = tiny.system.parent().context("no parent")?.to_owned();
    let (directory, sockets) = (scene.fresh("host")?, private_directory()?);
    let mut stage = Stage::set(command, directory.clone(), sockets.path().to_owned())?;
    set(scene, &mut stage, &tiny)?;
    stage.on(HOST, &["hold", "huge"])?;
    let held = resident(&stage)?;
    for guest in GUESTS {
        stage.on(HOST, &["start", guest])?;
    }
    let mut megabytes = Sample::default();
    for _ in 0..LOOKS {
        megabytes.push(resident(&stage)?.0);
        tokio::time::sleep(PAUSE).await;
    }
    say(&format!(
        "the daemon had {:.0} MB when all was held, and {:.0} MB at its largest",
        held.0,
        resident(&stage)?.1
    ));
    stage.close()?;
    std::fs::remove_dir_all(directory)?;
    report.add(Row { id: "host.rss", unit: "MB", goal: "<= 150" }, &megabytes, &[]);
    Ok(())
}

/// Publishes everything, and logs ann in on a computer.
fn set(scene: &Scene, stage: &mut Stage, tiny: &Path) -> Result<()> {
    let server = stage.start_server()?;
    let text = |path: PathBuf| path.display().to_string();
    let (password, keys) = (text(stage.path("password")), text(stage.path("keys")));
    std::fs::write(&password, PASSWORD)?;
    stage.admin(&["group", "add", "staff"])?;
    let user = ["user", "add", "ann", "--group", "staff", "--password-file", &password];
    stage.admin(&user)?;
    let huge = huge(scene, stage)?;
    for (name, built) in GUESTS.iter().map(|name| (*name, tiny)).chain([("huge", &*huge)]) {
        let built = built.display().to_string();
        let publish = ["appliance", "publish", name, "--built", &built, "--keys", &keys];
        stage.admin(&[&publish[..], &["--no-record"]].concat())?;
        stage.admin(&["grant", "add", name, "staff"])?;
    }
    std::fs::remove_dir_all(huge)?;
    stage.start_host(HOST)?;
    let join = ["join", &server.url, "--fingerprint", &server.fingerprint, "--name", HOST];
    stage.on(HOST, &join)?;
    stage.on(HOST, &["login", "ann", "--password-file", &password])?;
    Ok(())
}

/// Makes an appliance that is large and was never built: blocks of the `debian` disk, each made different.
fn huge(scene: &Scene, stage: &Stage) -> Result<PathBuf> {
    let directory = stage.path("huge");
    std::fs::create_dir_all(&directory)?;
    let hardware = &scene.appliance.hardware;
    let text = json!({ "system": "system.raw", "user": null, "hardware": hardware });
    std::fs::write(directory.join("appliance.json"), text.to_string())?;
    let disk = File::create(directory.join("system.raw"))?;
    disk.set_len(DISK_BLOCKS * BLOCK_BYTES)?;
    let blocks = stage.path("blocks");
    crate::open::write_blocks(&scene.appliance.system, &blocks, RUNS)?;
    let from = File::open(&blocks)?;
    let mut block = vec![0; BLOCK_BYTES as usize];
    for run in 0..RUNS {
        from.read_exact_at(&mut block, run * BLOCK_BYTES)?;
        disk.write_all_at(&block, run * (DISK_BLOCKS / RUNS) * BLOCK_BYTES)?;
    }
    std::fs::remove_file(blocks)?;
    Ok(directory)
}

/// The memory of the daemon in MB: resident now, and at most so far.
fn resident(stage: &Stage) -> Result<(f64, f64)> {
    let runtime = stage.runtime(HOST).display().to_string();
    let is_daemon = |pid: &u32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        let mut words = arguments.split('\0');
        words.any(|word| word == "host") && words.any(|word| word == runtime)
    };
    let pid = stage.processes()?.into_iter().find(is_daemon).context("no daemon runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let figure = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        Ok(kilobytes.with_context(|| format!("no {name} in a status"))?.parse::<f64>()? / 1e3
            * 1.024)
    };
    Ok((figure("VmRSS:")?, figure("VmHWM:")?))
}
