//! Which server is the right one: its certificate authority, shown as a fingerprint at first contact and pinned.
//!
//! As ssh does: the first time, a person compares the fingerprint with what the server printed; from then on only
//! certificates of that authority are accepted, whatever the address. Every certificate that a server shows is
//! also valid for the one name [`SERVER_NAME`]; that name is what is checked, so a server can be reached by any
//! address, and a client's certificate can never stand for a server.

use std::error::Error as StdError;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use collective_model::{Error, ErrorKind, Result, ResultExt};
use ring::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::identity::Identity;

/// The name for which every server's certificate is valid.
pub const SERVER_NAME: &str = "server.collective.internal";

/// The port of a server whose address names none.
pub const DEFAULT_PORT: u16 = 7443;

/// How long a server may take to show its certificate.
const CONTACT_LIMIT: Duration = Duration::from_secs(15);

/// The SHA-256 of a certificate authority's certificate, as `openssl x509 -fingerprint -sha256` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits: String = text.trim().chars().filter(|sign| *sign != ':').collect();
        let digest: collective_model::Digest = digits.to_lowercase().parse().map_err(|_| {
            Error::new(ErrorKind::Invalid, "this is not a fingerprint")
                .with_hint("it has 32 pairs of hexadecimal digits, as the server printed them")
        })?;
        Ok(Self(digest.0))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

/// A server's certificate authority, to be pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Anchor(pub String);

impl Anchor {
    /// Returns the fingerprint.
    ///
    /// # Errors
    /// `Corrupt` if it is no certificate in PEM.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        Ok(fingerprint_of(&self.der()?))
    }

    /// Sets TLS up so that only servers of this authority are accepted, and shows them `identity`.
    ///
    /// # Errors
    /// `Corrupt` if a certificate or key is damaged.
    pub(crate) fn client_config(&self, identity: Option<&Identity>) -> Result<ClientConfig> {
        let damaged = || "the pinned certificate of the server is damaged".to_owned();
        let mut roots = RootCertStore::empty();
        roots.add(self.der()?).or_error(ErrorKind::Corrupt, damaged)?;
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .or_error(ErrorKind::Corrupt, damaged)?;
        let builder = config_builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned { inner }));
        let Some(identity) = identity else { return Ok(builder.with_no_client_auth()) };
        let (chain, key) = identity.for_tls()?;
        builder
            .with_client_auth_cert(chain, key)
            .or_error(ErrorKind::Corrupt, || "the device's certificate is damaged".to_owned())
    }

    fn der(&self) -> Result<CertificateDer<'static>> {
        CertificateDer::from_pem_slice(self.0.as_bytes()).or_error(ErrorKind::Corrupt, || {
            "the pinned certificate of the server is damaged".to_owned()
        })
    }
}

/// Where a server is: `name`, `name:port`, or either with `https://` in front.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerAddress {
    host: String,
    port: u16,
}

impl ServerAddress {
    /// Returns the start of its URLs.
    #[must_use]
    pub fn base(&self) -> String {
        format!("https://{self}")
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for ServerAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = || {
            Error::new(ErrorKind::Invalid, format!("`{text}` is not the address of a server"))
                .with_hint("write `name`, `name:port` or `https://name:port`")
        };
        let bare = text.strip_prefix("https://").unwrap_or(text);
        let bare = bare.strip_suffix('/').unwrap_or(bare);
        let split =
            bare.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
        let (host, port) = match split {
            Some((host, port)) => (host, port.parse().map_err(|_| refused())?),
            None => (bare, DEFAULT_PORT),
        };
        let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        ServerName::try_from(name).map_err(|_| refused())?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl TryFrom<String> for ServerAddress {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ServerAddress> for String {
    fn from(address: ServerAddress) -> Self {
        address.to_string()
    }
}

/// Asks a server which authority it belongs to. Nothing of the answer is to be believed before a person, or a known
/// fingerprint, has said so.
///
/// # Errors
/// `Unavailable` if nobody answers; `Invalid` if what answers is not a Collective server.
pub async fn contact(address: &ServerAddress) -> Result<Anchor> {
    let unreachable = || format!("cannot reach the server {address}");
    let seen = Arc::new(std::sync::OnceLock::new());
    let config = config_builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Curious { seen: Arc::clone(&seen) }))
        .with_no_client_auth();
    let handshake = async {
        let stream = TcpStream::connect(address.to_string()).await?;
        let name = ServerName::try_from(SERVER_NAME).expect("the constant is a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    tokio::time::timeout(CONTACT_LIMIT, handshake)
        .await
        .or_error(ErrorKind::Unavailable, unreachable)?
        .or_error(ErrorKind::Unavailable, unreachable)?;
    let authority: &CertificateDer<'static> = seen.get().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("{address} is not a Collective server"))
            .with_hint("its certificate comes without the authority that made it")
    })?;
    let anchor = Anchor(pem_of(authority));
    check_own(&anchor, address).await?;
    Ok(anchor)
}

/// Explains why a server of a pinned authority was not accepted: `Denied` with both fingerprints if it belongs to another
/// one now, else none.
pub async fn changed(address: &ServerAddress, pinned: &Anchor) -> Option<Error> {
    let known = pinned.fingerprint().ok()?;
    let shown = contact(address).await.ok()?.fingerprint().ok()?;
    if shown == known {
        return None;
    }
    let message = format!(
        "the authority of the server {address} changed: known is {known}, and it shows {shown}"
    );
    let hint = format!(
        "somebody may be in between; if its administrator says that it was set up anew, run `collective join {}` and \
         log in again",
        address.base()
    );
    Some(Error::new(ErrorKind::Denied, message).with_hint(hint))
}

/// Tells whether a request failed because the server's certificate was refused, and not because nobody answered: only
/// then is it worth asking the server again who it is.
pub(crate) fn is_refusal(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        // An I/O error gives the cause of what it carries as its own, and passes over the thing itself.
        cause = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// Checks that the server really holds a certificate of the authority that it shows.
async fn check_own(anchor: &Anchor, address: &ServerAddress) -> Result<()> {
    let refused = || format!("{address} is not a Collective server");
    let config = anchor.client_config(None)?;
    let unreachable = || format!("cannot reach the server {address}");
    let stream = tokio::time::timeout(CONTACT_LIMIT, TcpStream::connect(address.to_string()))
        .await
        .or_error(ErrorKind::Unavailable, unreachable)?
        .or_error(ErrorKind::Unavailable, unreachable)?;
    let name = ServerName::try_from(SERVER_NAME).expect("the constant is a name");
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    tokio::time::timeout(CONTACT_LIMIT, handshake)
        .await
        .or_error(ErrorKind::Unavailable, refused)?
        .or_error(ErrorKind::Invalid, refused)
        .map(drop)
}

/// Writes a certificate as PEM.
fn pem_of(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
        .collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn fingerprint_of(certificate: &CertificateDer<'_>) -> Fingerprint {
    let hash = digest(&SHA256, certificate);
    Fingerprint(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn config_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .or_error(ErrorKind::Internal, || "cannot set up TLS".to_owned())
}

/// Accepts servers of one authority, by the one name.
#[derive(Debug)]
struct Pinned {
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let name = ServerName::try_from(SERVER_NAME).expect("the constant is a name");
        self.inner.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Accepts anybody, believes nothing, and remembers the last certificate of the chain.
#[derive(Debug)]
struct Curious {
    seen: Arc<std::sync::OnceLock<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Curious {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(authority) = intermediates.last() {
            self.seen.get_or_init(|| authority.clone().into_owned());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::{Fingerprint, ServerAddress};

    #[test]
    fn a_fingerprint_is_read_with_and_without_colons() {
        let shown = ["0A"; 32].join(":");
        let fingerprint: Fingerprint = shown.parse().unwrap();
        assert_eq!(fingerprint.to_string(), shown);
        assert_eq!("0a".repeat(32).parse::<Fingerprint>().unwrap(), fingerprint);
        assert!("0a".parse::<Fingerprint>().is_err());
    }

    #[test]
    fn an_address_gets_the_default_port_and_no_path() {
        let shown = |text: &str| text.parse::<ServerAddress>().map(|address| address.to_string());
        assert_eq!(shown("school.example").unwrap(), "school.example:7443");
        assert_eq!(shown("https://127.0.0.1:80/").unwrap(), "127.0.0.1:80");
        assert_eq!(shown("[::1]:9").unwrap(), "[::1]:9");
        for text in ["", "a b", "x:notaport", "https://a/b", "http://a"] {
            assert!(shown(text).is_err(), "{text}");
        }
    }
}
