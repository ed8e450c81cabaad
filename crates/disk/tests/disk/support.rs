//! What the tests share: images with holes, sockets, and Debian's NBD clients.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use collective_disk::{Export, RawFile};
use tempfile::TempDir;

/// Bytes of the images in these tests.
pub const IMAGE_BYTES: u64 = 24 * 1024 * 1024;

/// An image of data, holes and an odd end, exported as `system`.
pub struct Served {
    pub directory: TempDir,
    pub export: Export,
}

impl Served {
    pub fn start() -> Self {
        let directory = TempDir::new().unwrap();
        write_image(&directory.path().join("image"), IMAGE_BYTES);
        let export = Export::bind(directory.path().join("s")).unwrap();
        let source = RawFile::open(&directory.path().join("image")).unwrap();
        export.add("system", Arc::new(source)).unwrap();
        Self { directory, export }
    }

    pub fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    pub fn uri(&self) -> String {
        uri(&self.export)
    }
}

pub fn uri(export: &Export) -> String {
    format!("nbd+unix:///system?socket={}", export.path().display())
}

/// Writes an image: a third of it data, in runs of different lengths.
pub fn write_image(path: &Path, size_bytes: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size_bytes).unwrap();
    let mut random = Random(7);
    for run in 0..size_bytes / (1 << 20) {
        let length = 4096 * (1 + random.below(80));
        let bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        file.write_all_at(&bytes, run << 20).unwrap();
    }
}

/// Runs a program to its end; returns what it printed. Fails the test if the program fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    std::io::stderr().write_all(err.as_bytes()).unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Numbers that are the same in every run (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }
}
