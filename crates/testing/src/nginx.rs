//! A stranger's web server over a directory.

use std::io::{Error, ErrorKind, Result};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long it may take until it listens.
const LIMIT: Duration = Duration::from_secs(20);

/// A running nginx; ended when dropped.
#[derive(Debug)]
pub struct Nginx {
    address: SocketAddr,
    child: Child,
    _own: TempDir,
}

impl Nginx {
    /// Shows the files below `root` on a port of the loopback, as it comes from the distribution.
    ///
    /// # Errors
    /// If nginx is not installed, or does not listen in time.
    pub fn serve(root: &Path) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let directory = tempfile::Builder::new().prefix("nginx").tempdir()?;
        let (own, root) = (directory.path().display(), root.display());
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary = temporary.map(|kind| format!("{kind}_temp_path {own}/{kind};")).concat();
        let text = format!(
            "daemon off; master_process off; pid {own}/pid; error_log {own}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; sendfile on; keepalive_timeout 600; keepalive_requests 1000000;\n\
             {temporary} server {{ listen {address}; root {root}; }} }}\n"
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, text)?;
        let child = Command::new("nginx").arg("-c").arg(&file).stderr(Stdio::null()).spawn();
        let child = child.map_err(|error| Error::new(error.kind(), "nginx does not start"))?;
        let web = Self { address, child, _own: directory };
        let limit = Instant::now() + LIMIT;
        while TcpStream::connect(address).is_err() {
            if Instant::now() > limit {
                return Err(Error::new(ErrorKind::TimedOut, "nginx does not listen"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(web)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
