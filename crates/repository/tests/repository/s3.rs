//! What only S3 has: conditional puts, parts, credentials, and a bucket that several might use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use collective_model::{Digest, ErrorKind, Silent};
use collective_repository::backend::{Backend, Bucket, Commit, ObjectName, Receive, encode_latest};
use futures::FutureExt;
use object_store::aws::AmazonS3Builder;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};

use crate::s3_server::S3Server;
use crate::world::{World, check, publication, version, whole};

/// Bytes of some parts.
const LARGE_BYTES: usize = 12 << 20;

/// How many parts of uploads the server keeps.
fn parts(server: &S3Server) -> usize {
    let bucket = server.files();
    let names = std::fs::read_dir(bucket.parent().unwrap()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".upload_id-")).count()
}

#[tokio::test]
async fn the_server_of_these_tests_moves_an_object_for_one_of_many_writers() {
    let server = S3Server::start().await;
    let variables = server.variables().into_iter();
    let builder = variables.fold(AmazonS3Builder::new(), |builder, (name, value)| {
        builder.with_config(name.to_ascii_lowercase().parse().unwrap(), value)
    });
    let store = builder.with_allow_http(true).with_bucket_name("attic").build().unwrap();
    let path = object_store::path::Path::from("latest");
    let create = || PutOptions::from(PutMode::Create);
    store.put_opts(&path, "0".into(), create()).await.unwrap();
    assert!(store.put_opts(&path, "1".into(), create()).await.is_err());
    for round in 0..10 {
        let tag = store.head(&path).await.unwrap().e_tag;
        let moves = (0..8).map(|writer| {
            let mode = PutMode::Update(UpdateVersion { e_tag: tag.clone(), version: None });
            let text = format!("{round} {writer}");
            let (store, path) = (&store, &path);
            async move {
                store.put_opts(path, text.clone().into(), mode.into()).await.is_ok().then_some(text)
            }
        });
        let won: Vec<String> =
            futures::future::join_all(moves).await.into_iter().flatten().collect();
        let there = store.get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!([there], won[..], "exactly one moved it, and it is what that one wrote");
    }
}

#[tokio::test]
async fn a_version_whose_publisher_died_half_way_is_finished_by_the_next_one() {
    let server = S3Server::start().await;
    let objects = Arc::new(server.bucket().repository("abc"));
    let world = World::public(objects.clone()).await;
    world.publish(0, vec![whole(&[1])]).await.unwrap();
    world.publish(1, vec![whole(&[2])]).await.unwrap();
    // As if it had died before it moved `latest`.
    objects.write(&ObjectName::Latest, encode_latest(version(1)).into()).await.unwrap();
    assert_eq!(
        world.reopen(objects.clone()).await.unwrap().head().await.unwrap(),
        Some(version(1))
    );
    let next = world.reopen(Arc::new(server.bucket().repository("abc"))).await.unwrap();
    let late = publication(1, vec![whole(&[3])]);
    let error = next.publish(late, &world.key, &Silent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.chain().contains("the latest version is 2"), "{error:?}");
    check(&next, 2, &[2]).await;
    next.publish(publication(2, vec![whole(&[3])]), &world.key, &Silent).await.unwrap();
    check(&next, 3, &[3]).await;
    // The one that died comes back and does the same again.
    objects.write(&ObjectName::Latest, encode_latest(version(2)).into()).await.unwrap();
    let manifest = objects.read(&ObjectName::Manifest(version(3)), None).await.unwrap();
    let again = Commit { version: version(3), manifest, epoch: collective_model::Epoch(1) };
    objects.commit(again).await.unwrap();
    assert_eq!(objects.head().await.unwrap(), Some(version(3)));
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing() {
    let server = S3Server::start().await;
    let objects = server.bucket().repository("abc");
    let name = ObjectName::Pack(Digest([1; 32]));
    let mut incoming = objects.receive(name).await.unwrap();
    for _ in 0..3 {
        incoming = incoming.append(Bytes::from(vec![7; LARGE_BYTES / 3])).await.unwrap();
    }
    assert_eq!(parts(&server), 2, "the third is not full");
    assert_eq!(objects.size(&name).await.unwrap(), None);
    assert_eq!(objects.list("").await.unwrap(), []);
    drop(incoming);
    let limit = Instant::now() + Duration::from_secs(20);
    while parts(&server) > 0 {
        assert!(Instant::now() < limit, "parts are left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn pieces_of_any_size_become_the_object_that_they_are() {
    let server = S3Server::start().await;
    let objects = server.bucket().repository("abc");
    let name = ObjectName::Pack(Digest([1; 32]));
    let whole: Vec<u8> = (0..LARGE_BYTES).map(|at| (at / 1000) as u8).collect();
    let whole = Bytes::from(whole);
    // The last ones fill one part and two parts to the byte.
    for (total, step) in [
        (LARGE_BYTES, 1 << 20),
        (LARGE_BYTES, LARGE_BYTES),
        (LARGE_BYTES, 777_777),
        (5 << 20, 1 << 20),
        (10 << 20, 3 << 20),
        (0, 1),
    ] {
        let mut incoming = objects.receive(name).await.unwrap();
        for start in (0..total).step_by(step) {
            let piece = whole.slice(start..total.min(start + step));
            incoming = incoming.append(piece).await.unwrap();
        }
        incoming.keep().await.unwrap();
        let there = objects.read(&name, None).await.unwrap();
        assert!(there == whole.slice(..total), "{total} by {step}");
    }
}

#[tokio::test]
async fn wrong_credentials_are_denied_and_shown_nowhere() {
    let server = S3Server::start().await;
    let mut variables = server.variables();
    variables[1].1 = "SOMEBODYELSES".to_owned();
    let secrets = [variables[0].1.clone(), variables[1].1.clone()];
    let bucket = Bucket::open(&server.place(), variables.into_iter()).unwrap();
    let objects = bucket.repository("abc");
    let errors = [
        objects.head().await.unwrap_err(),
        objects.write(&ObjectName::Latest, Bytes::new()).await.unwrap_err(),
        objects.list("").await.unwrap_err(),
        bucket.claim("somebody").await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        let shown = format!("{error:?} {}", error.chain());
        assert!(!secrets.iter().any(|secret| shown.contains(secret)), "{shown}");
        assert!(shown.contains("s3://attic/repositories"), "{shown}");
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_unavailable_and_a_bucket_that_is_not_there_is_not_found() {
    let server = S3Server::start().await;
    let absent = Bucket::open("s3://cellar/x", server.variables().into_iter()).unwrap();
    let error = absent.repository("abc").list("").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    let objects = server.bucket().repository("abc");
    drop(server);
    assert_eq!(objects.head().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_place_belongs_to_one_owner_and_knows_its_repositories() {
    let server = S3Server::start().await;
    let bucket = server.bucket();
    for _ in 0..2 {
        bucket.claim("the attic's server").await.unwrap();
    }
    let error = server.bucket().claim("another").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    assert_eq!(bucket.repositories().await.unwrap(), [""; 0]);
    for name in ["abc", "abd"] {
        let world = World::public(Arc::new(bucket.repository(name))).await;
        world.publish(0, vec![whole(&[1, 2])]).await.unwrap();
    }
    assert_eq!(bucket.repositories().await.unwrap(), ["abc", "abd"]);
    for _ in 0..2 {
        bucket.repository("abc").remove_all().await.unwrap();
        assert_eq!(bucket.repository("abc").list("").await.unwrap(), []);
    }
    let world = World::public(Arc::new(bucket.repository("abd"))).await;
    check(&world.repository, 1, &[1, 2]).await;
}

#[tokio::test]
async fn a_repository_is_held_for_one_at_a_time_and_others_are_not() {
    let server = S3Server::start().await;
    let bucket = server.bucket();
    let (one, again) = (bucket.repository("abc"), bucket.repository("abc"));
    let guard = one.exclusive().await.unwrap();
    assert!(again.exclusive().now_or_never().is_none());
    assert!(bucket.repository("abd").exclusive().now_or_never().is_some());
    drop(guard);
    assert!(again.exclusive().now_or_never().is_some());
}
