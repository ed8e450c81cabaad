//! A web server over the objects of a repository, with the manners that a test wants, which counts what it sends.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use collective_model::{Digest, Epoch};
use collective_repository::backend::{Backend, Http, Memory, ObjectName};
use futures::stream::{self, StreamExt};
use tokio::runtime::Runtime;

/// How packs are given; all else is always given right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manners {
    Honest,
    /// So long for each 16 KiB.
    Slow(Duration),
    /// Each range has a wrong byte.
    Lying,
    /// Half of a range, and then nothing, without hanging up.
    Stalling,
    /// Nothing at all, without hanging up.
    Silent,
    /// Packs end in the middle.
    Short,
    /// Hangs up in the middle.
    CutOff,
    /// All of a pack, whatever range was asked for.
    NoRanges,
    Status(StatusCode),
    /// Not these packs.
    Lacking(BTreeSet<Digest>),
}

/// What one server does and did.
#[derive(Clone, Debug)]
pub struct Desk {
    objects: Arc<Memory>,
    manners: Arc<Mutex<Manners>>,
    /// Bytes of packs that were sent.
    sent_bytes: Arc<AtomicU64>,
    /// Requests for packs.
    requests: Arc<AtomicU64>,
}

/// A running server, on threads of its own, so that it can be killed with all its connections.
pub struct Web {
    pub address: SocketAddr,
    desk: Desk,
    runtime: Option<Runtime>,
}

impl Web {
    pub fn serve(objects: &Arc<Memory>, manners: Manners) -> Self {
        let desk = Desk {
            objects: Arc::clone(objects),
            manners: Arc::new(Mutex::new(manners)),
            sent_bytes: Arc::default(),
            requests: Arc::default(),
        };
        let mut web = Self { address: ([127, 0, 0, 1], 0).into(), desk, runtime: None };
        web.come_back();
        web
    }

    pub fn behave(&self, manners: Manners) {
        *self.desk.manners.lock().unwrap() = manners;
    }

    pub fn sent_bytes(&self) -> u64 {
        self.desk.sent_bytes.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> u64 {
        self.desk.requests.load(Ordering::SeqCst)
    }

    /// Hangs up on everybody.
    pub fn go_away(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Listens where it did.
    pub fn come_back(&mut self) {
        let threads =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = threads.unwrap();
        let limit = Instant::now() + Duration::from_secs(20);
        let listener = loop {
            match std::net::TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                // The socket of the one before may not be closed yet.
                Err(error) => assert!(Instant::now() < limit, "{error}"),
            }
        };
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/{*name}", axum::routing::get(answer))
            .with_state(self.desk.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        self.runtime = Some(runtime);
    }

    /// The objects behind this server.
    pub fn backend(&self) -> Arc<dyn Backend> {
        // The process has one provider; whichever test comes first installs it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Arc::new(Http::new(client, &format!("http://{}", self.address), Epoch(0)).ranges_only())
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.go_away();
    }
}

async fn answer(
    State(desk): State<Desk>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let name: ObjectName = name.parse().unwrap();
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).map(|text| {
        let (start, end) = text.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        start.parse::<u64>().unwrap()..end.parse::<u64>().unwrap() + 1
    });
    let ObjectName::Pack(pack) = name else {
        return match desk.objects.read(&name, range.clone()).await {
            Ok(bytes) if range.is_some() => (StatusCode::PARTIAL_CONTENT, bytes).into_response(),
            Ok(bytes) => bytes.into_response(),
            Err(_) => StatusCode::NOT_FOUND.into_response(),
        };
    };
    desk.requests.fetch_add(1, Ordering::SeqCst);
    let manners = desk.manners.lock().unwrap().clone();
    let range = range.filter(|_| manners != Manners::NoRanges);
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let bytes = desk.objects.read(&name, range).await.unwrap();
    let half = bytes.slice(..bytes.len() / 2);
    let body = match manners {
        Manners::Honest | Manners::NoRanges => desk.body(bytes, Duration::ZERO),
        Manners::Slow(pause) => desk.body(bytes, pause),
        Manners::Lying => desk.body(flipped(&bytes), Duration::ZERO),
        Manners::Stalling => desk.never_ending(half),
        Manners::Silent => return std::future::pending().await,
        Manners::Short => desk.body(half, Duration::ZERO),
        Manners::CutOff => {
            let length = [(header::CONTENT_LENGTH, bytes.len().to_string())];
            return (status, length, desk.body(half, Duration::ZERO)).into_response();
        }
        Manners::Status(status) => return status.into_response(),
        Manners::Lacking(packs) if packs.contains(&pack) => {
            return StatusCode::NOT_FOUND.into_response();
        }
        Manners::Lacking(_) => desk.body(bytes, Duration::ZERO),
    };
    (status, body).into_response()
}

impl Desk {
    /// Bytes sent a little at a time, with a pause before each; what nobody takes any more is not counted.
    fn body(&self, bytes: Bytes, pause: Duration) -> Body {
        Body::from_stream(self.pieces(bytes, pause))
    }

    fn never_ending(&self, bytes: Bytes) -> Body {
        Body::from_stream(self.pieces(bytes, Duration::ZERO).chain(stream::pending()))
    }

    fn pieces(
        &self,
        bytes: Bytes,
        pause: Duration,
    ) -> impl futures::Stream<Item = std::io::Result<Bytes>> + use<> {
        let sent_bytes = Arc::clone(&self.sent_bytes);
        let starts = stream::iter((0..bytes.len()).step_by(16 << 10));
        starts.then(move |start| {
            let (sent_bytes, bytes) = (Arc::clone(&sent_bytes), bytes.clone());
            async move {
                tokio::time::sleep(pause).await;
                let piece = bytes.slice(start..bytes.len().min(start + (16 << 10)));
                sent_bytes.fetch_add(piece.len() as u64, Ordering::SeqCst);
                Ok(piece)
            }
        })
    }
}

fn flipped(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bytes.into()
}
