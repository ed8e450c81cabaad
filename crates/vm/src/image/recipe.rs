//! Recipes: the file that describes an appliance, `appliances/<name>/recipe.toml`.
//!
//! A recipe names packages of a Debian suite, an overlay of files, a script that runs inside, the disks and the
//! machine. It is read strictly: an unknown field, a missing file or a name that a tool could mistake for an option is
//! refused with the file and the line. What the fields do is decided in `plan`; `appliances/README.md` tells it to people.

use std::path::{Component, Path, PathBuf};

use collective_model::{Error, ErrorKind, Hardware, IoResultExt, Result};
use serde::Deserialize;

/// The file that makes a directory a recipe.
pub const RECIPE_FILE: &str = "recipe.toml";
/// Largest disk that a recipe may ask for; a typing error costs an error instead of a full disk.
const MOST_MIB: u64 = 1 << 20;
/// Most packages that a recipe may name; more do not fit into one command line with ease.
const MOST_PACKAGES: usize = 2000;
/// Longest label of an ext4 file system.
const LABEL_BYTES: usize = 16;
/// Longest kernel command line that x86 takes, less what is added to it.
const COMMAND_LINE_BYTES: usize = 1800;

/// What an appliance is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The directory that the recipe is in; its paths start here.
    pub dir: PathBuf,
    /// What the recipe says.
    pub text: RecipeText,
}

/// The fields of `recipe.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeText {
    /// One line for people.
    pub about: String,
    /// The Debian suite, such as `bookworm`.
    pub suite: String,
    /// How packages get into the system.
    pub method: Method,
    /// Names of packages; those they depend on come along.
    pub packages: Vec<String>,
    /// A directory whose files are laid over the system, before packages are configured and again after.
    pub files: Option<PathBuf>,
    /// A shell script that runs inside the system when all else is there.
    pub script: Option<PathBuf>,
    /// Arguments of the kernel, beside the root file system.
    #[serde(default)]
    pub kernel_command_line: String,
    /// The machine that the appliance is made for.
    pub hardware: Hardware,
    /// The system disk.
    pub system: SystemDisk,
    /// The user disk, if the appliance has one.
    pub user: Option<UserDisk>,
}

/// How packages get into the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// They are installed and configured, as on any Debian.
    Install,
    /// They are unpacked, no script of theirs runs, and the system is what the recipe's script gathers in `/system`.
    Unpack,
}

/// The system disk.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemDisk {
    /// Its size in MiB.
    pub size_mib: u64,
}

/// The user disk: one empty file system, found by its label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserDisk {
    /// Its size in MiB.
    pub size_mib: u64,
    /// The label of its file system, at most 16 signs.
    pub label: String,
    /// Where the guest mounts it.
    pub mount: String,
}

impl Recipe {
    /// Reads the recipe in `dir`.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Invalid` with file and line if it cannot be used.
    pub fn load(dir: &Path) -> Result<Self> {
        let file = dir.join(RECIPE_FILE);
        let text = std::fs::read_to_string(&file)
            .or_io(|| format!("cannot read the recipe {}", file.display()))?;
        let recipe = Self { dir: dir.to_owned(), text: parse(&file, &text)? };
        recipe.check_paths().map_err(|error| error.context(file.display().to_string()))?;
        Ok(recipe)
    }

    /// Returns the overlay directory, if there is one.
    #[must_use]
    pub fn files(&self) -> Option<PathBuf> {
        self.text.files.as_ref().map(|path| self.dir.join(path))
    }

    /// Returns the script, if there is one.
    #[must_use]
    pub fn script(&self) -> Option<PathBuf> {
        self.text.script.as_ref().map(|path| self.dir.join(path))
    }

    fn check_paths(&self) -> Result<()> {
        for path in [&self.text.files, &self.text.script].into_iter().flatten() {
            if !path.components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(invalid(format!("`{}` leaves the recipe's directory", path.display())));
            }
        }
        if let Some(files) = self.files().filter(|path| !path.is_dir()) {
            return Err(invalid(format!("files: {} is not a directory", files.display())));
        }
        if let Some(script) = self.script().filter(|path| !path.is_file()) {
            return Err(invalid(format!("script: {} is not a file", script.display())));
        }
        Ok(())
    }
}

/// Reads the text of a recipe; `file` is for messages only.
fn parse(file: &Path, text: &str) -> Result<RecipeText> {
    let recipe: RecipeText = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
        invalid(format!("{}, line {line}: {}", file.display(), error.message()))
    })?;
    recipe.check().map_err(|error| error.context(file.display().to_string()))?;
    Ok(recipe)
}

impl RecipeText {
    fn check(&self) -> Result<()> {
        self.hardware.check()?;
        check_name("suite", &self.suite)?;
        check_packages(&self.packages)?;
        check_line(&self.kernel_command_line)?;
        check_size("system", self.system.size_mib)?;
        self.user.as_ref().map_or(Ok(()), UserDisk::check)
    }
}

impl UserDisk {
    fn check(&self) -> Result<()> {
        check_size("user", self.size_mib)?;
        let plain = |sign: char| sign.is_ascii_alphanumeric() || "-_.".contains(sign);
        if self.label.is_empty() || self.label.len() > LABEL_BYTES || !self.label.chars().all(plain)
        {
            return Err(invalid(format!(
                "user: label `{}` must have 1 to {LABEL_BYTES} letters, digits, dots or dashes",
                self.label
            )));
        }
        let parts = self.mount.strip_prefix('/').unwrap_or_default();
        let good = |part: &str| !part.is_empty() && part != ".." && part.chars().all(plain);
        if !parts.split('/').all(good) {
            return Err(invalid(format!(
                "user: mount `{}` is not a plain absolute path",
                self.mount
            )));
        }
        Ok(())
    }
}

/// Refuses package names that are none; also used for packages that are added by an option.
pub(crate) fn check_packages(packages: &[String]) -> Result<()> {
    if packages.len() > MOST_PACKAGES {
        return Err(invalid(format!("packages: more than {MOST_PACKAGES}")));
    }
    packages.iter().try_for_each(|name| check_name("packages", name))
}

fn check_name(field: &str, name: &str) -> Result<()> {
    let plain =
        |sign: char| sign.is_ascii_lowercase() || sign.is_ascii_digit() || "+-.".contains(sign);
    let first = name.starts_with(|sign: char| sign.is_ascii_alphanumeric());
    if first && name.len() <= 128 && name.chars().all(plain) {
        return Ok(());
    }
    Err(invalid(format!("{field}: `{name}` is not a name that Debian uses")))
}

fn check_line(line: &str) -> Result<()> {
    // The boot loader's small parser gives these a meaning.
    let harmless = |sign: char| sign.is_ascii_graphic() && !"\"'\\$;{}#&|<>".contains(sign);
    if line.len() <= COMMAND_LINE_BYTES && line.chars().all(|sign| sign == ' ' || harmless(sign)) {
        return Ok(());
    }
    Err(invalid(format!(
        "kernel_command_line: must be one line of plain characters, at most {COMMAND_LINE_BYTES}"
    )))
}

fn check_size(disk: &str, size_mib: u64) -> Result<()> {
    if (16..=MOST_MIB).contains(&size_mib) {
        return Ok(());
    }
    Err(invalid(format!("{disk}: size_mib is {size_mib}, and must be from 16 to {MOST_MIB}")))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Recipe, parse};

    const GOOD: &str = r#"
about = "small"
suite = "bookworm"
method = "unpack"
packages = ["busybox-static"]
kernel_command_line = "console=ttyS0 quiet"
[hardware]
processors = 1
memory_mib = 64
network = false
ephemeral_bytes = 0
[system]
size_mib = 64
[user]
size_mib = 32
label = "home"
mount = "/home"
"#;

    #[track_caller]
    fn check_refused(from: &str, to: &str, message: &str) {
        assert!(GOOD.contains(from), "{from}");
        let error = parse(Path::new("recipe.toml"), &GOOD.replace(from, to)).unwrap_err();
        assert!(error.chain().contains(message), "{}", error.chain());
    }

    #[test]
    fn a_good_recipe_is_read() {
        let recipe = parse(Path::new("recipe.toml"), GOOD).unwrap();
        assert_eq!(recipe.user.unwrap().label, "home");
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_its_place() {
        check_refused("suite =", "suit =", "recipe.toml, line 3: unknown field `suit`");
        check_refused("\"unpack\"", "\"guess\"", "recipe.toml, line 4: unknown variant `guess`");
        check_refused("size_mib = 64", "size_mib = 4", "system: size_mib is 4");
        check_refused("busybox-static", "--option", "`--option` is not a name");
        check_refused("busybox-static", "a b", "`a b` is not a name");
        check_refused("\"home\"", "\"a label too long for it\"", "label");
        check_refused("\"/home\"", "\"home\"", "not a plain absolute path");
        check_refused("\"/home\"", "\"/../x\"", "not a plain absolute path");
        check_refused("quiet", "quiet; boot", "kernel_command_line");
        check_refused("processors = 1", "processors = 0", "processors is 0");
    }

    #[test]
    fn paths_stay_in_the_recipe_and_exist() {
        let dir = tempfile::tempdir().unwrap();
        for (line, message) in [
            ("files = \"../etc\"", "leaves the recipe's directory"),
            ("files = \"none\"", "is not a directory"),
            ("script = \"none.sh\"", "is not a file"),
        ] {
            std::fs::write(dir.path().join("recipe.toml"), format!("{line}\n{GOOD}")).unwrap();
            let error = Recipe::load(dir.path()).unwrap_err();
            assert!(error.chain().contains(message), "{}", error.chain());
        }
    }
}
