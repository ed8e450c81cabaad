//! A prefix of a bucket that holds repositories, how it is reached, and whose it is.
//!
//! The place is written `s3://bucket/prefix`. Credentials, region and endpoint come from the variables of the environment that other
//! tools read (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`, …) or from
//! the machine's role, never from the place, and are shown nowhere.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use collective_model::{Error, ErrorKind, Result, ResultExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error as StoreError, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, RetryConfig,
};
use tokio::sync::Mutex;

use super::S3;

/// Nothing from the store for this long, and it counts as away. A part of an upload has to be taken in this time, too.
const STALL: Duration = Duration::from_secs(60);

/// How often a request is tried again, and for how long: hiccups of a store only, since who asked tries again as well.
const RETRIES: usize = 4;
const RETRY_LIMIT: Duration = Duration::from_secs(30);

/// What a store calls it when the credentials are not right, or not enough.
const REFUSALS: [&str; 6] = [
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "NotSignedUp",
];

/// The object that says whose the repositories are.
const OWNER: &str = "owner";

/// Bytes that are read of it at most.
const OWNER_BYTES_MAX: u64 = 1 << 10;

/// Where repositories are in an S3 store. Cheap to clone.
#[derive(Clone)]
pub struct Bucket {
    store: Arc<AmazonS3>,
    prefix: String,
    /// How the place is called in messages.
    shown: String,
    /// For each repository that somebody uses now: what commits and prunes take turns by.
    turns: Arc<StdMutex<HashMap<String, Weak<Mutex<()>>>>>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The store knows the credentials.
        write!(f, "Bucket {{ {} }}", self.shown)
    }
}

impl Bucket {
    /// Opens `s3://bucket/prefix` with what the variables of an environment say; asks nobody yet.
    ///
    /// # Errors
    /// `Invalid` if it is no such place, or a variable makes no sense.
    pub fn open(place: &str, variables: impl Iterator<Item = (String, String)>) -> Result<Self> {
        let (bucket, prefix) = parse(place)?;
        let client = ClientOptions::new().with_timeout_disabled().with_read_timeout(STALL);
        let retry = RetryConfig {
            max_retries: RETRIES,
            retry_timeout: RETRY_LIMIT,
            backoff: BackoffConfig::default(),
        };
        let builder = AmazonS3Builder::new().with_client_options(client).with_retry(retry);
        let builder = variables.fold(builder, |builder, (name, value)| {
            // Who writes http:// means it: the signature does not show the secret, and what comes is checked.
            let is_plain = name.starts_with("AWS_ENDPOINT") && value.starts_with("http://");
            let builder = if is_plain { builder.with_allow_http(true) } else { builder };
            match name.to_ascii_lowercase().parse() {
                Ok(key) if name.starts_with("AWS_") => builder.with_config(key, value),
                _ => builder,
            }
        });
        let shown = place.trim_end_matches('/').to_owned();
        let cannot = || format!("cannot set up {shown}");
        let store =
            builder.with_bucket_name(bucket).build().or_error(ErrorKind::Invalid, cannot)?;
        Ok(Self { store: Arc::new(store), prefix, shown, turns: Arc::default() })
    }

    /// Returns the objects of one repository, which need not exist.
    #[must_use]
    pub fn repository(&self, name: &str) -> S3 {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = turns.get(name).and_then(Weak::upgrade).unwrap_or_default();
        turns.insert(name.to_owned(), Arc::downgrade(&turn));
        let (root, shown) = (self.inside(name), format!("{}/{name}", self.shown));
        S3 { store: Arc::clone(&self.store), root, shown, turn }
    }

    /// Returns the names below which there are objects.
    ///
    /// # Errors
    /// `Unavailable` if the store cannot be reached.
    pub async fn repositories(&self) -> Result<Vec<String>> {
        let prefix = Path::from(self.prefix.as_str());
        let listed = self.store.list_with_delimiter(Some(&prefix)).await;
        let listed =
            listed.map_err(|error| failed(&format!("cannot list {}", self.shown), error))?;
        let names = listed.common_prefixes.iter().filter_map(|path| path.filename());
        Ok(names.map(str::to_owned).collect())
    }

    /// Makes the place `owner`'s, unless it is already: two who do not know of each other would take each other's repositories for forgotten
    /// ones, and prune what the other publishes.
    ///
    /// # Errors
    /// `Conflict` if it is another's; `NotFound` if there is no such bucket; `Denied`; `Unavailable`.
    pub async fn claim(&self, owner: &str) -> Result<()> {
        let path = Path::from(self.inside(OWNER));
        let cannot = |error| failed(&format!("cannot use {}", self.shown), error);
        let bytes = Bytes::from(format!("{owner}\n"));
        let made =
            self.store.put_opts(&path, bytes.clone().into(), PutOptions::from(PutMode::Create));
        match made.await {
            Ok(_) => return Ok(()),
            Err(StoreError::AlreadyExists { .. }) => {}
            Err(error) => return Err(cannot(error)),
        }
        let found = self.store.get(&path).await.map_err(cannot)?;
        let is_ours =
            found.meta.size <= OWNER_BYTES_MAX && found.bytes().await.map_err(cannot)? == bytes;
        if is_ours {
            return Ok(());
        }
        let message = format!("the objects in {} are another server's", self.shown);
        Err(Error::new(ErrorKind::Conflict, message).with_hint(format!(
            "choose another prefix; if that server is gone for good, remove the object `{OWNER}` there first"
        )))
    }

    fn inside(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }
}

/// Takes a place apart into its bucket and its prefix.
fn parse(place: &str) -> Result<(&str, String)> {
    let rest = place.strip_prefix("s3://").unwrap_or_default().trim_end_matches('/');
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_plain = |part: &str| {
        let sign = |sign: u8| sign.is_ascii_alphanumeric() || b"-_.".contains(&sign);
        !part.is_empty() && !part.starts_with('.') && part.bytes().all(sign)
    };
    if is_plain(bucket) && (prefix.is_empty() || prefix.split('/').all(is_plain)) {
        return Ok((bucket, prefix.to_owned()));
    }
    // What was written is not repeated: it might be a secret in the wrong place.
    let message = "the place of the objects is not of the form s3://bucket/prefix";
    Err(Error::new(ErrorKind::Invalid, message).with_hint(
        "letters, digits, `-`, `_`, `.` and `/`; credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ))
}

/// Turns what a store said into an error: its kind by what a caller can do.
pub(super) fn failed(message: &str, error: StoreError) -> Error {
    let text = error.to_string();
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let code = code.map(|(code, _)| code);
    let is_refused =
        matches!(error, StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. });
    if is_refused || code.is_some_and(|code| REFUSALS.contains(&code)) {
        // The text is left out: it may repeat the request, with the name of the key and what was signed.
        let message = format!("{message}: {}", code.unwrap_or("access denied"));
        return Error::new(ErrorKind::Denied, message).with_hint(
            "look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights on the bucket",
        );
    }
    let kind = match &error {
        _ if code == Some("NoSuchBucket") => ErrorKind::NotFound,
        StoreError::NotFound { .. } => ErrorKind::NotFound,
        StoreError::AlreadyExists { .. } | StoreError::Precondition { .. } => ErrorKind::Conflict,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, message).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::{Bucket, parse};

    #[test]
    fn a_place_is_a_bucket_and_a_prefix_and_nothing_else() {
        for (place, bucket, prefix) in [
            ("s3://attic", "attic", ""),
            ("s3://attic/", "attic", ""),
            ("s3://attic.example/a/b-1/", "attic.example", "a/b-1"),
        ] {
            assert_eq!(parse(place).unwrap(), (bucket, prefix.to_owned()));
        }
        for place in [
            "",
            "attic",
            "/attic",
            "s3://",
            "s3:///a",
            "s3://attic//a",
            "s3://attic/../a",
            "s3://KEY:SECRET@attic/a",
            "https://attic/a",
        ] {
            let error = parse(place).unwrap_err();
            assert!(!error.chain().contains("SECRET"), "{error:?}");
        }
    }

    #[test]
    fn what_is_shown_has_no_credentials() {
        let variables = [
            ("AWS_ACCESS_KEY_ID", "KEYNAME"),
            ("AWS_SECRET_ACCESS_KEY", "SECRET"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let _ = rustls::crypto::ring::default_provider().install_default();
        let bucket = Bucket::open("s3://attic/a", variables.into_iter()).unwrap();
        let shown = format!("{bucket:?} {:?}", bucket.repository("x"));
        assert!(!shown.contains("KEYNAME") && !shown.contains("SECRET"), "{shown}");
        assert!(shown.contains("s3://attic/a/x"), "{shown}");
    }
}
