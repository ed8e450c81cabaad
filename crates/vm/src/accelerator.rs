//! What runs a guest's instructions here: KVM if it truly works, else QEMU's own translation (DESIGN 4.7).
//!
//! `/dev/kvm` may open, make a machine and still hang every ordinary guest. So KVM is taken only if the
//! processor says that it can (`vmx` or `svm`) *and* a guest of a few bytes, run within a deadline, reaches
//! its end. Whatever is chosen, the answer says why, for people to read.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use collective_model::{ErrorKind, IoResultExt, Result, ResultExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::qemu::Qemu;

/// How long the guest of the self-test may take: it needs 0.1 s with KVM and about 1 s without.
const SELF_TEST_LIMIT: Duration = Duration::from_secs(10);
/// What the guest of the self-test writes to the exit port.
const EXIT_VALUE: u8 = 0x2a;
/// What QEMU then ends with: twice the value and one.
const EXIT_CODE: i32 = (EXIT_VALUE as i32) << 1 | 1;
/// A boot sector's bytes; the last two mark it as one.
const SECTOR_BYTES: usize = 512;

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// The processor, through the kernel.
    Kvm,
    /// QEMU, by translating them.
    Tcg,
}

impl Accelerator {
    /// Returns the arguments that choose it.
    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Without 16-byte compare-and-exchange in the guest, the translator needs no lock around all processors.
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max,cx16=off"],
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// What was chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The choice.
    pub accelerator: Accelerator,
    /// The reason, one line for people.
    pub why: String,
}

/// Finds out what runs guests here. Takes up to some ten seconds where KVM is broken.
pub async fn probe(qemu: &Qemu) -> Probed {
    let cpuinfo = tokio::fs::read_to_string("/proc/cpuinfo").await.unwrap_or_default();
    if let Some(why) = unfit(
        &cpuinfo,
        tokio::fs::File::options().read(true).write(true).open("/dev/kvm").await.map(drop),
    ) {
        return Probed { accelerator: Accelerator::Tcg, why };
    }
    match self_test(qemu, Accelerator::Kvm, SELF_TEST_LIMIT).await {
        Ok(()) => Probed {
            accelerator: Accelerator::Kvm,
            why: "the processor can, and a guest ran to its end".to_owned(),
        },
        Err(error) => Probed {
            accelerator: Accelerator::Tcg,
            why: format!("KVM failed its self-test: {}", error.chain()),
        },
    }
}

/// Says why KVM need not even be tried; none if it should be.
fn unfit(cpuinfo: &str, device: std::io::Result<()>) -> Option<String> {
    let can = cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm");
    match device {
        Err(error) => Some(format!("/dev/kvm cannot be opened: {error}")),
        Ok(()) if !can => Some(
            "/dev/kvm opens, but the processor shows neither vmx nor svm, and such a KVM hangs guests".to_owned(),
        ),
        Ok(()) => None,
    }
}

/// Runs a guest of nine bytes that ends QEMU with a known code.
///
/// # Errors
/// `Unavailable` when it did not reach its end within `limit`, or ended otherwise.
pub async fn self_test(qemu: &Qemu, accelerator: Accelerator, limit: Duration) -> Result<()> {
    let mut image = tempfile::NamedTempFile::new()
        .or_io(|| "cannot make the self-test's boot sector".to_owned())?;
    image
        .write_all(&boot_sector())
        .or_io(|| "cannot write the self-test's boot sector".to_owned())?;
    let mut child = Command::new(&qemu.program)
        .args(self_test_arguments(accelerator, image.path()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .or_io(|| format!("cannot run {}", qemu.program.display()))?;
    let status = timeout(limit, child.wait())
        .await
        .or_error(ErrorKind::Unavailable, || {
            format!("the self-test's guest did not end within {} s", limit.as_secs_f32())
        })?
        .or_io(|| "cannot wait for the self-test's guest".to_owned())?;
    if status.code() == Some(EXIT_CODE) {
        return Ok(());
    }
    Err(collective_model::Error::new(
        ErrorKind::Unavailable,
        format!("the self-test's guest ended with {status}"),
    ))
}

fn self_test_arguments(accelerator: Accelerator, image: &Path) -> Vec<String> {
    let drive = serde_json::json!({
        "driver": "raw",
        "node-name": "boot",
        "file": { "driver": "file", "filename": image },
    });
    let mut arguments: Vec<String> = ["-nodefaults", "-no-user-config", "-display", "none"]
        .into_iter()
        .chain(["-machine", "pc", "-m", "16M", "-no-reboot"])
        .chain(accelerator.arguments())
        .chain(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .map(str::to_owned)
        .collect();
    arguments.extend(["-blockdev".to_owned(), drive.to_string()]);
    arguments.extend(["-device", "ide-hd,drive=boot,bootindex=0"].map(str::to_owned));
    arguments
}

/// `mov dx, 0xf4; mov al, EXIT_VALUE; out dx, al; cli; hlt; jmp $-1` and the mark of a boot sector.
fn boot_sector() -> [u8; SECTOR_BYTES] {
    let code = [0xba, 0xf4, 0x00, 0xb0, EXIT_VALUE, 0xee, 0xfa, 0xf4, 0xeb, 0xfd];
    let mut sector = [0; SECTOR_BYTES];
    sector[..code.len()].copy_from_slice(&code);
    sector[SECTOR_BYTES - 2..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::unfit;

    #[test]
    fn kvm_is_not_tried_without_its_flag_or_its_device() {
        let with = "processor: 0\nflags\t\t: fpu vme svm sse\n";
        let without = "processor: 0\nflags\t\t: fpu vme sse\nbugs: svm\n";
        assert_eq!(unfit(with, Ok(())), None);
        assert!(unfit(without, Ok(())).unwrap().contains("neither vmx nor svm"));
        let denied = Error::from(ErrorKind::PermissionDenied);
        assert!(unfit(with, Err(denied)).unwrap().contains("/dev/kvm cannot be opened"));
    }
}
