//! A stranger's web server (nginx) over a directory: what a repository needs to be read, and what peers read from.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// A running nginx; ended when dropped.
#[derive(Debug)]
pub struct Web {
    pub address: SocketAddr,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Web {
    /// Serves the files below `root`.
    pub async fn serve(root: &Path) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let directory = tempfile::Builder::new().prefix("bench").tempdir()?;
        let own = directory.path().display();
        let configuration = format!(
            "daemon off; master_process off; pid {own}/pid; error_log {own}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; sendfile on; keepalive_timeout 600; keepalive_requests 1000000;\n\
             client_body_temp_path {own}/a; proxy_temp_path {own}/b; fastcgi_temp_path {own}/c;\n\
             uwsgi_temp_path {own}/d; scgi_temp_path {own}/e;\n\
             server {{ listen {address}; root {}; }} }}\n",
            root.display()
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, configuration)?;
        let child = Command::new("nginx").arg("-c").arg(&file).stderr(Stdio::null()).spawn();
        let child = child.context("nginx does not start")?;
        let web = Self { address, child, _directory: directory };
        for _ in 0..100 {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return Ok(web);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ensure!(false, "nginx does not listen on {address}");
        Ok(web)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
