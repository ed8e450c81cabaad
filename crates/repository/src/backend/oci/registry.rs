//! A registry over HTTP, as the OCI distribution specification 1.1 has it: manifests by tag, blobs by digest, tokens.
//!
//! A request that is refused with a challenge is sent once more with what the challenge asks for: the user's name and password, or a
//! token that was got with them. Neither goes anywhere but to the registry and to the place that it names for tokens, over
//! HTTPS if the registry is reached so.

use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use collective_model::{Error, ErrorKind, Result, ResultExt};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LINK, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::artifact::{Blob, MANIFEST_BYTES_MAX, MANIFEST_TYPE, Sha256};
use super::reference::RegistryReference;
use crate::backend::transfer::Transfer;

/// Text of a token, an error or a page of tags that is read at most.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Tags of a page, and pages.
const TAGS_PER_PAGE: usize = 1000;
const TAG_PAGES_MAX: usize = 100;

/// Signs of a registry's own words that are shown.
const SHOWN_SIGNS: usize = 200;

/// Who somebody is to a registry.
#[derive(Clone)]
pub struct Credentials(Zeroizing<String>);

impl Credentials {
    /// Takes the name and the password as they stand in other tools' files: joined by a colon, in Base64.
    #[must_use]
    pub fn from_base64(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// One repository of a registry.
#[derive(Debug)]
pub(super) struct Registry {
    client: Client,
    base: Url,
    credentials: Option<Credentials>,
    authorization: Mutex<Option<HeaderValue>>,
    pub(super) transfer: Transfer,
}

impl Registry {
    pub(super) fn new(
        client: Client,
        reference: &RegistryReference,
        plain_http: bool,
        credentials: Option<Credentials>,
    ) -> Result<Self> {
        let RegistryReference { host, path, .. } = reference;
        let scheme = if plain_http || reference.is_local() { "http" } else { "https" };
        let failed = || format!("`{reference}` is not a place in a registry");
        let base = Url::parse(&format!("{scheme}://{host}/v2/{path}/"));
        let base = base.or_error(ErrorKind::Invalid, failed)?;
        let transfer = Transfer::new(&format!("{host}/{path}"));
        Ok(Self { client, base, credentials, authorization: Mutex::default(), transfer })
    }

    /// Returns the bytes of the manifest that a tag names, if there is one.
    pub(super) async fn manifest(&self, tag: &str) -> Result<Option<Bytes>> {
        let what = format!("read tag {tag}");
        let url = self.url(&format!("manifests/{tag}"))?;
        let request = || self.client.get(url.clone()).header(ACCEPT, MANIFEST_TYPE);
        let response = self.ask(&what, request, None).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let response = self.accept(&what, response).await?;
        self.transfer.body(response, MANIFEST_BYTES_MAX, &what).await.map(Some)
    }

    pub(super) async fn put_manifest(&self, tag: &str, bytes: Bytes) -> Result<()> {
        let what = format!("write tag {tag}");
        let url = self.url(&format!("manifests/{tag}"))?;
        let request = || self.client.put(url.clone()).header(CONTENT_TYPE, MANIFEST_TYPE);
        let response = self.ask(&what, request, Some(bytes)).await?;
        self.accept(&what, response).await.map(drop)
    }

    /// Returns all tags; none if there is no such repository yet.
    pub(super) async fn tags(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let what = "list tags";
        let mut tags: Vec<String> = Vec::new();
        for _ in 0..TAG_PAGES_MAX {
            let mut url = self.url("tags/list")?;
            url.query_pairs_mut().append_pair("n", &TAGS_PER_PAGE.to_string());
            if let Some(last) = tags.last() {
                url.query_pairs_mut().append_pair("last", last);
            }
            let response = self.ask(what, || self.client.get(url.clone()), None).await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(tags);
            }
            let response = self.accept(what, response).await?;
            let goes_on = response.headers().contains_key(LINK);
            let text = self.transfer.body(response, TEXT_BYTES_MAX, what).await?;
            let page: Page = serde_json::from_slice(&text)
                .or_error(ErrorKind::Corrupt, || self.transfer.failed(what))?;
            let page = page.tags.unwrap_or_default();
            if !goes_on || page.is_empty() {
                tags.extend(page);
                return Ok(tags);
            }
            tags.extend(page);
        }
        let message = format!("{}: there are too many", self.transfer.failed(what));
        Err(Error::new(ErrorKind::Invalid, message))
    }

    /// Asks for a blob, or a range of it by its first and last byte.
    pub(super) async fn blob(
        &self,
        what: &str,
        blob: &Blob,
        range: Option<(u64, u64)>,
    ) -> Result<Response> {
        let url = self.url(&format!("blobs/{}", blob.digest))?;
        let request = || {
            let request = self.client.get(url.clone());
            match range {
                Some((first, last)) => request.header(RANGE, format!("bytes={first}-{last}")),
                None => request,
            }
        };
        let response = self.ask(what, request, None).await?;
        self.accept(what, response).await
    }

    /// Stores a blob, unless the registry has it already; returns its address.
    pub(super) async fn put_blob(&self, what: &str, bytes: Bytes) -> Result<Blob> {
        let blob = Blob { digest: Sha256::of(&bytes), size_bytes: bytes.len() as u64 };
        let url = self.url(&format!("blobs/{}", blob.digest))?;
        let there = self.ask(what, || self.client.head(url.clone()), None).await?;
        if there.status().is_success() {
            return Ok(blob);
        }
        let uploads = self.url("blobs/uploads/")?;
        let begun =
            self.ask(what, || self.client.post(uploads.clone()), Some(Bytes::new())).await?;
        let begun = self.accept(what, begun).await?;
        let location = begun.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let mut location =
            location.and_then(|location| self.base.join(location).ok()).ok_or_else(|| {
                let message = format!("{}: it does not say where to", self.transfer.failed(what));
                Error::new(ErrorKind::Unavailable, message)
            })?;
        location.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let request = || {
            let request = self.client.request(Method::PUT, location.clone());
            request.header(CONTENT_TYPE, "application/octet-stream")
        };
        let response = self.ask(what, request, Some(bytes)).await?;
        self.accept(what, response).await?;
        Ok(blob)
    }

    fn url(&self, relative: &str) -> Result<Url> {
        // A digest has a colon, which must not be taken for a scheme.
        let joined = self.base.join(&format!("./{relative}"));
        joined.or_error(ErrorKind::Internal, || self.transfer.failed("name a place"))
    }

    /// Sends a request, and sends it once more if it has to say who asks.
    async fn ask(
        &self,
        what: &str,
        request: impl Fn() -> RequestBuilder,
        body: Option<Bytes>,
    ) -> Result<Response> {
        let response = self.ask_once(what, request(), body.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        self.authorize(what, &response).await?;
        self.ask_once(what, request(), body).await
    }

    async fn ask_once(
        &self,
        what: &str,
        request: RequestBuilder,
        body: Option<Bytes>,
    ) -> Result<Response> {
        let (client, request) = request.build_split();
        let mut request = request.or_error(ErrorKind::Internal, || self.transfer.failed(what))?;
        let known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // An upload may be sent elsewhere; that place is not told who we are.
        if let Some(known) = known.filter(|_| request.url().origin() == self.base.origin()) {
            request.headers_mut().insert(AUTHORIZATION, known);
        }
        let request = RequestBuilder::from_parts(client, request);
        match body {
            Some(body) => self.transfer.upload(what, request, body).await,
            None => self.transfer.send(what, request).await,
        }
    }

    /// Gets what a challenge asks for.
    async fn authorize(&self, what: &str, refused: &Response) -> Result<()> {
        let challenge = refused.headers().get(WWW_AUTHENTICATE);
        let challenge = challenge.and_then(|challenge| challenge.to_str().ok()).unwrap_or_default();
        let basic = self.credentials.as_ref().map(|known| format!("Basic {}", &*known.0));
        let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
        let value = if scheme.eq_ignore_ascii_case("bearer") {
            let token = self.token(what, rest, basic.as_deref()).await?;
            Zeroizing::new(format!("Bearer {}", &*token))
        } else {
            Zeroizing::new(basic.ok_or_else(|| self.denied(what))?)
        };
        let mut value = HeaderValue::from_str(&value).map_err(|_| self.denied(what))?;
        value.set_sensitive(true);
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    async fn token(
        &self,
        what: &str,
        challenge: &str,
        basic: Option<&str>,
    ) -> Result<Zeroizing<String>> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<Zeroizing<String>>,
            access_token: Option<Zeroizing<String>>,
        }
        let realm = parameter(challenge, "realm").and_then(|realm| Url::parse(realm).ok());
        let is_safe = |realm: &Url| realm.scheme() == "https" || self.base.scheme() == "http";
        let mut url = realm.filter(is_safe).ok_or_else(|| self.denied(what))?;
        for name in ["service", "scope"] {
            if let Some(value) = parameter(challenge, name) {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        let mut request = self.client.get(url);
        if let Some(basic) = basic {
            request = request.header(AUTHORIZATION, basic);
        }
        let response = self.transfer.send(what, request).await?;
        let response = self.accept(what, response).await?;
        let text = self.transfer.body(response, TEXT_BYTES_MAX, what).await?;
        let answer: Option<Answer> = serde_json::from_slice(&text).ok();
        let token = answer.and_then(|answer| answer.token.or(answer.access_token));
        token.ok_or_else(|| self.denied(what))
    }

    fn denied(&self, what: &str) -> Error {
        let message = format!("{}: it wants to know who asks", self.transfer.failed(what));
        Error::new(ErrorKind::Denied, message)
            .with_hint("log in with `skopeo login`, `podman login` or `docker login`")
    }

    /// Turns an answer that is no success into an error.
    async fn accept(&self, what: &str, response: Response) -> Result<Response> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status == StatusCode::UNAUTHORIZED {
            return Err(self.denied(what));
        }
        let text = self.transfer.body(response, TEXT_BYTES_MAX, what).await.unwrap_or_default();
        let said = said(&text).map_or(String::new(), |said| format!(" ({said})"));
        let message = format!("{}: it answered {status}{said}", self.transfer.failed(what));
        Err(Error::new(ErrorKind::of_http_status(status.as_u16()), message))
    }
}

/// Makes what `Credentials` hold of a name and a password.
impl Credentials {
    /// Joins a name and a password.
    #[must_use]
    pub fn new(name: &str, password: &str) -> Self {
        let joined = Zeroizing::new(format!("{name}:{password}"));
        Self(Zeroizing::new(STANDARD.encode(joined.as_bytes())))
    }
}

/// What a registry says about an error.
fn said(text: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Said>,
    }
    #[derive(Deserialize)]
    struct Said {
        code: String,
        #[serde(default)]
        message: String,
    }
    let answer: Answer = serde_json::from_slice(text).ok()?;
    let Said { code, message } = answer.errors.into_iter().next()?;
    let plain = format!("{code}: {message}");
    Some(plain.chars().filter(|sign| !sign.is_control()).take(SHOWN_SIGNS).collect())
}

/// Finds a parameter of a challenge: `name="value"`, separated by commas, which values may have in them as well.
fn parameter<'a>(challenge: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = challenge;
    while let Some((found, after)) = rest.split_once("=\"") {
        let (value, after) = after.split_once('"')?;
        if found.trim_matches([' ', ',']).eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Credentials, parameter, said};

    #[test]
    fn a_challenge_is_taken_apart_whatever_is_in_it() {
        let challenge =
            r#"realm="https://a.example/token",service="a, b",scope="repository:x:pull,push""#;
        assert_eq!(parameter(challenge, "realm"), Some("https://a.example/token"));
        assert_eq!(parameter(challenge, "service"), Some("a, b"));
        assert_eq!(parameter(challenge, "scope"), Some("repository:x:pull,push"));
        assert_eq!(parameter(challenge, "error"), None);
        assert_eq!(parameter("realm=\"unending", "realm"), None);
    }

    #[test]
    fn what_a_registry_says_is_short_and_has_no_signs_that_steer_a_terminal() {
        let text = br#"{"errors":[{"code":"DENIED","message":"no\u001b[2J way"}]}"#;
        assert_eq!(said(text).unwrap(), "DENIED: no[2J way");
        assert_eq!(said(b"<html>"), None);
        assert_eq!(format!("{:?}", Credentials::new("ann", "secret")), "Credentials(…)");
    }
}
