//! Coming in: first contact, joining, logging in and out, passwords.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use collective_api::identity::{DeviceKey, Identity};
use collective_api::keybag::{PasswordKeys, PasswordParameters};
use collective_api::server::{CreateToken, GuestHost, JoinRequest, LoginRequest, PasswordChange};
use collective_model::{ErrorKind, UserName};
use collective_server::UpkeepSettings;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::world::{PASSWORD, World, debian, on_both_databases, start};

on_both_databases! {
    a_person_logs_in_at_a_joined_host_and_sees_what_their_group_was_granted
    a_wrong_password_and_an_unknown_user_get_the_same_answers
    guesses_at_a_password_are_bounded_also_with_the_right_one
    a_token_lets_one_host_in_once_and_in_its_time
    a_revoked_device_or_host_is_refused_at_once
    a_computer_without_a_token_becomes_a_host_by_a_log_in
    guests_may_have_the_name_of_another_guest_and_of_a_joined_host
    a_removed_user_leaves_nothing_also_after_a_crash
    a_changed_password_ends_the_old_one_and_the_other_log_ins
    strangers_and_people_may_not_do_what_administrators_do
}

async fn a_person_logs_in_at_a_joined_host_and_sees_what_their_group_was_granted(world: World) {
    world.peopled().await;
    let attic = world.join("attic").await;
    let ann = world.login(&attic, "ann").await;
    let (profile, tag) = ann.client.profile(None).await.unwrap().unwrap();
    assert_eq!(profile.appliances[0].name, debian());
    assert!(ann.client.profile(tag.as_deref()).await.unwrap().is_none());
    let subscription = ann.subscribe().await.unwrap();
    assert_eq!(ann.subscribe().await.unwrap(), subscription);
    let (profile, _) = ann.client.profile(tag.as_deref()).await.unwrap().unwrap();
    assert_eq!(profile.subscriptions, [subscription]);
    let bob = world.login(&attic, "bob").await;
    let (profile, _) = bob.client.profile(None).await.unwrap().unwrap();
    assert!(profile.appliances.is_empty() && profile.subscriptions.is_empty());
}

async fn a_wrong_password_and_an_unknown_user_get_the_same_answers(world: World) {
    world.peopled().await;
    let attic = world.join("attic").await;
    let known = world.try_login(&attic, "ann", "wrong").await.err().unwrap();
    let unknown = world.try_login(&attic, "nobody", "wrong").await.err().unwrap();
    assert_eq!(known.kind(), ErrorKind::Denied);
    assert_eq!((known.kind(), known.chain()), (unknown.kind(), unknown.chain()));
    let nobody: UserName = "nobody".parse().unwrap();
    let first = attic.client.login_parameters(&nobody).await.unwrap();
    assert_eq!(first, attic.client.login_parameters(&nobody).await.unwrap());
    let real = attic.client.login_parameters(&"ann".parse().unwrap()).await.unwrap();
    assert_eq!((first.memory_kib, first.passes), (real.memory_kib, real.passes));
}

async fn guesses_at_a_password_are_bounded_also_with_the_right_one(world: World) {
    world.peopled().await;
    let attic = world.join("attic").await;
    let mut refused = None;
    for _ in 0..6 {
        let error = world.try_login(&attic, "ann", "wrong").await.err().unwrap();
        refused = Some(error);
    }
    let refused = refused.unwrap();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.to_string().contains("try again in"), "{refused}");
    let right = world.try_login(&attic, "ann", PASSWORD).await.err().unwrap();
    assert_eq!(right.kind(), ErrorKind::Unavailable);
    world.login(&attic, "bob").await;
}

async fn a_token_lets_one_host_in_once_and_in_its_time(world: World) {
    let key = DeviceKey::generate().unwrap();
    let request = CreateToken { note: "attic".to_owned(), life_s: 3600 };
    let made = world.admin.create_token(&request).await.unwrap();
    let attic = JoinRequest {
        token: made.secret,
        name: "attic".parse().unwrap(),
        request: key.request().unwrap(),
    };
    world.client(None).join(&attic).await.unwrap();
    let cellar = JoinRequest { name: "cellar".parse().unwrap(), ..attic.clone() };
    let error = world.client(None).join(&cellar).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let tokens = world.admin.tokens().await.unwrap();
    assert_eq!(tokens[0].used_by, Some("attic".parse().unwrap()));

    // A name that is taken costs no token.
    let made = world.admin.create_token(&request).await.unwrap();
    let again = JoinRequest { token: made.secret.clone(), ..attic };
    assert_eq!(world.client(None).join(&again).await.unwrap_err().kind(), ErrorKind::Conflict);
    world.sql("update tokens set expires = 1 where used_by is null").await;
    let late = JoinRequest { token: made.secret, ..cellar.clone() };
    assert_eq!(world.client(None).join(&late).await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(world.admin.hosts().await.unwrap().len(), 1);
}

async fn a_revoked_device_or_host_is_refused_at_once(world: World) {
    world.peopled().await;
    let attic = world.join("attic").await;
    let (ann, bob) = (world.login(&attic, "ann").await, world.login(&attic, "bob").await);
    ann.client.logout().await.unwrap();
    let error = ann.client.profile(None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("`ann`"), "{error}");
    bob.client.profile(None).await.unwrap();
    world.admin.remove_host(attic.id).await.unwrap();
    assert_eq!(bob.client.profile(None).await.unwrap_err().kind(), ErrorKind::Denied);
    let error = world.try_login(&attic, "ann", PASSWORD).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Denied);
}

async fn a_computer_without_a_token_becomes_a_host_by_a_log_in(world: World) {
    world.peopled().await;
    let (user, client): (UserName, _) = ("ann".parse().unwrap(), world.client(None));
    let parameters = client.login_parameters(&user).await.unwrap();
    let keys = PasswordKeys::derive(PASSWORD, &parameters).unwrap();
    let (device, host) = (DeviceKey::generate().unwrap(), DeviceKey::generate().unwrap());
    let (name, request) = ("laptop".parse().unwrap(), host.request().unwrap());
    let request = LoginRequest {
        user,
        proof: keys.proof,
        request: device.request().unwrap(),
        guest: Some(GuestHost { name, request }),
    };
    let reply = client.login(&request).await.unwrap();
    let joined = reply.host.unwrap();
    let identity = Identity { certificate: joined.issued.certificate, key: host };
    let known = LoginRequest { guest: None, ..request.clone() };
    let again = world.client(Some(&identity)).login(&known).await.unwrap();
    assert_eq!(again.host, None);
    assert_eq!(client.login(&known).await.unwrap_err().kind(), ErrorKind::Denied);
    let hosts = world.admin.hosts().await.unwrap();
    assert_eq!((hosts.len(), hosts[0].id, hosts[0].member), (1, joined.host, false));
}

async fn guests_may_have_the_name_of_another_guest_and_of_a_joined_host(world: World) {
    world.peopled().await;
    world.join("attic").await;
    let client = world.client(None);
    let user: UserName = "ann".parse().unwrap();
    let parameters = client.login_parameters(&user).await.unwrap();
    let keys = PasswordKeys::derive(PASSWORD, &parameters).unwrap();
    let key = DeviceKey::generate().unwrap();
    let guest = GuestHost { name: "attic".parse().unwrap(), request: key.request().unwrap() };
    let request = LoginRequest {
        user,
        proof: keys.proof,
        request: key.request().unwrap(),
        guest: Some(guest),
    };
    let first = client.login(&request).await.unwrap().host.unwrap().host;
    let second = client.login(&request).await.unwrap().host.unwrap().host;
    assert_ne!(first, second);
    let hosts = world.admin.hosts().await.unwrap();
    assert!(hosts.iter().all(|host| host.name.as_str() == "attic"));
    assert_eq!(hosts.iter().filter(|host| host.member).count(), 1);
    assert_eq!(hosts.len(), 3);
}

async fn a_removed_user_leaves_nothing_also_after_a_crash(mut world: World) {
    world.peopled().await;
    let attic = world.join("attic").await;
    let ann = world.login(&attic, "ann").await;
    let id = ann.subscribe().await.unwrap().repository.id;
    let repositories = world.dir.path().join("repositories");
    let objects = repositories.join(id.to_string());
    // Another's removal, of which a crash left everything but the transaction.
    let crashed = repositories.join("0123456789abcdef0123456789abcdef");
    std::fs::create_dir_all(crashed.join("packs")).unwrap();
    std::fs::write(crashed.join("repository.json"), "{}").unwrap();
    assert!(objects.exists());
    world.admin.remove_user(&"ann".parse().unwrap()).await.unwrap();
    assert!(!objects.exists());
    assert_eq!(ann.client.profile(None).await.unwrap_err().kind(), ErrorKind::Denied);
    world.stop().await;
    world.start().await.unwrap();
    assert!(crashed.exists(), "what the database does not name is left alone");
    world.stop().await;
    world.sql("insert into removals values ('0123456789abcdef0123456789abcdef')").await;
    world.start().await.unwrap();
    assert!(!crashed.exists());
    assert_eq!(std::fs::read_dir(&repositories).unwrap().count(), 1, "the appliance's alone");
}

async fn a_changed_password_ends_the_old_one_and_the_other_log_ins(world: World) {
    world.peopled().await;
    let attic = world.join("attic").await;
    let (here, there) = (world.login(&attic, "ann").await, world.login(&attic, "ann").await);
    let user = "ann".parse().unwrap();
    let old = here.client.login_parameters(&user).await.unwrap();
    let old = PasswordKeys::derive(PASSWORD, &old).unwrap();
    let parameters = PasswordParameters::generate();
    let keys = PasswordKeys::derive("battery staple", &parameters).unwrap();
    assert_eq!(attic.client.own_keybag().await.unwrap_err().kind(), ErrorKind::Denied);
    let keybag = here.client.own_keybag().await.unwrap().rewrap(&here.secret, &keys);
    let unproved = PasswordChange { parameters, proof: keys.proof, keybag, current: None };
    let error = here.client.change_password(&unproved).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let change = PasswordChange { current: Some(old.proof), ..unproved };
    here.client.change_password(&change).await.unwrap();
    here.client.profile(None).await.unwrap();
    assert_eq!(there.client.profile(None).await.unwrap_err().kind(), ErrorKind::Denied);
    let error = world.try_login(&attic, "ann", PASSWORD).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let again = world.try_login(&attic, "ann", "battery staple").await.unwrap();
    assert_eq!(again.secret, here.secret);
}

async fn strangers_and_people_may_not_do_what_administrators_do(world: World) {
    world.peopled().await;
    let attic = world.join("attic").await;
    let ann = world.login(&attic, "ann").await;
    for client in [&world.client(None), &attic.client, &ann.client] {
        assert_eq!(client.users().await.unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(client.audit().await.unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(client.appliance(&debian()).await.unwrap_err().kind(), ErrorKind::Denied);
        let group = "mine".parse().unwrap();
        assert_eq!(client.create_group(&group).await.unwrap_err().kind(), ErrorKind::Denied);
        let request = CreateToken { note: String::new(), life_s: 60 };
        assert_eq!(client.create_token(&request).await.unwrap_err().kind(), ErrorKind::Denied);
    }
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused_by_a_client_that_knew_the_first() {
    let mut world = World::sqlite().await;
    world.stop().await;
    std::fs::remove_file(world.dir.path().join("authority.pem")).unwrap();
    world.start().await.unwrap();
    let error = world.client(None).server().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("changed"), "{error}");
}

#[tokio::test]
async fn a_silent_client_keeps_nobody_waiting() {
    let world = World::sqlite().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(world.address.to_string()).await.unwrap());
    }
    world.client(None).server().await.unwrap();
    let mut nothing = [0; 1];
    assert!(silent[0].try_read(&mut nothing).is_err(), "the silent one is still connected");
    drop(world);
    let _ = silent[0].read(&mut nothing).await;
}

#[tokio::test]
async fn a_second_server_on_the_directory_is_refused() {
    let world = World::sqlite().await;
    let started = start(world.dir.path(), None, None, UpkeepSettings::default()).await;
    let error = started.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains(world.dir.path().to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn every_file_of_the_server_is_its_owners_alone() {
    let world = World::sqlite().await;
    world.peopled().await;
    let mut files = 0;
    check_private(world.dir.path(), &mut files);
    assert!(files > 4, "{files}");
}

/// A file is private if it, or a directory above it, is closed to others.
fn check_private(path: &Path, files: &mut u32) {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o077, 0, "{}", path.display());
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            check_private(&entry.unwrap().path(), files);
        }
    } else {
        *files += 1;
    }
}
