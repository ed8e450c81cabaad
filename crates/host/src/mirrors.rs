//! Mirrors: web places that show copies of appliances' repositories, as further sources of frames (docs/decisions/0011).
//!
//! A mirror has each repository below its id, as `collective appliance mirror` makes it. It is asked for packs only and need not
//! be trusted; user disks are nobody's business but the server's. Which source is asked, and when one is dropped, is
//! `disk`'s to say; this knows where they are, and tells people.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use collective_api::host::{DroppedStatus, SourceStatus};
use collective_disk::SourceStats;
use collective_model::{Epoch, Error, ErrorKind, Result, ResultExt, Timestamp};
use collective_repository::backend::{Backend, Http};
use collective_repository::{Descriptor, Kind};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};

use crate::now;

/// Mirrors of a host: each is tried now and then.
pub const MAX_MIRRORS: usize = 8;

/// How long a mirror may take to be reached, and to show a next byte. Whatever a guest waits for is raced long before.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const STALL: Duration = Duration::from_secs(10);

/// Places that a mirror may send us on to, one after the other.
const MAX_REDIRECTS: usize = 3;

/// Where a mirror is: an `http` or `https` URL without a secret in it, as it is shown to people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MirrorUrl(String);

impl fmt::Display for MirrorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for MirrorUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |why: &str| {
            // It may have a secret in it: it is not repeated.
            Error::new(ErrorKind::Invalid, format!("this is not the URL of a mirror: {why}"))
                .with_hint("write it as http://mirror.example/appliances")
        };
        let url = Url::parse(text).map_err(|error| refused(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refused("it has to begin with http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("it must not have a user or password, as everybody sees it"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refused("it must not have a `?` or `#`, as paths are put behind it"));
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

/// The mirrors of this host.
#[derive(Debug)]
pub(crate) struct Mirrors {
    urls: Vec<MirrorUrl>,
    /// None without mirrors.
    client: Option<Client>,
}

impl Mirrors {
    /// Makes ready to ask mirrors; asks none yet.
    pub(crate) fn open(urls: &[MirrorUrl]) -> Result<Self> {
        let mut known = BTreeSet::new();
        let urls = urls.iter().filter(|url| known.insert(*url)).take(MAX_MIRRORS);
        let urls: Vec<MirrorUrl> = urls.cloned().collect();
        let client = (!urls.is_empty()).then(client).transpose()?;
        Ok(Self { urls, client })
    }

    /// How people know them.
    pub(crate) fn names(&self) -> Vec<String> {
        self.urls.iter().map(MirrorUrl::to_string).collect()
    }

    /// The copies of a repository; none of one that is not public.
    pub(crate) fn of(&self, descriptor: &Descriptor) -> Vec<Arc<dyn Backend>> {
        let Some(client) = &self.client else { return Vec::new() };
        if descriptor.encrypted || descriptor.kind != Kind::Appliance {
            return Vec::new();
        }
        let copy = |url: &MirrorUrl| {
            let base = format!("{url}/{}", descriptor.id);
            let http = Http::new(client.clone(), &base, Epoch(0)).ranges_only();
            Arc::new(http.with_limits(STALL, STALL)) as Arc<dyn Backend>
        };
        self.urls.iter().map(copy).collect()
    }
}

fn client() -> Result<Client> {
    // As the way to the server: whoever sets a proxy for a shell does not mean the daemon.
    let builder = Client::builder().no_proxy().connect_timeout(CONNECT_LIMIT);
    let client = builder.redirect(Policy::limited(MAX_REDIRECTS)).build();
    client.or_error(ErrorKind::Internal, || "cannot make ready to ask mirrors".to_owned())
}

/// What came from where, for people and programs.
pub(crate) fn status(sources: &[SourceStats]) -> Vec<SourceStatus> {
    let (now, instant) = (now(), Instant::now());
    let shown = |source: &SourceStats| SourceStatus {
        mirror: source.mirror.clone(),
        fetched_bytes: source.fetched_bytes,
        failures: source.failures,
        late: source.late,
        dropped: source.dropped.as_ref().map(|dropped| DroppedStatus {
            since: before(now, instant.saturating_duration_since(dropped.since)),
            until: now.after(dropped.until.saturating_duration_since(instant)),
            reason: dropped.reason.clone(),
        }),
    };
    sources.iter().map(shown).collect()
}

fn before(now: Timestamp, ago: Duration) -> Timestamp {
    Timestamp(now.0.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use collective_model::{ErrorKind, RepositoryId};
    use collective_repository::{Descriptor, Kind, RepositorySecret, SigningKey};

    use super::{MAX_MIRRORS, MirrorUrl, Mirrors};

    #[test]
    fn a_url_is_a_place_and_has_no_secret() {
        for (text, url) in [
            ("http://mirror/", "http://mirror"),
            ("HTTPS://Mirror.example:8443/a/b/", "https://mirror.example:8443/a/b"),
            ("http://[::1]:80", "http://[::1]"),
        ] {
            assert_eq!(text.parse::<MirrorUrl>().unwrap().to_string(), url);
        }
        for (text, why) in [
            ("mirror", "relative URL"),
            ("/srv/mirror", "relative URL"),
            ("file:///srv/mirror", "begin with http"),
            ("http://", "empty host"),
            ("http://ann:barley@mirror/", "user or password"),
            ("http://barley@mirror/", "user or password"),
            ("http://mirror/?token=barley", "`?`"),
            ("http://mirror/#barley", "`#`"),
        ] {
            let error = text.parse::<MirrorUrl>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(why), "{text}: {error}");
            assert!(!error.chain().contains("barley") && error.hint().is_some());
        }
    }

    #[test]
    fn only_what_is_public_has_mirrors_and_they_are_few() {
        let urls: Vec<MirrorUrl> =
            (0..20).map(|at| format!("http://m{}", at / 2).parse().unwrap()).collect();
        // The process has one provider; whichever test comes first installs it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let none = Mirrors::open(&[]).unwrap();
        let id = RepositoryId([1; 16]);
        let publisher = SigningKey::from_seed([1; 32]).publisher();
        let public = Descriptor::public(id, Kind::Appliance, publisher);
        let secret = RepositorySecret::new([1; 32]);
        assert!(none.of(&public).is_empty());
        let some = Mirrors::open(&urls).unwrap();
        assert_eq!((some.of(&public).len(), some.names().len()), (MAX_MIRRORS, MAX_MIRRORS));
        assert!(some.of(&Descriptor::public(id, Kind::UserDisk, publisher)).is_empty());
        assert!(some.of(&Descriptor::private(id, Kind::Appliance, &secret)).is_empty());
    }
}
