//! Appliances in a registry: pushed, copied by others, read where they are, and pulled.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use collective_model::{BlockRange, DiskRole, Epoch, ErrorKind, Silent, Version};
use collective_repository::backend::{Backend, Credentials, Memory, ObjectName, Oci};
use collective_repository::{Descriptor, ExtentData, Publication, Repository, SigningKey};

use crate::registry::{PASSWORD, Registry, skopeo_copy};
use crate::world::{World, check, layer, publication, read_version, version, whole};

/// Three versions in memory; the third needs what the first two stored.
async fn world() -> (World, [Vec<u16>; 3]) {
    let world = World::public(Arc::new(Memory::new())).await;
    let first: Vec<u16> = (1..300).collect();
    let mut second = first.clone();
    second[7] = 900;
    let mut third = second.clone();
    third[200] = 901;
    world.publish(0, vec![whole(&first)]).await.unwrap();
    world.publish(1, vec![layer(299, Some(1), vec![(7, vec![900])])]).await.unwrap();
    world.publish(2, vec![layer(299, Some(2), vec![(200, vec![901])])]).await.unwrap();
    (world, [first, second, third])
}

/// Pushes what a place lacks; returns how many bytes of objects were sent.
async fn push(from: &Repository, to: Arc<dyn Backend>) -> u64 {
    Repository::create(to.clone(), from.descriptor().clone(), None).await.unwrap();
    let mut copied_bytes = 0;
    for version in from.versions_after(to.head().await.unwrap()).await.unwrap() {
        copied_bytes += from.copy_version(version, &*to, &Silent).await.unwrap().copied_bytes;
    }
    copied_bytes
}

#[tokio::test]
async fn a_pushed_appliance_is_read_where_it_is_and_pushed_again_costs_nothing() {
    let (world, contents) = world().await;
    let registry = Registry::open();
    assert_eq!(registry.oci("a/debian", None).head().await.unwrap(), None);
    let stored: u64 = world.backend.list("").await.unwrap().iter().map(|it| it.size_bytes).sum();
    let sent = push(&world.repository, Arc::new(registry.oci("a/debian", None))).await;
    assert!(sent > 0 && sent <= stored, "{sent} of {stored}: packs are shared by versions");
    assert_eq!(push(&world.repository, Arc::new(registry.oci("a/debian", None))).await, 0);

    let there = world.reopen(Arc::new(registry.oci("a/debian", None))).await.unwrap();
    assert_eq!(there.head().await.unwrap(), Some(version(3)));
    assert_eq!(there.versions().await.unwrap(), [1, 2, 3].map(version));
    for (content, number) in contents.iter().zip(1..) {
        check(&there, number, content).await;
    }
    let report = there.verify(&Silent).await.unwrap();
    assert!(report.damages.is_empty(), "{report:?}");
    // One version by its tag, and no newer one.
    let second = world.reopen(Arc::new(registry.oci("a/debian:2", None))).await.unwrap();
    assert_eq!(second.head().await.unwrap(), Some(version(2)));
    check(&second, 2, &contents[1]).await;
    let objects = registry.oci("a/debian", None);
    let packs = world.backend.list("packs/").await.unwrap();
    let pack = packs.iter().max_by_key(|pack| pack.size_bytes).unwrap();
    let whole = world.backend.read(&pack.name, None).await.unwrap();
    for range in [0..1, 10..1000, pack.size_bytes - 1..pack.size_bytes, 5..5] {
        let part = objects.read(&pack.name, Some(range.clone())).await.unwrap();
        assert_eq!(part, whole.slice(range.start as usize..range.end as usize));
    }
    let beyond = objects.read(&pack.name, Some(0..pack.size_bytes + 1)).await.unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn what_another_tool_copied_elsewhere_is_the_same_appliance_for_who_may_see_it() {
    let (world, contents) = world().await;
    let (near, far) = (Registry::open(), Registry::closed());
    push(&world.repository, Arc::new(near.oci("debian", None))).await;
    for tag in [2, 3] {
        let from = near.place(&format!("debian:{tag}"));
        skopeo_copy(&from, &far.place(&format!("mirror/debian:{tag}")));
    }
    for password in [None, Some("open barley")] {
        let stranger = Arc::new(far.oci("mirror/debian", password));
        let error = world.reopen(stranger).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        assert!(!format!("{error:?}").contains("barley"), "{error:?}");
    }
    let copied = world.reopen(Arc::new(far.oci("mirror/debian", Some(PASSWORD)))).await.unwrap();
    assert_eq!(copied.versions().await.unwrap(), [2, 3].map(version));
    check(&copied, 3, &contents[2]).await;
    check(&copied, 2, &contents[1]).await;
    // And back from there, beginning where the copy begins.
    let home = Arc::new(Memory::new());
    push(&copied, home.clone()).await;
    let pulled = world.reopen(home.clone()).await.unwrap();
    assert_eq!(pulled.versions().await.unwrap(), [2, 3].map(version));
    check(&pulled, 3, &contents[2]).await;
    assert!(pulled.verify(&Silent).await.unwrap().damages.is_empty());
    for object in home.list("").await.unwrap() {
        let original = world.backend.read(&object.name, None).await.unwrap();
        assert_eq!(home.read(&object.name, None).await.unwrap(), original, "{}", object.name);
    }
    // What comes later follows.
    let fourth = layer(299, Some(3), vec![(0, vec![902])]);
    world.publish(3, vec![fourth]).await.unwrap();
    push(&world.repository, Arc::new(far.oci("mirror/debian", Some(PASSWORD)))).await;
    push(&copied, home.clone()).await;
    assert_eq!(pulled.head().await.unwrap(), Some(version(4)));
    read_version(&pulled, 4).await.unwrap();
}

#[tokio::test]
async fn what_a_registry_damages_is_noticed_in_whole_and_in_part() {
    let (world, _) = world().await;
    let registry = Registry::open();
    push(&world.repository, Arc::new(registry.oci("debian", None))).await;
    let damaged = &registry.blobs()[0];
    let file = std::fs::File::options().read(true).write(true).open(damaged).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 1000).unwrap();
    let there = world.reopen(Arc::new(registry.oci("debian", None))).await.unwrap();
    let error = read_version(&there, 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    let home = Memory::new();
    let error = there.copy_version(version(1), &home, &Silent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert_eq!(home.head().await.unwrap(), None);
}

#[tokio::test]
async fn another_appliance_and_a_foreign_artifact_are_refused() {
    let (world, _) = world().await;
    let registry = Registry::open();
    push(&world.repository, Arc::new(registry.oci("debian", None))).await;
    let key = SigningKey::from_seed([9; 32]);
    let descriptor =
        Descriptor { publisher: key.publisher(), ..world.repository.descriptor().clone() };
    let place = Arc::new(registry.oci("debian", None));
    let error = Repository::create(place, descriptor, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    // Somebody's image under a number.
    let client = crate::http::client();
    let manifest = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":
        {"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:HASH","size":SIZE},"layers":[]}"#;
    let blob = &registry.blobs()[0];
    let size_bytes = std::fs::metadata(blob).unwrap().len().to_string();
    let hash = blob.parent().unwrap().file_name().unwrap().to_str().unwrap();
    let text = manifest.replace("HASH", hash).replace("SIZE", &size_bytes);
    let answer = client
        .put(format!("http://{}/v2/debian/manifests/9", registry.address))
        .header("content-type", "application/vnd.oci.image.manifest.v1+json")
        .body(text)
        .send()
        .await
        .unwrap();
    assert!(answer.status().is_success(), "{answer:?}");
    let error = world.reopen(Arc::new(registry.oci("debian", None))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
}

#[tokio::test]
async fn a_registry_can_be_published_to_by_one_who_follows_what_is_there() {
    let registry = Registry::open();
    let world = World::public(Arc::new(registry.oci("debian", None))).await;
    world.publish(0, vec![whole(&[1, 2, 3])]).await.unwrap();
    world.publish(1, vec![layer(3, Some(1), vec![(1, vec![9])])]).await.unwrap();
    let other = world.reopen(Arc::new(registry.oci("debian", None))).await.unwrap();
    check(&other, 2, &[1, 9, 3]).await;
    let late = publication(1, vec![whole(&[4])]);
    let error = other.publish(late, &world.key, &Silent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let stale = Publication { epoch: Epoch(0), ..publication(2, vec![whole(&[4])]) };
    let error = other.publish(stale, &world.key, &Silent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let error = world.backend.delete(&ObjectName::Latest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn only_the_frames_that_are_wanted_are_fetched_from_a_registry() {
    let (world, _) = world().await;
    let registry = Registry::open();
    push(&world.repository, Arc::new(registry.oci("debian", None))).await;
    let there = world.reopen(Arc::new(registry.oci("debian", None))).await.unwrap();
    let disk = there.version(version(3)).await.unwrap().disk(DiskRole::System).await.unwrap();
    // All of the largest pack but one frame is damaged; who reads that one frame does not notice.
    let extents = disk.map(BlockRange::new(0, 1)).await.unwrap();
    let ExtentData::Frame { frame, .. } = extents[0].what else { panic!("block 0 is not zero") };
    let pack = &registry.blobs()[0];
    let mut bytes = std::fs::read(pack).unwrap();
    let end = frame.offset + u64::from(frame.stored_bytes);
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte ^= u8::from(!(frame.offset..end).contains(&(at as u64)));
    }
    std::fs::write(pack, bytes).unwrap();
    let plains = disk.fetch(&[frame]).await.unwrap();
    assert_eq!(plains[0].len(), frame.plain_bytes());
}

/// A registry that wants a token, which it gives to who knows the password; it pages its tags, and one of its manifests has no end.
async fn wants_tokens(
    realm: axum::extract::State<String>,
    request: axum::extract::Request,
) -> Response {
    let header =
        |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let authorization = header("authorization").unwrap_or_default();
    let path = format!("{}?{}", request.uri().path(), request.uri().query().unwrap_or_default());
    match (authorization.as_str(), path.as_str()) {
        // ann:open sesame
        ("Basic YW5uOm9wZW4gc2VzYW1l", "/token?service=a+b&scope=repository%3Ax%3Apull%2Cpush") => {
            r#"{"token":"abc"}"#.into_response()
        }
        (_, path) if path.starts_with("/token") => StatusCode::UNAUTHORIZED.into_response(),
        ("Bearer abc", "/v2/x/tags/list?n=1000") => {
            ([("link", "<more>; rel=\"next\"")], r#"{"tags":["1","latest","2"]}"#).into_response()
        }
        ("Bearer abc", "/v2/x/tags/list?n=1000&last=2") => {
            r#"{"tags":["10","v11"]}"#.into_response()
        }
        ("Bearer abc", "/v2/x/manifests/10?") => vec![b' '; 8 << 20].into_response(),
        ("Bearer abc", _) => StatusCode::NOT_FOUND.into_response(),
        _ => {
            let scope = "repository:x:pull,push";
            let challenge = format!(r#"Bearer realm="{}",service="a b",scope="{scope}""#, realm.0);
            (StatusCode::UNAUTHORIZED, [("www-authenticate", challenge)]).into_response()
        }
    }
}

#[tokio::test]
async fn a_registry_that_wants_a_token_gets_one_and_its_answers_are_bounded() {
    crate::http::client();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let realm = format!("http://{address}/token");
    let router = axum::Router::new().fallback(wants_tokens).with_state(realm);
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let oci = |password| {
        let credentials = Some(Credentials::new("ann", password));
        Oci::open(&format!("{address}/x").parse().unwrap(), false, credentials).unwrap()
    };
    assert_eq!(oci(PASSWORD).head().await.unwrap(), Some(version(10)));
    assert_eq!(oci(PASSWORD).size(&ObjectName::Manifest(version(3))).await.unwrap(), None);
    let endless = oci(PASSWORD).size(&ObjectName::Manifest(version(10))).await.unwrap_err();
    assert_eq!(endless.kind(), ErrorKind::Corrupt, "{endless:?}");
    let denied = oci("open barley").head().await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Denied, "{denied:?}");
    server.abort();
}

#[tokio::test]
async fn a_copy_gets_what_follows_and_no_more_and_a_gap_is_told() {
    let (world, _) = world().await;
    let after = async |number| world.repository.versions_after(Version::new(number)).await;
    assert_eq!(after(0).await.unwrap(), [1, 2, 3].map(version));
    assert_eq!(after(2).await.unwrap(), [version(3)]);
    assert_eq!(after(3).await.unwrap(), []);
    assert_eq!(after(9).await.unwrap(), []);
    world.backend.delete(&ObjectName::Manifest(version(2))).await.unwrap();
    assert_eq!(after(0).await.unwrap(), [version(3)]);
    let error = after(1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("version 2"), "{error}");
}
