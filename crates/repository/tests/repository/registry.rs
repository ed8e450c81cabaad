//! Somebody else's registry of containers (Debian's docker-registry) on a free port, and somebody else's tool that copies from one to
//! the other (skopeo).

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use collective_repository::backend::{Credentials, Oci};
use tempfile::TempDir;

/// Who the registries that ask know, and how they write it down (bcrypt).
const NAME: &str = "ann";
pub const PASSWORD: &str = "open sesame";
const HTPASSWD: &str = "ann:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";

/// How long a registry may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running registry; it and all it holds are gone when dropped.
pub struct Registry {
    pub address: SocketAddr,
    root: TempDir,
    child: Child,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// Starts one that lets everybody in.
    pub fn open() -> Self {
        Self::start("")
    }

    /// Starts one that asks for a name and a password.
    pub fn closed() -> Self {
        Self::start("auth: {htpasswd: {realm: tests, path: ROOT/htpasswd}}\n")
    }

    fn start(auth: &str) -> Self {
        // The process has one provider; whichever test comes first installs it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let root = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let own = root.path().to_str().unwrap();
        let auth = auth.replace("ROOT", own);
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{address}'}}\n\
             storage: {{filesystem: {{rootdirectory: {own}/data}}}}\n{auth}"
        );
        std::fs::write(root.path().join("config.yml"), text).unwrap();
        std::fs::write(root.path().join("htpasswd"), HTPASSWD).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(root.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self { address, root, child };
        let limit = Instant::now() + START_LIMIT;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < limit, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        registry
    }

    /// Names a place in it.
    pub fn place(&self, path: &str) -> String {
        format!("{}/{path}", self.address)
    }

    /// Opens a place in it as a process of its own does.
    pub fn oci(&self, path: &str, password: Option<&str>) -> Oci {
        let credentials = password.map(|password| Credentials::new(NAME, password));
        Oci::open(&self.place(path).parse().unwrap(), false, credentials).unwrap()
    }

    /// The files in which it keeps the bytes of blobs, the largest first.
    pub fn blobs(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.root.path().join("data/docker/registry/v2/blobs")];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { open.push(path) } else { found.push(path) }
            }
        }
        found.sort_by_key(|path| std::cmp::Reverse(std::fs::metadata(path).unwrap().len()));
        found
    }
}

/// Copies a tag between registries, to where a password is asked for.
pub fn skopeo_copy(from: &str, to: &str) {
    let credentials = format!("{NAME}:{PASSWORD}");
    let home = tempfile::tempdir().unwrap();
    let ended = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"])
        .args(["--dest-creds", &credentials])
        .args([format!("docker://{from}"), format!("docker://{to}")])
        .env("HOME", home.path())
        .env("XDG_RUNTIME_DIR", home.path())
        .output()
        .expect("skopeo is installed");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
}
