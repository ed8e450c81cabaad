//! The negotiation, told options as a client would send them and as no client should.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use collective_model::Result;
use proptest::prelude::*;

use super::{Exports, Handshake, Next, prefixed};
use crate::export::wire;
use crate::source::{Source, StatusExtent};

struct Nothing;

#[async_trait]
impl Source for Nothing {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }

    async fn read(&self, _: u64, length: usize) -> Result<Bytes> {
        Ok(vec![0; length].into())
    }

    async fn status(&self, _: u64, length: u64) -> Result<Vec<StatusExtent>> {
        Ok(vec![StatusExtent { length, zero: true }])
    }
}

fn exports() -> Exports {
    Exports::from([("system".to_owned(), Arc::new(Nothing) as Arc<dyn Source>)])
}

fn handshake() -> Handshake {
    Handshake::new(3).unwrap()
}

/// Gives an option to a handshake; returns the kinds of the replies, and what comes next.
fn check(handshake: &mut Handshake, option: u32, data: &[u8]) -> (Vec<u32>, Next) {
    let mut out = Vec::new();
    let next = handshake.option(option, data, &exports(), &mut out);
    let mut kinds = Vec::new();
    let mut rest = out.as_slice();
    while rest.len() >= 20 {
        kinds.push(u32::from_be_bytes(rest[12..16].try_into().unwrap()));
        let length = u32::from_be_bytes(rest[16..20].try_into().unwrap()) as usize;
        rest = &rest[20 + length..];
    }
    (kinds, next)
}

fn go(name: &[u8]) -> Vec<u8> {
    [prefixed(name), vec![0, 1, 0, 3]].concat()
}

fn contexts(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).unwrap().to_be_bytes().to_vec();
    let queries = queries.iter().flat_map(|query| prefixed(query));
    [prefixed(name), count, queries.collect()].concat()
}

#[test]
fn a_client_of_the_old_style_is_not_served() {
    for flags in [0, 2, 4, 1 << 31] {
        assert!(Handshake::new(flags).is_none(), "{flags}");
    }
}

#[test]
fn go_agrees_on_what_was_chosen_before() {
    let mut handshake = handshake();
    check(&mut handshake, wire::OPTION_STRUCTURED_REPLY, &[]);
    let query = contexts(b"system", &[b"base:allocation"]);
    let (kinds, _) = check(&mut handshake, wire::OPTION_SET_META_CONTEXT, &query);
    assert_eq!(kinds, [wire::REPLY_META_CONTEXT, wire::REPLY_ACK]);
    let (kinds, next) = check(&mut handshake, wire::OPTION_GO, &go(b"system"));
    assert_eq!(kinds, [wire::REPLY_INFO, wire::REPLY_INFO, wire::REPLY_ACK]);
    let Next::Transmission(agreed) = next else { panic!("no transmission") };
    assert_eq!((agreed.export.as_str(), agreed.structured, agreed.allocation), {
        ("system", true, true)
    });
}

#[test]
fn contexts_need_structured_replies_first() {
    let query = contexts(b"system", &[b"base:allocation"]);
    let (kinds, _) = check(&mut handshake(), wire::OPTION_SET_META_CONTEXT, &query);
    assert_eq!(kinds, [wire::REPLY_INVALID]);
}

#[test]
fn an_unknown_export_is_refused_and_the_client_may_try_another() {
    let (kinds, next) = check(&mut handshake(), wire::OPTION_GO, &go(b"other"));
    assert_eq!(kinds, [wire::REPLY_UNKNOWN]);
    assert!(matches!(next, Next::Options));
    let (_, next) = check(&mut handshake(), wire::OPTION_EXPORT_NAME, b"other");
    assert!(matches!(next, Next::Close));
}

#[test]
fn lengths_that_lie_are_refused() {
    let mut lying = go(b"system");
    lying[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    let (kinds, _) = check(&mut handshake(), wire::OPTION_GO, &lying);
    assert_eq!(kinds, [wire::REPLY_INVALID]);
    let mut handshake = handshake();
    check(&mut handshake, wire::OPTION_STRUCTURED_REPLY, &[]);
    let many = [prefixed(b"system"), u32::MAX.to_be_bytes().to_vec()].concat();
    let (kinds, _) = check(&mut handshake, wire::OPTION_SET_META_CONTEXT, &many);
    assert_eq!(kinds, [wire::REPLY_INVALID]);
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer_of_bounded_size(
        options in prop::collection::vec((0_u32..12, prop::collection::vec(any::<u8>(), 0..64)), 1..8)
    ) {
        let mut handshake = handshake();
        for (option, data) in options {
            let mut out = Vec::new();
            handshake.option(option, &data, &exports(), &mut out);
            prop_assert!(out.len() < 256);
        }
    }
}
