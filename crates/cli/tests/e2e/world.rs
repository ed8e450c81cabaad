//! A world for one test: a server with the appliance `tiny` and the user ann, and as many computers as it wants.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use collective_vm::image::build_cached;
use serde_json::Value;
use tempfile::TempDir;
use xtask::stage::{Outcome, Server, Stage};

/// Ann's password; the tests look for it where it must not be.
pub const PASSWORD: &str = "correct horse battery staple";
/// How long anything that must happen may take: emulated guests on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// A server, computers, and what is typed on them.
pub struct World {
    pub stage: Stage,
    pub server: Server,
    /// Where `tiny` was built.
    built: PathBuf,
    /// Removed after the stage has ended what runs in it: fields are dropped in order.
    _directory: TempDir,
}

impl World {
    /// Makes a world in which ann may start `tiny`, whose version 1 is published.
    pub fn new() -> Self {
        let mut world = Self::without_appliance();
        world.publish_tiny("1");
        world.stage.admin(&["grant", "add", "tiny", "staff"]).unwrap();
        world
    }

    /// Makes a world with a server and ann, and no appliance.
    pub fn without_appliance() -> Self {
        let directory = tempfile::Builder::new().prefix("ce2e").tempdir().unwrap();
        Self::within(directory)
    }

    /// Makes a world in a directory of the test's choice.
    pub fn within(directory: TempDir) -> Self {
        let command = PathBuf::from(env!("CARGO_BIN_EXE_collective"));
        let path = directory.path();
        let mut stage = Stage::set(command, path.to_owned(), path.join("r")).unwrap();
        let server = stage.start_server().unwrap();
        let world = Self { stage, server, built: tiny(), _directory: directory };
        std::fs::write(world.path("password"), PASSWORD).unwrap();
        world.stage.admin(&["group", "add", "staff"]).unwrap();
        let password = world.text("password");
        world
            .stage
            .admin(&["user", "add", "ann", "--group", "staff", "--password-file", &password])
            .unwrap();
        world
    }

    /// A path in the world's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.stage.path(name)
    }

    /// A path in the world's directory, as an argument.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Where `tiny` is built, as an argument.
    pub fn built(&self) -> String {
        self.built.to_str().unwrap().to_owned()
    }

    /// Publishes `tiny` with another text in `/etc/appliance-version`; returns what the command said.
    pub fn publish_tiny(&mut self, version: &str) -> Value {
        self.publish_as("tiny", version)
    }

    /// Publishes the same disks under another name.
    pub fn publish_as(&mut self, name: &str, version: &str) -> Value {
        self.publish(name, version, &[])
    }

    /// Publishes `tiny` without a boot trace: every read of a start has to wait for the server.
    pub fn publish_without_trace(&mut self) {
        self.publish_without_trace_as("tiny");
    }

    /// Publishes `tiny` under another name, without a boot trace.
    pub fn publish_without_trace_as(&mut self, name: &str) {
        self.publish(name, "1", &["--no-record"]);
        self.stage.admin(&["grant", "add", name, "staff"]).unwrap();
    }

    fn publish(&mut self, name: &str, version: &str, more: &[&str]) -> Value {
        let directory = match version {
            "1" => self.built.clone(),
            other => self.build(&recipe(), other),
        };
        self.publish_built(name, &directory, more)
    }

    /// Publishes what a recipe makes as `tiny`, which ann may start.
    pub fn publish_recipe(&mut self, recipe: &Path) -> Value {
        let directory = self.build(recipe, "1");
        let published = self.publish_built("tiny", &directory, &[]);
        self.stage.admin(&["grant", "add", "tiny", "staff"]).unwrap();
        published
    }

    /// Publishes what [`publish_recipe`](Self::publish_recipe) made once more.
    pub fn publish_again(&mut self, more: &[&str]) -> Value {
        let directory = self.path("tiny-1");
        self.publish_built("tiny", &directory, more)
    }

    fn publish_built(&mut self, name: &str, directory: &Path, more: &[&str]) -> Value {
        let (built, keys) = (directory.to_str().unwrap().to_owned(), self.text("keys"));
        let words = ["appliance", "publish", name, "--built", &built, "--keys", &keys];
        self.stage.admin(&[&words, more].concat()).unwrap()
    }

    fn build(&self, recipe: &Path, version: &str) -> PathBuf {
        let output = self.path(&format!("tiny-{version}"));
        let downloads = cache().join("downloads");
        let words = [
            "appliance",
            "build",
            recipe.to_str().unwrap(),
            "--output",
            output.to_str().unwrap(),
            "--downloads",
            downloads.to_str().unwrap(),
            "--version-text",
            version,
        ];
        let outcome = self.stage.run(&words).unwrap();
        assert_eq!(outcome.code, 0, "{} {}", outcome.last(), outcome.stderr);
        output
    }

    /// Starts the daemon of a computer, ties it to the server and logs ann in.
    pub fn computer(&mut self, host: &str) {
        self.stage.start_host(host).unwrap();
        self.log_in(host);
    }

    /// Starts the server where it was, with further options.
    pub fn server_again(&mut self, more: &[&str]) {
        let address = self.server.url.strip_prefix("https://").unwrap().to_owned();
        self.stage.stop_daemon("server").unwrap();
        self.server = self.stage.start_server_with(&address, more).unwrap();
    }

    /// Ties a computer to the server and logs ann in.
    pub fn log_in(&self, host: &str) {
        let (url, fingerprint) = (self.server.url.clone(), self.server.fingerprint.clone());
        let words = ["join", &url, "--fingerprint", &fingerprint, "--name", host];
        self.stage.on(host, &words).unwrap();
        let password = self.text("password");
        self.stage.on(host, &["login", "ann", "--password-file", &password]).unwrap();
    }

    /// Starts `tiny` and waits until its agent answers; returns the operation's result.
    pub fn start(&self, host: &str) -> Value {
        self.stage.on(host, &["start", "tiny"]).unwrap()["result"].clone()
    }

    /// Stops `tiny` and waits until all is backed up; returns the version of the user disk.
    pub fn stop(&self, host: &str) -> u64 {
        self.stage.on(host, &["stop", "tiny"]).unwrap();
        self.stage.wait_until_safe(host, "tiny", LIMIT).unwrap()
    }

    /// Runs a shell line in the guest.
    pub fn guest(&self, host: &str, line: &str) -> String {
        self.stage.guest(host, "tiny", line).unwrap()
    }

    /// Writes a file to the user disk, durably as far as the guest can tell.
    pub fn write(&self, host: &str, name: &str, text: &str) {
        self.guest(host, &format!("echo {text} > /home/{name} && sync"));
    }

    /// Reads a file of the user disk; `-` if it is not there.
    pub fn read(&self, host: &str, name: &str) -> String {
        self.guest(host, &format!("cat /home/{name} 2>/dev/null || echo -"))
    }

    /// The status of `tiny` on a computer.
    pub fn status(&self, host: &str) -> Value {
        self.stage.on(host, &["status", "tiny"]).unwrap()
    }

    /// Waits until the status of `tiny` is as wanted.
    pub fn wait_for(&self, host: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait_for_appliance(host, "tiny", what, wanted)
    }

    /// Waits until the status of an appliance is as wanted.
    pub fn wait_for_appliance(
        &self,
        host: &str,
        appliance: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let limit = Instant::now() + LIMIT;
        loop {
            let status = self.stage.on(host, &["status", appliance]).unwrap();
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < limit, "never {what}: {status}");
            std::thread::sleep(POLL);
        }
    }

    /// Waits until the host's own status is as wanted.
    pub fn wait_for_host(&self, host: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let limit = Instant::now() + LIMIT;
        loop {
            let outcome = self.stage.try_on(host, &["status"]).unwrap();
            let status = outcome.lines.iter().find(|line| line["type"] == "host");
            match status {
                Some(status) if wanted(status) => return status.clone(),
                _ => assert!(Instant::now() < limit, "never {what}: {:?}", outcome.lines),
            }
            std::thread::sleep(POLL);
        }
    }

    /// The process id of the guest on a computer.
    pub fn guest_pid(&self, host: &str) -> Option<u32> {
        let mark = format!("{}/", self.stage.runtime(host).display());
        self.stage.processes().unwrap().into_iter().find(|pid| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments);
            arguments.contains("qemu-system") && arguments.contains(&mark)
        })
    }
}

/// Sends a signal to one process.
pub fn signal(pid: u32, name: &str) {
    std::process::Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status()
        .unwrap();
}

/// What a refused command said: its exit code, and message and hint together.
pub fn refusal(outcome: &Outcome) -> (i32, String) {
    assert_ne!(outcome.code, 0, "was not refused: {:?}", outcome.lines);
    let said: Vec<String> = outcome.lines.iter().map(ToString::to_string).collect();
    (outcome.code, format!("{} {}", said.join(" "), outcome.stderr))
}

/// The directory of `tiny`'s disks, built now unless an earlier run did.
fn tiny() -> PathBuf {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let built = runtime.block_on(build_cached(&recipe(), &cache())).unwrap();
    built.system.parent().unwrap().to_owned()
}

/// Where the recipe of `tiny` is.
pub fn recipe() -> PathBuf {
    root().join("appliances/tiny")
}

fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("appliances")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().and_then(Path::parent).unwrap()
}
