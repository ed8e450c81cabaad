//! An S3 server in this process, on a socket of its own: signatures, ranges, lists, parts and conditional puts as the protocol has them.
//!
//! It looks at a condition and writes afterwards, so requests that change something are let in one at a time: then its conditional
//! puts are what those of a real store are.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use collective_repository::backend::Bucket;
use hyper::service::{Service, service_fn};
use hyper::{Method, Request, body};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::RwLock;
use tokio::task::JoinHandle;

const KEY: &str = "KEYOFTHETESTS";
const SECRET: &str = "a secret of the tests";
const BUCKET: &str = "attic";

/// A running server with one bucket; it and all it holds are gone when dropped.
pub struct S3Server {
    root: TempDir,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl S3Server {
    pub async fn start() -> Self {
        // The process has one provider; whichever test comes first installs it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(serve(listener, builder.build()));
        Self { root, address, task }
    }

    /// What the environment of who uses it has to say.
    pub fn variables(&self) -> [(String, String); 3] {
        [
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }

    /// How the place of repositories is written.
    pub fn place(&self) -> String {
        format!("s3://{BUCKET}/repositories")
    }

    /// Where its objects are.
    pub fn files(&self) -> PathBuf {
        self.root.path().join(BUCKET)
    }

    /// Opens the place, as a process of its own does.
    pub fn bucket(&self) -> Bucket {
        Bucket::open(&self.place(), self.variables().into_iter()).unwrap()
    }
}

async fn serve(listener: TcpListener, service: S3Service) {
    let turn = Arc::new(RwLock::new(()));
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        let (service, turn) = (service.clone(), Arc::clone(&turn));
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<body::Incoming>| {
                let (service, turn) = (service.clone(), Arc::clone(&turn));
                async move {
                    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
                    let (_shared, _alone) = match reads {
                        true => (Some(turn.read().await), None),
                        false => (None, Some(turn.write().await)),
                    };
                    Service::call(&service, request).await
                }
            });
            let server = Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}
