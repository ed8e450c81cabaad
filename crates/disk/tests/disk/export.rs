//! The export as Debian's NBD clients see it.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use collective_disk::{Export, RawFile};
use collective_model::ErrorKind;

use crate::support::{IMAGE_BYTES, Served, run};

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_sees_a_read_only_disk_with_its_size() {
    let served = Served::start();
    let info: serde_json::Value =
        serde_json::from_str(&run("nbdinfo", &["--json", &served.uri()])).unwrap();
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], IMAGE_BYTES);
    assert_eq!(export["is_read_only"], true);
    assert_eq!(export["can_multi_conn"], true);
    assert_eq!(export["contexts"][0], "base:allocation");
    let mode = std::fs::metadata(served.export.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    served.export.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_over_several_connections_copies_every_byte() {
    let served = Served::start();
    let copy = served.directory.path().join("copy");
    let arguments = ["--connections=4", "--requests=64", &served.uri(), copy.to_str().unwrap()];
    run("nbdcopy", &arguments);
    assert!(std::fs::read(copy).unwrap() == std::fs::read(served.image()).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_img_finds_the_disk_equal_to_its_image() {
    let served = Served::start();
    let image = served.image();
    let arguments = ["compare", "-f", "raw", "-F", "raw", &served.uri(), image.to_str().unwrap()];
    assert!(run("qemu-img", &arguments).contains("identical"));
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_img_sees_the_same_holes_as_in_the_image() {
    let served = Served::start();
    let map = |image: &str| {
        let text = run("qemu-img", &["map", "--output=json", "-f", "raw", image]);
        let extents: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        extents
            .iter()
            .map(|extent| {
                (extent["start"].clone(), extent["length"].clone(), extent["zero"].clone())
            })
            .collect::<Vec<_>>()
    };
    let extents = map(&served.uri());
    assert!(extents.len() > 20);
    assert_eq!(extents, map(served.image().to_str().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_any_alignment_and_length_are_served() {
    let served = Served::start();
    let image = served.image();
    let image = image.to_str().unwrap();
    let commands =
        ["read -v 4095 3", "read -v 1048575 2", "read -v 0 1", "read -v 25165823 1", "read 0 24M"];
    for command in commands {
        let read = |file: &str| {
            let text = run("qemu-io", &["-r", "-f", "raw", "-c", command, file]);
            text.lines().filter(|line| !line.contains("sec")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(read(&served.uri()), read(image), "{command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_removed_hangs_up_and_can_come_back() {
    let served = Served::start();
    served.export.remove("system");
    let listed = run("nbdinfo", &["--list", "--json", &served.uri()]);
    assert!(!listed.contains("export-size"), "{listed}");
    let source = RawFile::open(&served.image()).unwrap();
    served.export.add("system", Arc::new(source)).unwrap();
    run("nbdinfo", &["--size", &served.uri()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_somebody_serves_is_a_conflict_and_a_dead_one_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let export = Export::bind(&path).unwrap();
    assert_eq!(Export::bind(&path).unwrap_err().kind(), ErrorKind::Conflict);
    export.shutdown().await;
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    Export::bind(&path).unwrap().shutdown().await;
    assert!(!path.exists());
}
