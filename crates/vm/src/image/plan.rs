//! From a recipe to the steps that make its disks: pure, nothing left to decide.
//!
//! The system disk is a GPT with a BIOS boot partition, which holds GRUB's core image, and one ext4 partition;
//! the user disk is one ext4 file system without a table. Every name and number that a tool would choose
//! by chance (UUIDs, hash seeds, times, the order of files) is fixed here, so that two builds of one recipe share their
//! blocks. The system is assembled in a directory and written by `mke2fs -d`: no loop device, no mount.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::boot::BootFiles;
use super::recipe::{Method, Recipe, UserDisk};
use super::tool::Tool;

/// Where the first ext4 partition begins: aligned for every disk there is.
pub const SYSTEM_OFFSET_BYTES: u64 = 1 << 20;
/// The time that all files and file systems carry: 2023-06-10, the day of bookworm.
const EPOCH: u64 = 1_686_355_200;
/// UUIDs: any constant does; the disks of one machine only have to differ.
const TABLE_UUID: &str = "c011ec71-0000-4000-8000-000000000001";
const BOOT_UUID: &str = "c011ec71-0000-4000-8000-000000000002";
const PARTITION_UUID: &str = "c011ec71-0000-4000-8000-000000000003";
const SYSTEM_UUID: &str = "c011ec71-0000-4000-8000-000000000004";
const USER_UUID: &str = "c011ec71-0000-4000-8000-000000000005";
/// Sectors at both ends of a disk that belong to its GPT.
const TABLE_SECTORS: u64 = 34;
/// What ext4 is made with, told in full so that no configuration of the host has a say.
const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,\
                        sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// Journals in MiB: a system disk is thrown away at every start, and a user disk's journal is backed up with it.
const JOURNAL_MIB: u64 = 8;
/// Disks below this size get a journal of the least size, 4 MiB.
const SMALL_DISK_MIB: u64 = 512;

/// What is decided about one build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in their order.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What people are told.
    pub name: &'static str,
    /// What is done.
    pub action: Action,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Runs a tool.
    Run(Tool),
    /// Writes a small text file.
    Write {
        /// Where.
        path: PathBuf,
        /// What.
        text: String,
    },
    /// Makes an empty sparse disk.
    Disk {
        /// Where.
        path: PathBuf,
        /// How large.
        size_bytes: u64,
    },
    /// Writes the boot loader into the boot sector and the BIOS boot partition.
    Boot(BootFiles),
}

/// The directories of one build.
#[derive(Clone, Debug)]
pub struct Places<'a> {
    /// Holds what is thrown away at the end.
    pub work: &'a Path,
    /// Where the disks go.
    pub out: &'a Path,
    /// Keeps downloaded packages from one build to the next.
    pub downloads: Option<&'a Path>,
}

/// What a build adds to its recipe.
#[derive(Clone, Debug, Default)]
pub struct Additions<'a> {
    /// More packages.
    pub packages: &'a [String],
    /// What `/etc/appliance-version` says.
    pub version_text: &'a str,
    /// Where packages come from: lines as in `sources.list`.
    pub sources: &'a [String],
    /// The proxy for HTTP, if the host uses one.
    pub proxy: Option<&'a str>,
}

impl Plan {
    /// Plans the build of `recipe`.
    #[must_use]
    pub fn new(recipe: &Recipe, places: &Places<'_>, additions: &Additions<'_>) -> Self {
        let root = places.work.join("root");
        let tree = match recipe.text.method {
            Method::Install => root.clone(),
            Method::Unpack => root.join("system"),
        };
        let system = places.out.join("system.raw");
        let mut steps = overlay(recipe, places, additions);
        steps.push(Step {
            name: "packages",
            action: Action::Run(bootstrap(recipe, places, additions, &root)),
        });
        steps.extend(system_disk(recipe, places, &tree, &system));
        if let Some(user) = &recipe.text.user {
            steps.extend(user_disk(user, &places.out.join("user.raw")));
        }
        Self { steps }
    }
}

/// The files that a build lays over every system, beside those of its recipe.
fn overlay(recipe: &Recipe, places: &Places<'_>, additions: &Additions<'_>) -> Vec<Step> {
    // The root is mounted as it shall be by the kernel's command line; a line here would mount it once more.
    let fstab = recipe.text.user.as_ref().map_or_else(String::new, |user| {
        format!("LABEL={} {} ext4 noatime,discard 0 0\n", user.label, user.mount)
    });
    let etc = places.work.join("overlay/etc");
    let write = |name: &str, text: String| Step {
        name: "settings",
        action: Action::Write { path: etc.join(name), text },
    };
    vec![write("fstab", fstab), write("appliance-version", format!("{}\n", additions.version_text))]
}

/// The call that makes the tree of files.
///
/// It has name spaces of its own: when it is killed, its mounts and all that it started go with it.
fn bootstrap(recipe: &Recipe, places: &Places<'_>, additions: &Additions<'_>, root: &Path) -> Tool {
    let text = &recipe.text;
    let packages: Vec<&str> =
        text.packages.iter().chain(additions.packages).map(String::as_str).collect();
    let variant = match text.method {
        Method::Install => "apt",
        Method::Unpack => "extract",
    };
    let mut tool = Tool::new("unshare", "util-linux")
        .args(["--mount", "--pid", "--fork", "--kill-child", "mmdebstrap", "--mode=root"])
        .args(["--format=directory", "--architectures=amd64"])
        .arg(format!("--variant={variant}"))
        .arg(format!("--include={}", packages.join(",")))
        .args(["--dpkgopt=force-unsafe-io", "--dpkgopt=force-confold", "--dpkgopt=force-confdef"])
        .args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=Acquire::Retries \"3\""])
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string());
    if let Some(proxy) = additions.proxy {
        tool = tool.arg(format!("--aptopt=Acquire::http::Proxy \"{proxy}\""));
    }
    tool.args(hooks(recipe, places)).arg(&text.suite).arg(root).args(additions.sources)
}

/// What happens to the tree while it is made: downloads in, files over it, downloads out, the script.
fn hooks(recipe: &Recipe, places: &Places<'_>) -> Vec<OsString> {
    let overlay = places.work.join("overlay");
    let files = recipe.files();
    let trees: Vec<&Path> = files.as_deref().into_iter().chain([overlay.as_path()]).collect();
    let lay_over = |when: &str| hook(when, LAY_OVER, &trees);
    let late = match recipe.text.method {
        Method::Install => "--customize-hook",
        Method::Unpack => "--extract-hook",
    };
    let mut hooks = Vec::new();
    hooks.extend(places.downloads.map(|dir| hook("--setup-hook", TAKE_DOWNLOADS, &[dir])));
    if recipe.text.method == Method::Install {
        // Packages that write files of their own on being configured find the settings there.
        hooks.push(lay_over("--essential-hook"));
    }
    hooks.extend(places.downloads.map(|dir| hook(late, KEEP_DOWNLOADS, &[dir])));
    hooks.push(lay_over(late));
    hooks.extend(recipe.script().map(|script| hook(late, RUN_INSIDE, &[&script])));
    hooks
}

/// Shell texts: each gets the system's tree as `$root`, and the paths that [`hook`] gives it as `$@`.
const TAKE_DOWNLOADS: &str = r#"mkdir -p "$root/var/cache/apt/archives"
find "$1" -maxdepth 1 -name '*.deb' -exec cp -t "$root/var/cache/apt/archives" {} +"#;
const KEEP_DOWNLOADS: &str = r#"for deb in "$root"/var/cache/apt/archives/*.deb; do
  kept="$1/${deb##*/}"
  if [ -e "$kept" ]; then touch "$kept"; else cp "$deb" "$kept.$$" && mv "$kept.$$" "$kept"; fi
  rm "$deb"
done"#;
const LAY_OVER: &str = r#"for tree in "$@"; do
  even=$(mktemp -d)
  cp -r --no-dereference "$tree/." "$even/"
  chmod -R u=rwX,go=rX "$even"
  find "$even" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  cp -a "$even/." "$root/"
  rm -rf "$even"
done"#;
const RUN_INSIDE: &str = r#"shell=/bin/sh
[ -e "$root/bin/sh" ] || [ -L "$root/bin/sh" ] || shell='/bin/busybox sh'
chroot "$root" $shell -eu < "$1""#;

/// Returns the option that makes mmdebstrap run `script` at the time that `when` names.
fn hook(when: &str, script: &str, paths: &[&Path]) -> OsString {
    let mut text = OsString::from(format!("{when}=set -eu; root=$1; set --"));
    for path in paths {
        text.push(" ");
        text.push(quoted(path));
    }
    text.push("\n");
    text.push(script);
    text
}

/// Returns the path as one word of the shell.
fn quoted(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_encoded_bytes();
    let mut word = vec![b'\''];
    for &byte in bytes {
        if byte == b'\'' {
            word.extend_from_slice(b"'\\''");
        } else {
            word.push(byte);
        }
    }
    word.push(b'\'');
    OsString::from_vec(word)
}

fn system_disk(recipe: &Recipe, places: &Places<'_>, tree: &Path, disk: &Path) -> Vec<Step> {
    let size_bytes = recipe.text.system.size_mib << 20;
    let end = size_bytes - (1 << 20);
    let start_sector = SYSTEM_OFFSET_BYTES / 512;
    let table = format!(
        "label: gpt\nlabel-id: {TABLE_UUID}\nfirst-lba: {TABLE_SECTORS}\n\
         start={TABLE_SECTORS}, size={}, type=21686148-6449-6E6F-744E-656564454649, \
         uuid={BOOT_UUID}, name=boot\n\
         start={start_sector}, size={}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, \
         uuid={PARTITION_UUID}, name=system\n",
        start_sector - TABLE_SECTORS,
        (end - SYSTEM_OFFSET_BYTES) / 512,
    );
    let sfdisk = Tool::new("sfdisk", "fdisk").args(["--quiet", "--no-reread", "--no-tell-kernel"]);
    let core = places.work.join("core.img");
    let config = places.work.join("grub.cfg");
    let step = |name, action| Step { name, action };
    vec![
        step("system disk", Action::Disk { path: disk.to_owned(), size_bytes }),
        step("system disk", Action::Run(sfdisk.arg(disk).input(table))),
        step(
            "system disk",
            Action::Run(
                make_ext4(disk, SYSTEM_UUID, "system", recipe.text.system.size_mib)
                    .args(["-E", &extended(SYSTEM_UUID, Some(SYSTEM_OFFSET_BYTES))])
                    .arg("-d")
                    .arg(tree)
                    .arg(disk)
                    .arg(format!("{}k", (end - SYSTEM_OFFSET_BYTES) / 1024)),
            ),
        ),
        step("boot loader", Action::Write { path: config.clone(), text: boot_commands(recipe) }),
        step(
            "boot loader",
            Action::Run(
                Tool::new("grub-mkimage", "grub-common")
                    .args(["--format=i386-pc", "--prefix=(hd0,gpt2)/boot/grub", "--config"])
                    .arg(config)
                    .arg("--output")
                    .arg(&core)
                    .args(["biosdisk", "part_gpt", "ext2", "linux16"]),
            ),
        ),
        step(
            "boot loader",
            Action::Boot(BootFiles { disk: disk.to_owned(), core, first_sector: TABLE_SECTORS }),
        ),
    ]
}

/// What GRUB does, without asking anybody: Debian keeps the two links at its newest kernel.
///
/// The 16-bit protocol, since GRUB's 32-bit one moves 50 MB of memory byte by byte: 2.1 s under TCG, against 0.05 s.
fn boot_commands(recipe: &Recipe) -> String {
    format!(
        "linux16 (hd0,gpt2)/vmlinuz root=UUID={SYSTEM_UUID} rw rootflags=noatime {}\n\
         initrd16 (hd0,gpt2)/initrd.img\nboot\n",
        recipe.text.kernel_command_line
    )
}

fn user_disk(user: &UserDisk, disk: &Path) -> Vec<Step> {
    let name = "user disk";
    let make = make_ext4(disk, USER_UUID, &user.label, user.size_mib)
        .args(["-E", &extended(USER_UUID, None)])
        .arg(disk);
    vec![
        Step {
            name,
            action: Action::Disk { path: disk.to_owned(), size_bytes: user.size_mib << 20 },
        },
        Step { name, action: Action::Run(make) },
    ]
}

/// All that `mke2fs` is told of every file system; nothing is left for the guest to initialise later, since each
/// block that it wrote then would be a change of the disk.
fn make_ext4(disk: &Path, uuid: &str, label: &str, size_mib: u64) -> Tool {
    debug_assert!(disk.is_absolute(), "tools run in a directory of their own");
    let journal_mib = if size_mib < SMALL_DISK_MIB { 4 } else { JOURNAL_MIB };
    Tool::new("mke2fs", "e2fsprogs")
        .env("MKE2FS_CONFIG", "/dev/null")
        .env("E2FSPROGS_FAKE_TIME", EPOCH.to_string())
        .args(["-q", "-F", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-O", FEATURES])
        .args(["-U", uuid, "-L", label, "-J", &format!("size={journal_mib}")])
}

fn extended(seed: &str, offset: Option<u64>) -> String {
    let offset = offset.map_or_else(String::new, |bytes| format!(",offset={bytes}"));
    format!(
        "lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0,hash_seed={seed}{offset}"
    )
}
