//! What happens in the demo, step by step; each step checks what it claims.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::stage::{Server, Stage};

use super::Report;

/// What the administrator and Ann chose; the demo's files are its user's own.
const PASSWORD: &str = "a good long password";
/// How long the last backup may take after a stop.
const BACKLOG_LIMIT: Duration = Duration::from_secs(120);
/// The package that version 2 has and version 1 has not.
const ADDED_PACKAGE: &str = "tree";

/// Plays all of it; `keep` leaves the guest on host B running.
pub fn play(stage: &mut Stage, recipe: &Path, report: &mut Report, keep: bool) -> Result<()> {
    let server = open_school(stage, report)?;
    publish_first(stage, recipe, report)?;
    let before = use_on_a(stage, report, &server)?;
    publish_second(stage, recipe, report)?;
    start_on_b(stage, report, &server)?;
    undo_on_b(stage, report, before)?;
    bill(stage, report)?;
    if !keep {
        report.step("host B: stop", |_| {
            stage.on("b", &["stop", "debian"])?;
            stage.wait_until_safe("b", "debian", BACKLOG_LIMIT)?;
            Ok("safe to leave".to_owned())
        })?;
    }
    Ok(())
}

fn open_school(stage: &mut Stage, report: &mut Report) -> Result<Server> {
    let mut server = None;
    report.step("start a server", |_| {
        let found = stage.start_server()?;
        let shown = format!("{}, fingerprint {}…", found.url, &found.fingerprint[..23]);
        server = Some(found);
        Ok(shown)
    })?;
    report.step("create an administrator, the user ann and her group", |_| {
        let password = secret_file(stage, "password", PASSWORD)?;
        stage.admin(&["group", "add", "staff"])?;
        stage.admin(&["user", "add", "root", "--administrator", "--password-file", &password])?;
        stage.admin(&["user", "add", "ann", "--group", "staff", "--password-file", &password])?;
        Ok(String::new())
    })?;
    server.context("the server was started")
}

fn publish_first(stage: &mut Stage, recipe: &Path, report: &mut Report) -> Result<()> {
    report.step("build the appliance `debian` from Debian packages", |_| {
        build(stage, recipe, "1", &[])
    })?;
    report.step("publish version 1, with one recorded start", |report| {
        let published = publish(stage, "1")?;
        report.stored_bytes_v1 = number(&published, "stored_bytes")?;
        amounts(&published)
    })?;
    report.step("entitle the group", |_| {
        stage.admin(&["grant", "add", "debian", "staff"])?;
        Ok(String::new())
    })
}

fn use_on_a(stage: &mut Stage, report: &mut Report, server: &Server) -> Result<u64> {
    report.step("host A: log in as ann", |_| log_in(stage, "a", server))?;
    report.step("host A: start debian", |report| {
        stage.on("a", &["list"])?;
        let started = stage.on("a", &["start", "debian"])?;
        let result = &started["result"];
        report.accelerator = accelerator(stage)?;
        report.boot_seconds = decimal(result, "boot_seconds")?;
        report.fetched_share = decimal(result, "fetched_share")?;
        report.fetched_bytes_a = number(result, "fetched_bytes")?;
        ensure!(number(result, "version")? == 1, "host A started {}", result["version"]);
        ensure!(stage.guest("a", "debian", "systemctl is-active multi-user.target")? == "active");
        Ok(format!(
            "multi-user after {:.1} s ({}), {:.1}% of the disk fetched, {}",
            report.boot_seconds,
            report.accelerator,
            report.fetched_share * 100.0,
            bytes(report.fetched_bytes_a)
        ))
    })?;
    let mut before = 0;
    report.step("host A: write to /home, change /etc", |_| {
        stage.on("a", &["publish", "debian"])?;
        before = user_disk_head(stage, "a")?;
        stage.guest("a", "debian", "echo 'dear diary' > /home/diary.txt; sync")?;
        stage.guest("a", "debian", "echo broken > /etc/motd; echo gone > /etc/demo-change")?;
        Ok(format!("the user disk was at version {before}"))
    })?;
    report.step("host A: stop, wait until all is backed up", |_| {
        stage.on("a", &["stop", "debian"])?;
        let moved = stage.wait_until_safe("a", "debian", BACKLOG_LIMIT)?;
        Ok(format!("backlog 0, user disk at version {moved}"))
    })?;
    Ok(before)
}

fn publish_second(stage: &mut Stage, recipe: &Path, report: &mut Report) -> Result<()> {
    report.step("build it again with one package more", |_| {
        build(stage, recipe, "2", &[ADDED_PACKAGE])
    })?;
    report.step("publish version 2", |report| {
        let published = publish(stage, "2")?;
        report.stored_bytes_v2 = number(&published, "stored_bytes")?;
        amounts(&published)
    })
}

fn start_on_b(stage: &mut Stage, report: &mut Report, server: &Server) -> Result<()> {
    report
        .step("host B, which never ran anything: log in as ann", |_| log_in(stage, "b", server))?;
    report.step("host B: start debian", |report| {
        let started = stage.on("b", &["start", "debian"])?;
        let result = &started["result"];
        report.boot_seconds_b = decimal(result, "boot_seconds")?;
        ensure!(number(result, "version")? == 2, "host B started {}", result["version"]);
        stage.guest("b", "debian", &format!("command -v {ADDED_PACKAGE}"))?;
        ensure!(diary(stage, "b")? == "dear diary", "Ann's file is not there");
        let etc = stage.guest("b", "debian", "test -e /etc/demo-change || echo clean")?;
        ensure!(etc == "clean", "the change under /etc is still there");
        Ok(format!(
            "version 2 after {:.1} s; ann's file is there, the change under /etc is gone",
            report.boot_seconds_b
        ))
    })
}

fn undo_on_b(stage: &Stage, report: &mut Report, before: u64) -> Result<()> {
    let mut with_file = 0;
    report.step("host B: undo the user disk to before the file", |_| {
        stage.on("b", &["stop", "debian"])?;
        with_file = stage.wait_until_safe("b", "debian", BACKLOG_LIMIT)?;
        undo(stage, before)?;
        ensure!(diary(stage, "b")? == "none", "the file is still there");
        Ok(format!("from version {with_file} to {before}, the file is gone"))
    })?;
    report.step("host B: undo the undo", |_| {
        stage.on("b", &["stop", "debian"])?;
        stage.wait_until_safe("b", "debian", BACKLOG_LIMIT)?;
        undo(stage, with_file)?;
        ensure!(diary(stage, "b")? == "dear diary", "the file did not come back");
        Ok(format!("to version {with_file}, the file is back"))
    })
}

fn undo(stage: &Stage, to: u64) -> Result<()> {
    stage.on("b", &["undo", "debian", "--to", &to.to_string(), "--yes"])?;
    stage.on("b", &["start", "debian"])?;
    Ok(())
}

fn bill(stage: &Stage, report: &mut Report) -> Result<()> {
    report.step("the bill", |report| {
        let status = stage.on("b", &["status"])?;
        report.fetched_bytes_b = number(&status["cache"], "fetched_bytes")?;
        Ok(format!(
            "version 2 took {} beyond version 1's {}; host B fetched {}",
            bytes(report.stored_bytes_v2),
            bytes(report.stored_bytes_v1),
            bytes(report.fetched_bytes_b)
        ))
    })
}

fn build(stage: &Stage, recipe: &Path, version: &str, packages: &[&str]) -> Result<String> {
    let output = stage.path(&format!("images/{version}"));
    let downloads = stage.path("downloads");
    let (recipe, output) = (recipe.to_string_lossy(), output.to_string_lossy());
    let downloads = downloads.to_string_lossy();
    let mut words = vec!["appliance", "build", &recipe, "--output", &output];
    words.extend(["--downloads", &downloads, "--version-text", version]);
    for package in packages {
        words.extend(["--package", package]);
    }
    let outcome = stage.run(&words)?;
    ensure!(outcome.code == 0, "{}{}", outcome.last(), outcome.stderr);
    let built = outcome.last();
    let system = built["system"].as_str().context("where the system disk is")?;
    let disk = std::fs::metadata(system)?;
    let held = disk.blocks() * 512;
    Ok(format!("{} of data on a disk of {}", bytes(held), bytes(disk.len())))
}

fn publish(stage: &Stage, version: &str) -> Result<Value> {
    let built = stage.path(&format!("images/{version}"));
    let keys = stage.path("admin");
    let (built, keys) = (built.to_string_lossy(), keys.to_string_lossy());
    stage.admin(&["appliance", "publish", "debian", "--built", &built, "--keys", &keys])
}

/// Writes what only its owner may read; returns the path.
fn secret_file(stage: &Stage, name: &str, secret: &str) -> Result<String> {
    let path = stage.path(name);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(secret.as_bytes())?;
    path.into_os_string().into_string().ok().context("the demo's directory is not UTF-8")
}

fn log_in(stage: &mut Stage, host: &str, server: &Server) -> Result<String> {
    stage.start_host(host)?;
    let token = stage.admin(&["token", "create", "--note", host])?;
    let secret = token["secret"].as_str().context("the token's secret")?;
    let file = secret_file(stage, "token", secret)?;
    let password = secret_file(stage, "password", PASSWORD)?;
    let name = format!("computer-{host}");
    let mut words = vec!["join", server.url.as_str(), "--fingerprint", &server.fingerprint];
    words.extend(["--name", &name, "--token-file", &file]);
    stage.on(host, &words)?;
    stage.on(host, &["login", "ann", "--password-file", &password])?;
    Ok(name)
}

fn diary(stage: &Stage, host: &str) -> Result<String> {
    stage.guest(host, "debian", "cat /home/diary.txt 2>/dev/null || echo none")
}

fn user_disk_head(stage: &Stage, host: &str) -> Result<u64> {
    number(&stage.on(host, &["status", "debian"])?["user_disk"], "version")
}

fn accelerator(stage: &Stage) -> Result<String> {
    let status = stage.on("a", &["status"])?;
    Ok(status["accelerator"]["name"].as_str().context("the accelerator")?.to_owned())
}

fn amounts(published: &Value) -> Result<String> {
    Ok(format!(
        "{} read, {} stored",
        bytes(number(published, "read_bytes")?),
        bytes(number(published, "stored_bytes")?)
    ))
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name].as_u64().with_context(|| format!("no number `{name}` in {value}"))
}

fn decimal(value: &Value, name: &str) -> Result<f64> {
    value[name].as_f64().with_context(|| format!("no number `{name}` in {value}"))
}

fn bytes(count: u64) -> String {
    format!("{:.1} MB", count as f64 / 1e6)
}
