//! Trim against the file systems that Debian's own tools make.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use collective_repository::trim::free_ranges;

const MIB: u64 = 1 << 20;

fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    // Debian keeps these tools where only root's PATH looks.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    output.stdout
}

/// Makes an image with a file system of one file, beginning at an offset.
fn image(directory: &Path, options: &[&str], size_mib: u64, offset_mib: u64) -> String {
    let content = directory.join("content");
    fs::create_dir_all(&content).unwrap();
    fs::write(content.join("file"), vec![0xab; 3_000_000]).unwrap();
    let image = directory.join("image").to_str().unwrap().to_owned();
    File::create(&image).unwrap().set_len((size_mib + offset_mib) * MIB).unwrap();
    let extended = format!("offset={}", offset_mib * MIB);
    let size = format!("{size_mib}M");
    let content = content.to_str().unwrap();
    let fixed = ["-q", "-F", "-E", &extended, "-d", content];
    run("mke2fs", &[&fixed, options, &[image.as_str(), size.as_str()]].concat());
    image
}

fn free_bytes(image: &str) -> u64 {
    let file = File::open(image).unwrap();
    let size_bytes = file.metadata().unwrap().len();
    free_ranges(&file, size_bytes).unwrap().iter().map(|range| range.length_bytes()).sum()
}

/// Overwrites what is said to be free, then asks e2fsck and reads the file back.
fn check(options: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let image = image(directory.path(), options, 64, 0);
    let free = free_bytes(&image);
    // Groups whose bitmap was never written are left alone; they are holes in the image anyway.
    assert!(free > 8 * MIB, "{options:?}: only {free} bytes are free");
    let file = File::options().read(true).write(true).open(&image).unwrap();
    for range in free_ranges(&file, 64 * MIB).unwrap() {
        let junk = vec![0xee; range.length_bytes() as usize];
        file.write_all_at(&junk, range.offset_bytes()).unwrap();
    }
    run("e2fsck", &["-fn", &image]);
    let content = run("debugfs", &["-R", "cat /file", &image]);
    assert!(content == vec![0xab; 3_000_000], "{options:?}: the file changed");
}

#[test]
fn what_is_free_may_be_anything_and_what_is_used_is_left_alone() {
    check(&["-t", "ext4", "-b", "4096"]);
    check(&["-t", "ext4", "-b", "1024"]);
    check(&["-t", "ext4", "-O", "^64bit,^metadata_csum,^uninit_bg"]);
    check(&["-t", "ext3"]);
    check(&["-t", "ext2"]);
}

#[test]
fn what_is_not_understood_counts_as_used() {
    let directory = tempfile::tempdir().unwrap();
    let bigalloc = image(directory.path(), &["-t", "ext4", "-O", "bigalloc"], 64, 0);
    assert_eq!(free_bytes(&bigalloc), 0);
    let image = image(directory.path(), &["-t", "ext4"], 64, 0);
    assert!(free_bytes(&image) > 0);
    let file = File::options().write(true).open(&image).unwrap();
    // A journal to replay: needs_recovery, in the third byte of feature words.
    let mut incompatible = [0];
    File::open(&image).unwrap().read_exact_at(&mut incompatible, 1024 + 0x60).unwrap();
    file.write_all_at(&[incompatible[0] | 4], 1024 + 0x60).unwrap();
    assert_eq!(free_bytes(&image), 0);
}

#[test]
fn a_file_system_in_a_partition_is_found() {
    for label in ["dos", "gpt"] {
        let directory = tempfile::tempdir().unwrap();
        let image = image(directory.path(), &["-t", "ext4"], 64, 1);
        File::options().write(true).open(&image).unwrap().set_len(66 * MIB).unwrap();
        assert_eq!(free_bytes(&image), 0, "nothing leads to the file system yet");
        let script = directory.path().join("script");
        fs::write(&script, format!("label: {label}\nstart=2048, size=131072\n")).unwrap();
        let command = format!("sfdisk -q --no-reread '{image}' < '{}'", script.display());
        run("sh", &["-c", &command]);
        assert!(free_bytes(&image) > 8 * MIB, "{label}");
    }
}

#[test]
fn damaged_images_give_ranges_on_the_disk_or_none() {
    let directory = tempfile::tempdir().unwrap();
    let image = image(directory.path(), &["-t", "ext4"], 16, 0);
    let file = File::options().read(true).write(true).open(&image).unwrap();
    for at in (1024..1024 + 0x160).chain(4096..4096 + 64) {
        for value in [0, 0x7f, 0xff] {
            let mut old = [0];
            file.read_exact_at(&mut old, at).unwrap();
            file.write_all_at(&[value], at).unwrap();
            let ranges = free_ranges(&file, 16 * MIB).unwrap();
            assert!(ranges.iter().all(|range| range.end() <= 16 * MIB / 4096), "byte {at}");
            file.write_all_at(&old, at).unwrap();
        }
    }
}
