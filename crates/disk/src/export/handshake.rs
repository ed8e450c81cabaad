//! The negotiation that opens an NBD connection, without the connection.
//!
//! It is told one option at a time and answers with bytes to send and what comes next. States:
//!
//! ```text
//! options ──GO / EXPORT_NAME of a known export──> Transmission
//!    │ └───ABORT, EXPORT_NAME of an unknown one──> Close
//!    └──any other option: an answer, and on with options
//! ```
//!
//! Lengths inside an option are the client's words: each is checked against what is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::wire::{self, encode_option_reply};
use crate::source::Source;

/// Bytes of one option, at most. The protocol's longest string has 4096; more is answered with `TOO_BIG`.
pub(super) const OPTION_BYTES: usize = 8 * 1024;
/// Meta contexts asked for in one option, at most: there is one that we have.
const QUERIES: usize = 64;
const ALLOCATION_CONTEXT: &[u8] = b"base:allocation";
/// The number by which block status replies name `base:allocation` on this connection.
pub(super) const ALLOCATION_ID: u32 = 1;

/// Block sizes that we state: any byte may be read, 64 KiB is a good size, and one request reads at most this.
pub(super) const REQUEST_DATA_BYTES: u32 = 32 * 1024 * 1024;
const PREFERRED_BYTES: u32 = 64 * 1024;

/// The exports that a client may name.
pub(super) type Exports = BTreeMap<String, Arc<dyn Source>>;

/// What follows an option.
pub(super) enum Next {
    Options,
    Transmission(Agreed),
    Close,
}

/// What both sides agreed on.
pub(super) struct Agreed {
    pub export: String,
    pub source: Arc<dyn Source>,
    pub structured: bool,
    pub allocation: bool,
}

/// The server's side of a negotiation.
#[derive(Default)]
pub(super) struct Handshake {
    no_zeroes: bool,
    structured: bool,
    /// The export for which the client chose `base:allocation`.
    allocation_of: Option<Vec<u8>>,
}

impl Handshake {
    /// Starts with the client's flags; none if it is of a kind that we do not talk to.
    pub fn new(client_flags: u32) -> Option<Self> {
        let known = u32::from(wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
        let fixed = client_flags & u32::from(wire::FIXED_NEWSTYLE) != 0;
        let no_zeroes = client_flags & u32::from(wire::NO_ZEROES) != 0;
        (fixed && client_flags & !known == 0).then(|| Self { no_zeroes, ..Self::default() })
    }

    /// Takes an option, appends the answer to `out` and says what comes next.
    pub fn option(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &Exports,
        out: &mut Vec<u8>,
    ) -> Next {
        let mut reply = |kind, data: &[u8]| encode_option_reply(out, option, kind, data);
        match option {
            wire::OPTION_EXPORT_NAME => return self.export_name(data, exports, out),
            wire::OPTION_ABORT => {
                reply(wire::REPLY_ACK, &[]);
                return Next::Close;
            }
            wire::OPTION_LIST if data.is_empty() => {
                for name in exports.keys() {
                    reply(wire::REPLY_SERVER, &prefixed(name.as_bytes()));
                }
                reply(wire::REPLY_ACK, &[]);
            }
            wire::OPTION_STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                reply(wire::REPLY_ACK, &[]);
            }
            wire::OPTION_LIST | wire::OPTION_STRUCTURED_REPLY => {
                reply(wire::REPLY_INVALID, b"this option has no data");
            }
            wire::OPTION_INFO | wire::OPTION_GO => return self.info(option, data, exports, out),
            wire::OPTION_LIST_META_CONTEXT | wire::OPTION_SET_META_CONTEXT => {
                self.meta_context(option, data, exports, out);
            }
            _ => reply(wire::REPLY_UNSUPPORTED, &[]),
        }
        Next::Options
    }

    /// The oldest way to choose an export: there is no way to refuse but to hang up.
    fn export_name(&self, data: &[u8], exports: &Exports, out: &mut Vec<u8>) -> Next {
        let Some((export, source)) = find(exports, data) else { return Next::Close };
        out.extend(source.size_bytes().to_be_bytes());
        out.extend(wire::TRANSMISSION_FLAGS.to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; 124]);
        }
        self.agreed(export, source)
    }

    fn info(&self, option: u32, data: &[u8], exports: &Exports, out: &mut Vec<u8>) -> Next {
        let Some(name) = parse_info(data) else {
            encode_option_reply(out, option, wire::REPLY_INVALID, b"malformed");
            return Next::Options;
        };
        let Some((export, source)) = find(exports, name) else {
            encode_option_reply(out, option, wire::REPLY_UNKNOWN, b"no such export");
            return Next::Options;
        };
        let mut info = wire::INFO_EXPORT.to_be_bytes().to_vec();
        info.extend(source.size_bytes().to_be_bytes());
        info.extend(wire::TRANSMISSION_FLAGS.to_be_bytes());
        encode_option_reply(out, option, wire::REPLY_INFO, &info);
        let mut sizes = wire::INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [1, PREFERRED_BYTES, REQUEST_DATA_BYTES] {
            sizes.extend(size.to_be_bytes());
        }
        encode_option_reply(out, option, wire::REPLY_INFO, &sizes);
        encode_option_reply(out, option, wire::REPLY_ACK, &[]);
        if option == wire::OPTION_GO { self.agreed(export, source) } else { Next::Options }
    }

    fn meta_context(&mut self, option: u32, data: &[u8], exports: &Exports, out: &mut Vec<u8>) {
        let mut refuse = |kind, text: &[u8]| encode_option_reply(out, option, kind, text);
        if !self.structured {
            return refuse(wire::REPLY_INVALID, b"structured replies come first");
        }
        let Some((name, queries)) = parse_meta_context(data) else {
            return refuse(wire::REPLY_INVALID, b"malformed, or too many contexts");
        };
        if find(exports, name).is_none() {
            return refuse(wire::REPLY_UNKNOWN, b"no such export");
        }
        let listing = option == wire::OPTION_LIST_META_CONTEXT;
        let wanted = queries.iter().any(|query| {
            *query == ALLOCATION_CONTEXT || (listing && *query == b"base:".as_slice())
        }) || (listing && queries.is_empty());
        if wanted {
            let id = if listing { 0 } else { ALLOCATION_ID };
            let mut context = id.to_be_bytes().to_vec();
            context.extend(ALLOCATION_CONTEXT);
            encode_option_reply(out, option, wire::REPLY_META_CONTEXT, &context);
        }
        encode_option_reply(out, option, wire::REPLY_ACK, &[]);
        if !listing {
            self.allocation_of = wanted.then(|| name.to_vec());
        }
    }

    fn agreed(&self, export: &str, source: &Arc<dyn Source>) -> Next {
        let chosen = self.allocation_of.as_deref();
        Next::Transmission(Agreed {
            export: export.to_owned(),
            source: Arc::clone(source),
            structured: self.structured,
            allocation: self.structured && chosen == Some(export.as_bytes()),
        })
    }
}

fn find<'a>(exports: &'a Exports, name: &[u8]) -> Option<(&'a str, &'a Arc<dyn Source>)> {
    let (name, source) = exports.get_key_value(std::str::from_utf8(name).ok()?)?;
    Some((name, source))
}

fn prefixed(text: &[u8]) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("names of exports are short");
    [&length.to_be_bytes(), text].concat()
}

/// Splits the data of `INFO` and `GO`: a name, then a list of wishes, which we grant unasked.
fn parse_info(data: &[u8]) -> Option<&[u8]> {
    let (name, rest) = split_text(data)?;
    let (count, wishes) = rest.split_first_chunk()?;
    (wishes.len() == 2 * usize::from(u16::from_be_bytes(*count))).then_some(name)
}

fn parse_meta_context(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let (name, rest) = split_text(data)?;
    let (count, mut rest) = rest.split_first_chunk()?;
    let count = usize::try_from(u32::from_be_bytes(*count)).ok()?;
    if count > QUERIES {
        return None;
    }
    let mut queries = Vec::new();
    for _ in 0..count {
        let (query, after) = split_text(rest)?;
        queries.push(query);
        rest = after;
    }
    rest.is_empty().then_some((name, queries))
}

/// Splits a text off that has its length in front.
fn split_text(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

#[cfg(test)]
#[path = "handshake/tests.rs"]
mod tests;
