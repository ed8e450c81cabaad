//! Carries out the plan of a build: steps in their order, told to a monitor by name.
//!
//! Everything is made beside its destination and moved there whole at the end; a build that fails or is
//! dropped leaves nothing but downloaded packages, which the next one takes up. Building needs root, for the files
//! of a system belong to it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use collective_model::{Error, ErrorKind, Hardware, IoResultExt, Result, ResultExt};
use serde::{Deserialize, Serialize};

use super::boot;
use super::plan::{Action, Additions, Places, Plan};
use super::recipe::{Recipe, check_packages};
use super::tool::{Ended, Tool};

/// The file that says what a directory of disks is for.
const APPLIANCE_FILE: &str = "appliance.json";
/// Downloaded packages that no build wanted for this long are removed.
const DOWNLOADS_KEPT: Duration = Duration::from_secs(60 * 24 * 3600);
/// Archive areas that are part of a Debian suite; others of a host (a vendor's) are not for appliances.
const AREAS: [&str; 3] = ["", "-updates", "-security"];

/// What a build adds to its recipe.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Packages beside those of the recipe.
    pub extra_packages: Vec<String>,
    /// What the guest finds in `/etc/appliance-version`.
    pub version_text: String,
    /// A directory that keeps downloaded packages for the next build.
    pub downloads: Option<PathBuf>,
}

/// One step of a build, as people are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildStep<'a> {
    /// From 1.
    pub number: usize,
    /// Steps in all.
    pub count: usize,
    /// What is being done.
    pub name: &'a str,
    /// What the tool says of it at the moment; may be empty.
    pub detail: &'a str,
}

/// Is told which step a build is at.
pub trait BuildMonitor: Send + Sync {
    /// Takes the step that begins, or goes on with another detail.
    fn step(&self, step: BuildStep<'_>);
}

/// A monitor that nobody looks at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl BuildMonitor for Unwatched {
    fn step(&self, _: BuildStep<'_>) {}
}

/// An appliance that was built: raw disks in a directory, ready to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltAppliance {
    /// The system disk.
    pub system: PathBuf,
    /// The empty user disk, if the appliance has one.
    pub user: Option<PathBuf>,
    /// The machine that it is made for.
    pub hardware: Hardware,
}

/// What `appliance.json` says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApplianceFile {
    system: String,
    user: Option<String>,
    hardware: Hardware,
}

impl BuiltAppliance {
    /// Opens the directory that a build wrote.
    ///
    /// # Errors
    /// `NotFound` or `Invalid` if it is none.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(APPLIANCE_FILE);
        let told = || format!("{} is not the directory of a built appliance", dir.display());
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::new(ErrorKind::NotFound, told())
                    .with_source(format!("it has no `{APPLIANCE_FILE}`"))
                    .with_hint("`collective appliance build RECIPE --output DIR` makes one"));
            }
            read => read.or_io(told)?,
        };
        let file: ApplianceFile =
            serde_json::from_slice(&text).or_error(ErrorKind::Invalid, told)?;
        file.hardware.check()?;
        let built = Self {
            system: dir.join(plain(&file.system, told)?),
            user: file
                .user
                .map(|name| plain(&name, told).map(|name| dir.join(name)))
                .transpose()?,
            hardware: file.hardware,
        };
        for disk in std::iter::once(&built.system).chain(&built.user) {
            std::fs::metadata(disk).or_io(|| format!("cannot open {}", disk.display()))?;
        }
        Ok(built)
    }
}

fn plain(name: &str, told: impl Fn() -> String) -> Result<String> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(Error::new(ErrorKind::Invalid, told()));
    }
    Ok(name.to_owned())
}

/// Builds `recipe` into `out_dir`, which is made if need be: `system.raw`, `user.raw` and `appliance.json`.
///
/// # Errors
/// `Invalid` for what the recipe or the options ask wrongly; `Denied` without root; `Unavailable` for missing
/// tools, a full disk or an archive that cannot be reached.
pub async fn build(
    recipe: &Recipe,
    options: &BuildOptions,
    out_dir: &Path,
    watch: &dyn BuildMonitor,
) -> Result<BuiltAppliance> {
    check_packages(&options.extra_packages)?;
    check_version_text(&options.version_text)?;
    if !rustix::process::geteuid().is_root() {
        return Err(Error::new(ErrorKind::Denied, "building an appliance needs root")
            .with_hint("run it with sudo"));
    }
    let out_dir = made(out_dir)?;
    let downloads = options.downloads.as_deref().map(made).transpose()?;
    let recipe = Recipe {
        dir: std::path::absolute(&recipe.dir)
            .or_io(|| format!("cannot find {}", recipe.dir.display()))?,
        text: recipe.text.clone(),
    };
    let work = tempfile::Builder::new()
        .prefix(".build-")
        .tempdir_in(&out_dir)
        .or_io(|| format!("cannot make a directory in {}", out_dir.display()))?;
    let disks = work.path().join("disks");
    made(&disks)?;
    let sources = sources(&recipe.text.suite).await;
    let proxy = proxy().await;
    let plan = Plan::new(
        &recipe,
        &Places { work: work.path(), out: &disks, downloads: downloads.as_deref() },
        &Additions {
            packages: &options.extra_packages,
            version_text: &options.version_text,
            sources: &sources,
            proxy: proxy.as_deref(),
        },
    );
    execute(&plan, watch).await?;
    if let Some(downloads) = &downloads {
        forget_old(downloads);
    }
    deliver(&recipe, &disks, &out_dir)
}

fn check_version_text(text: &str) -> Result<()> {
    if text.len() <= 128 && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, "the version text must be one line of at most 128 bytes"))
}

fn made(dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).or_io(|| format!("cannot make {}", dir.display()))?;
    dir.canonicalize().or_io(|| format!("cannot find {}", dir.display()))
}

async fn execute(plan: &Plan, watch: &dyn BuildMonitor) -> Result<()> {
    let count = plan.steps.len();
    for (index, step) in plan.steps.iter().enumerate() {
        let tell = |detail: &str| {
            watch.step(BuildStep { number: index + 1, count, name: step.name, detail });
        };
        tell("");
        let told = || format!("cannot make the {}", step.name);
        match &step.action {
            Action::Run(tool) => run(tool, &told(), &tell).await?,
            Action::Write { path, text } => write(path, text)
                .or_io(|| format!("cannot write {}", path.display()))
                .map_err(|error| error.context(told()))?,
            Action::Disk { path, size_bytes } => {
                File::create_new(path).and_then(|file| file.set_len(*size_bytes)).or_io(told)?
            }
            Action::Boot(files) => boot::install(files)?,
        }
    }
    Ok(())
}

async fn run(tool: &Tool, message: &str, tell: &(dyn Fn(&str) + Sync)) -> Result<()> {
    // Only mmdebstrap talks of its progress; each such line begins alike.
    let mut hear = |line: &str| {
        if let Some(detail) = line.strip_prefix("I: ") {
            tell(detail);
        }
    };
    let ended = tool.run(&mut hear).await?;
    if ended.code == Some(0) {
        return Ok(());
    }
    Err(failure(tool, &ended, message))
}

/// Tells apart what the caller asked wrongly, what is not there now, and what we did wrong.
fn failure(tool: &Tool, ended: &Ended, message: &str) -> Error {
    let said = |texts: &[&str]| texts.iter().any(|text| ended.complaint.contains(text));
    if said(&["command not found", "failed to execute mmdebstrap"]) {
        return tool
            .failed(ended, ErrorKind::Unavailable, message)
            .with_hint("apt-get install mmdebstrap");
    }
    if said(&["Unable to locate package", "has no installation candidate"]) {
        return tool
            .failed(ended, ErrorKind::Invalid, message)
            .with_hint("a package of the recipe, or of --package, does not exist in its suite");
    }
    if said(&["Could not allocate block", "ext4 is too small", "No free space"]) {
        return tool
            .failed(ended, ErrorKind::Invalid, message)
            .with_hint("raise system.size_mib in the recipe");
    }
    if said(&["Temporary failure resolving", "Failed to fetch", "Could not connect", "timed out"]) {
        return tool
            .failed(ended, ErrorKind::Unavailable, message)
            .with_hint("the Debian archive cannot be reached");
    }
    tool.failed(ended, ErrorKind::Internal, message)
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(path, text)
}

/// Moves the disks to their place; the file that names them comes last.
fn deliver(recipe: &Recipe, disks: &Path, out_dir: &Path) -> Result<BuiltAppliance> {
    let file = ApplianceFile {
        system: "system.raw".to_owned(),
        user: recipe.text.user.as_ref().map(|_| "user.raw".to_owned()),
        hardware: recipe.text.hardware.clone(),
    };
    let text = serde_json::to_vec_pretty(&file)
        .or_error(ErrorKind::Internal, || format!("cannot write {APPLIANCE_FILE}"))?;
    let told = || format!("cannot write to {}", out_dir.display());
    let kept = disks.join(APPLIANCE_FILE);
    File::create(&kept).and_then(|mut file| file.write_all(&text)).or_io(told)?;
    let names = std::iter::once(file.system.as_str()).chain(file.user.as_deref());
    for name in names.chain([APPLIANCE_FILE]) {
        let disk = disks.join(name);
        File::open(&disk).and_then(|file| file.sync_all()).or_io(told)?;
        std::fs::rename(&disk, out_dir.join(name)).or_io(told)?;
    }
    File::open(out_dir).and_then(|dir| dir.sync_all()).or_io(told)?;
    BuiltAppliance::open(out_dir)
}

/// Returns where the host itself gets the suite from, or Debian's own addresses.
async fn sources(suite: &str) -> Vec<String> {
    let tool = Tool::new("apt-get", "apt").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
    ]);
    let listed = tool.expect(ErrorKind::Internal, "cannot list sources").await.unwrap_or_default();
    let found = lines_of_suite(&String::from_utf8_lossy(&listed), suite);
    if !found.is_empty() {
        return found;
    }
    vec![
        format!("deb http://deb.debian.org/debian {suite} main"),
        format!("deb http://deb.debian.org/debian {suite}-updates main"),
        format!("deb http://deb.debian.org/debian-security {suite}-security main"),
    ]
}

fn lines_of_suite(listed: &str, suite: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in listed.lines() {
        let [address, release, "main"] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
        let line = format!("deb {address} {release} main");
        let belongs = release.strip_prefix(suite).is_some_and(|area| AREAS.contains(&area));
        if belongs && !lines.contains(&line) {
            lines.push(line);
        }
    }
    // A host with a vendor's archive of the same name only has nothing to build from.
    if lines.iter().any(|line| line.ends_with(&format!(" {suite} main"))) {
        lines
    } else {
        Vec::new()
    }
}

async fn proxy() -> Option<String> {
    let tool = Tool::new("apt-config", "apt").args(["shell", "proxy", "Acquire::http::Proxy"]);
    let said = tool.expect(ErrorKind::Internal, "cannot read the proxy").await.ok()?;
    let said = String::from_utf8(said).ok()?;
    let proxy = said.trim().strip_prefix("proxy='")?.strip_suffix('\'')?;
    (!proxy.is_empty() && !proxy.contains(['"', '\''])).then(|| proxy.to_owned())
}

/// Removes what no build wanted for long; a failure costs room only.
fn forget_old(downloads: &Path) {
    let Ok(entries) = std::fs::read_dir(downloads) else { return };
    for entry in entries.flatten() {
        let age = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok());
        let package = entry.path().extension().is_some_and(|extension| extension == "deb");
        if package && age.is_some_and(|age| age > DOWNLOADS_KEPT) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::lines_of_suite;

    #[test]
    fn only_debians_own_areas_of_the_suite_are_used() {
        let listed = "http://d/debian/ bookworm main\nhttp://d/debian/ bookworm contrib\n\
                      http://d/security/ bookworm-security main\nhttp://p/ bookworm-pgdg main\n\
                      http://d/debian/ trixie main\nhttp://d/debian/ bookworm main\n";
        assert_eq!(
            lines_of_suite(listed, "bookworm"),
            ["deb http://d/debian/ bookworm main", "deb http://d/security/ bookworm-security main"]
        );
        assert!(lines_of_suite("http://p/ bookworm-pgdg main\n", "bookworm").is_empty());
    }
}
