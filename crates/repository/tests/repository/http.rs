//! The HTTP backend against a server that serves a directory, and against servers that lie, cut and stall.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use collective_model::{DiskRole, Epoch, ErrorKind, Silent};
use collective_repository::backend::{Backend, Commit, Directory, Http, ObjectName};
use collective_repository::{Descriptor, Kind, Repository, SigningKey, Trust};
use collective_testing::Nginx;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::task::JoinHandle;

use crate::world::{World, check, id, publication, read_version, version, whole};

/// How a server treats what it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    Honest,
    /// Sends whole objects whatever range was asked for.
    NoRanges,
    /// Sends one byte less than it was asked for.
    Short,
    /// Sends more than it was asked for.
    Long,
    /// Turns a bit of everything.
    Lying,
    /// Sends three quarters of a range and nothing more, without hanging up.
    Stuck,
    /// Refuses as our server does.
    Refusing,
}

#[derive(Clone)]
struct Served {
    directory: Directory,
    manners: Manners,
}

/// A server on a free port; stops when it is dropped.
pub struct Server {
    pub base: String,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn serve(directory: Directory, manners: Manners) -> Server {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1/repositories/x", listener.local_addr().unwrap());
    let router = axum::Router::new()
        .route("/v1/repositories/x/{*name}", any(answer))
        .with_state(Served { directory, manners })
        .layer(axum::extract::DefaultBodyLimit::disable());
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Server { base, task }
}

async fn answer(
    State(served): State<Served>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if served.manners == Manners::Refusing {
        let text = r#"{"error":{"kind":"denied","message":"ann may not",
            "causes":["ann is a guest","bob said so"],"hint":"ask bob"}}"#;
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    let Ok(name) = name.parse::<ObjectName>() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if method == Method::PUT {
        return put(&served.directory, name, &headers, body).await;
    }
    let Ok(Some(size)) = served.directory.size(&name).await else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = headers.get("range").and_then(|value| value.to_str().ok()).map(|text| {
        let (start, end) = text.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        start.parse::<u64>().unwrap()..end.parse::<u64>().unwrap() + 1
    });
    let range = range.filter(|_| served.manners != Manners::NoRanges);
    if range.as_ref().is_some_and(|range| range.start >= size) {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let range = range.unwrap_or(0..size);
    let read = served.directory.read(&name, Some(range.start..range.end.min(size))).await;
    let mut bytes = read.unwrap().to_vec();
    match served.manners {
        Manners::Short => drop(bytes.pop()),
        Manners::Long => bytes.resize(bytes.len() + (40 << 20), 0),
        Manners::Lying => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        Manners::Stuck if matches!(name, ObjectName::Pack(_)) => {
            bytes.truncate(bytes.len() * 3 / 4);
            let begun = stream::iter([Ok::<_, std::io::Error>(Bytes::from(bytes))]);
            return (status, Body::from_stream(begun.chain(stream::pending()))).into_response();
        }
        _ => {}
    }
    (status, Body::from(bytes)).into_response()
}

async fn put(
    directory: &Directory,
    name: ObjectName,
    headers: &HeaderMap,
    body: Bytes,
) -> Response {
    let result = match name {
        ObjectName::Manifest(version) => {
            let epoch = headers["Collective-Epoch"].to_str().unwrap().parse().unwrap();
            directory.commit(Commit { version, manifest: body, epoch: Epoch(epoch) }).await
        }
        name => directory.write(&name, body).await,
    };
    match result {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => {
            let status = StatusCode::from_u16(error.kind().http_status()).unwrap();
            let kind = serde_json::to_value(error.kind()).unwrap();
            let text = serde_json::json!({"error": {"kind": kind, "message": error.to_string()}});
            (status, text.to_string()).into_response()
        }
    }
}

fn http(server: &Server) -> Arc<Http> {
    Arc::new(Http::new(client(), &server.base, Epoch(1)))
}

pub fn client() -> reqwest::Client {
    // The process has one provider; whichever test comes first installs it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// A published directory.
async fn directory(path: &std::path::Path) -> (Directory, World) {
    let directory = Directory::create(path.join("repository")).unwrap();
    let world = World::public(Arc::new(directory.clone())).await;
    let numbers: Vec<u16> = (1..100).collect();
    world.publish(0, vec![whole(&numbers)]).await.unwrap();
    (directory, world)
}

#[tokio::test]
async fn a_repository_is_made_published_and_read_over_http() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path().join("repository")).unwrap();
    let server = serve(directory.clone(), Manners::Honest).await;
    let key = SigningKey::from_seed([7; 32]);
    let descriptor = Descriptor::public(id(), Kind::Appliance, key.publisher());
    let backend = http(&server);
    let repository = Repository::create(backend.clone(), descriptor, None).await.unwrap();
    assert_eq!(repository.head().await.unwrap(), None);
    for (parent, content) in [(0, [1, 2, 3]), (1, [4, 2, 3])] {
        let publication = publication(parent, vec![whole(&content)]);
        repository.publish(publication, &key, &Silent).await.unwrap();
    }
    let trust = Trust { id: id(), publisher: key.publisher(), secret: None };
    let reader = Repository::open(backend, trust).await.unwrap();
    check(&reader, 1, &[1, 2, 3]).await;
    check(&reader, 2, &[4, 2, 3]).await;
    // The server of this test cannot list: versions are looked for one by one.
    assert_eq!(reader.versions().await.unwrap(), [version(1), version(2)]);
    assert!(reader.verify(&Silent).await.unwrap().damages.is_empty());
    // A second publisher hears what the server says.
    let late = publication(2, vec![whole(&[9])]);
    let conflict = Http::new(client(), &server.base, Epoch(0));
    let manifest = directory.read(&ObjectName::Manifest(version(1)), None).await.unwrap();
    let commit = Commit { version: version(2), manifest, epoch: late.epoch };
    let error = conflict.commit(commit).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Conflict && error.chain().contains("latest version is 2"));
}

#[tokio::test]
async fn a_server_without_ranges_serves_all_the_same() {
    let root = tempfile::tempdir().unwrap();
    let (directory, world) = directory(root.path()).await;
    let server = serve(directory, Manners::NoRanges).await;
    let repository = world.reopen(http(&server)).await.unwrap();
    check(&repository, 1, &(1..100).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_server_that_lies_cuts_or_swells_is_corrupt() {
    let root = tempfile::tempdir().unwrap();
    let (directory, world) = directory(root.path()).await;
    for manners in [Manners::Lying, Manners::Short, Manners::Long] {
        let server = serve(directory.clone(), manners).await;
        let error = world.reopen(http(&server)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{manners:?}");
        // And where only the frames are touched.
        let reader = world.repository.version(version(1)).await.unwrap();
        let disk = reader.disk(DiskRole::System).await.unwrap();
        let range = collective_model::BlockRange::new(0, 1);
        let extents = disk.map(range).await.unwrap();
        let collective_repository::ExtentData::Frame { frame, .. } = extents[0].what else {
            panic!("block 0 is not zero");
        };
        let range = Some(frame.offset..frame.offset + u64::from(frame.stored_bytes));
        let read = http(&server).read(&ObjectName::Pack(frame.pack), range).await;
        match manners {
            Manners::Lying => assert_eq!(read.unwrap().len(), frame.stored_bytes as usize),
            _ => assert_eq!(read.unwrap_err().kind(), ErrorKind::Corrupt, "{manners:?}"),
        }
    }
}

#[tokio::test]
async fn a_refusal_is_passed_on_with_kind_message_and_hint_and_no_server_is_unavailable() {
    let root = tempfile::tempdir().unwrap();
    let (directory, world) = directory(root.path()).await;
    let server = serve(directory, Manners::Refusing).await;
    let backend = http(&server);
    let error = world.reopen(backend.clone()).await.unwrap_err();
    assert_eq!((error.kind(), error.hint()), (ErrorKind::Denied, Some("ask bob")));
    for said in ["ann may not", "ann is a guest", "bob said so"] {
        assert!(error.chain().contains(said), "{error:?}");
    }
    server.task.abort();
    drop(server);
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", unused.local_addr().unwrap());
    drop(unused);
    let away = Arc::new(Http::new(client(), &base, Epoch(0)));
    assert_eq!(world.reopen(away).await.unwrap_err().kind(), ErrorKind::Unavailable);
    read_version(&world.repository, 1).await.unwrap();
}

#[tokio::test]
async fn a_frame_is_there_before_the_rest_of_its_read() {
    let root = tempfile::tempdir().unwrap();
    let (directory, world) = directory(root.path()).await;
    let server = serve(directory, Manners::Stuck).await;
    let repository = world.reopen(http(&server)).await.unwrap();
    let disk = repository.version(version(1)).await.unwrap().disk(DiskRole::System).await.unwrap();
    let extents = disk.map(collective_model::BlockRange::new(0, 99)).await.unwrap();
    let frames = extents.iter().filter_map(|extent| match extent.what {
        collective_repository::ExtentData::Frame { frame, .. } => Some(frame),
        collective_repository::ExtentData::Zero => None,
    });
    let frames: Vec<_> = frames.collect();
    let mut arriving = disk.fetch_each(&frames);
    // Three quarters of the one read that brings them all, but for the frame that is cut.
    for (place, frame) in frames.iter().enumerate().take(frames.len() * 3 / 4 - 1) {
        let (there, plain) = arriving.try_next().await.unwrap().unwrap();
        assert_eq!((there, plain.len()), (place, frame.plain_bytes()));
    }
    drop(arriving);
}

#[tokio::test]
async fn a_repository_copied_to_a_web_server_is_read_from_there() {
    let root = tempfile::tempdir().unwrap();
    let (_, world) = directory(root.path()).await;
    world.publish(1, vec![whole(&[5, 6])]).await.unwrap();
    let web = Nginx::serve(root.path()).unwrap();
    let backend = Http::new(client(), &format!("http://{}/repository", web.address()), Epoch(0));
    let repository = world.reopen(Arc::new(backend)).await.unwrap();
    assert_eq!(repository.head().await.unwrap(), Some(version(2)));
    check(&repository, 1, &(1..100).collect::<Vec<_>>()).await;
    check(&repository, 2, &[5, 6]).await;
    let report = repository.verify(&Silent).await.unwrap();
    assert!(report.damages.is_empty(), "{report:?}");
    // It takes nothing in, and says so.
    let error = repository
        .publish(publication(2, vec![whole(&[7])]), &SigningKey::from_seed([7; 32]), &Silent)
        .await
        .unwrap_err();
    assert_ne!(error.kind(), ErrorKind::Internal, "{error:?}");
}
