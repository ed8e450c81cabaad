//! The server's certificate authority: it signs the server's own certificate and those of hosts and devices.
//!
//! Key and certificate are one file, `authority.pem` (0600), so that they can never be of two different authorities after a
//! crash. Of a signing request only the public key is used; whom a certificate names is decided here. What a certificate
//! *permits* is not in it: every request is looked up in the database.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use collective_model::{Error, ErrorKind, IoResultExt, Result, ResultExt, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;

use crate::files::write_private;

/// The file with key and certificate.
pub const AUTHORITY_FILE: &str = "authority.pem";

/// Clocks of clients may be this far behind.
const CLOCK_SLACK: Duration = Duration::from_secs(24 * 60 * 60);

/// How long the authority is valid: clients have pinned it, so it outlives the machine.
const AUTHORITY_LIFE: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// How long the server's own certificate is valid; a new one is made long before.
pub const SERVER_LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long certificates of clients are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lives {
    /// A host's: a computer may be switched off for a season.
    pub host: Duration,
    /// A device's, without being renewed.
    pub device: Duration,
}

impl Lives {
    const HOST: Duration = Duration::from_secs(90 * 24 * 60 * 60);
    const DEVICE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
    /// Shorter, and it ends before a client has renewed it over a slow line.
    const SHORTEST: Duration = Duration::from_secs(5);
    /// Longer, and a lost computer stays a danger until somebody thinks of it.
    const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

    /// The usual lives, or the operator's.
    pub fn new(wanted: Option<Duration>) -> Result<Self> {
        let Some(life) = wanted else { return Ok(Self { host: Self::HOST, device: Self::DEVICE }) };
        if life < Self::SHORTEST || life > Self::LONGEST {
            let message = format!("certificates cannot be good for {} s", life.as_secs());
            return Err(Error::new(ErrorKind::Invalid, message)
                .with_hint("between 5 seconds and ten years"));
        }
        Ok(Self { host: life, device: life })
    }
}

/// The authority with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    answer_key: [u8; 32],
}

impl Authority {
    /// Opens the authority of a directory, or makes it.
    pub fn open_or_create(directory: &Path, now: Timestamp) -> Result<Self> {
        let path = directory.join(AUTHORITY_FILE);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = create(now)?;
                write_private(&path, text.as_bytes())?;
                text
            }
            read => read.or_io(|| format!("cannot read {}", path.display()))?,
        };
        Self::read(&text).map_err(|error| error.context(format!("{} is damaged", path.display())))
    }

    fn read(text: &str) -> Result<Self> {
        let damaged = |what: &str| format!("the authority's {what} cannot be read");
        let key = KeyPair::from_pem(text).or_error(ErrorKind::Corrupt, || damaged("key"))?;
        let certificate = CertificateDer::from_pem_slice(text.as_bytes())
            .or_error(ErrorKind::Corrupt, || damaged("certificate"))?;
        let answer_key = blake3::derive_key(
            "collective 2026-11 server answers for strangers",
            key.serialized_der(),
        );
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .or_error(ErrorKind::Corrupt, || damaged("certificate"))?;
        let start = text.find("-----BEGIN CERTIFICATE-----").unwrap_or_default();
        let certificate_pem = text[start..].to_owned();
        Ok(Self { issuer, certificate, certificate_pem, answer_key })
    }

    /// Returns the certificate that clients pin, as text.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Returns a key for answers that must look alike for known and unknown names; it survives restarts.
    pub fn answer_key(&self) -> &[u8; 32] {
        &self.answer_key
    }

    /// Makes a key and a certificate for the server itself, valid under these names and addresses.
    pub fn server_certificate(
        &self,
        names: &[String],
        provider: &CryptoProvider,
        now: Timestamp,
    ) -> Result<CertifiedKey> {
        let failed = || "cannot make the server's certificate".to_owned();
        let key = KeyPair::generate().or_error(ErrorKind::Internal, failed)?;
        let mut params = CertificateParams::new(names).or_error(ErrorKind::Invalid, || {
            format!("cannot make a certificate for {}", names.join(", "))
        })?;
        params.distinguished_name.push(DnType::CommonName, "Collective server");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        set_validity(&mut params, now, SERVER_LIFE);
        let certificate =
            params.signed_by(&key, &self.issuer).or_error(ErrorKind::Internal, failed)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = provider.key_provider.load_private_key(key);
        let key = key.or_error(ErrorKind::Internal, failed)?;
        // The authority goes along: at first contact a client shows its fingerprint.
        Ok(CertifiedKey::new(vec![certificate.der().clone(), self.certificate.clone()], key))
    }

    /// Signs a certificate for the public key of a request, naming `identity` and nothing that the request names.
    pub fn sign(
        &self,
        request: &str,
        identity: &str,
        life: Duration,
        now: Timestamp,
    ) -> Result<String> {
        let refused = || "the signing request cannot be used".to_owned();
        let request = CertificateSigningRequestParams::from_pem(request)
            .or_error(ErrorKind::Invalid, refused)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Collective client");
        let uri = identity.try_into().or_error(ErrorKind::Internal, refused)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params, now, life);
        let certificate = params
            .signed_by(&request.public_key, &self.issuer)
            .or_error(ErrorKind::Internal, || "cannot sign a certificate".to_owned())?;
        Ok(certificate.pem())
    }

    /// Returns what checks the certificates of clients; a client may have none.
    pub fn client_verifier(
        &self,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>> {
        let failed = || "cannot check certificates of clients".to_owned();
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).or_error(ErrorKind::Corrupt, failed)?;
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .or_error(ErrorKind::Internal, failed)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority(…)")
    }
}

/// Makes key and certificate, as the text of the file.
fn create(now: Timestamp) -> Result<String> {
    let failed = || "cannot make the certificate authority".to_owned();
    let key = KeyPair::generate().or_error(ErrorKind::Internal, failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Collective authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, AUTHORITY_LIFE);
    let certificate = params.self_signed(&key).or_error(ErrorKind::Internal, failed)?;
    Ok(format!("{}{}", key.serialize_pem(), certificate.pem()))
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_millis(u64::try_from(now.0).unwrap_or(0));
    params.not_before = epoch + now.saturating_sub(CLOCK_SLACK);
    params.not_after = epoch + (now + life);
}

/// Reads the URI that a client's certificate names: the one identity that [`Authority::sign`] put in.
pub fn identity_uri(certificate: &CertificateDer<'_>) -> Result<String> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let unknown = || Error::new(ErrorKind::Denied, "the client's certificate names nobody");
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|error| unknown().with_source(error.to_string()))?;
    let names = certificate.subject_alternative_name().ok().flatten().ok_or_else(unknown)?;
    match names.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => Ok((*uri).to_owned()),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use collective_model::{ErrorKind, Timestamp};
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::{AUTHORITY_FILE, Authority, identity_uri};

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    #[test]
    fn the_authority_is_the_same_after_a_restart_and_its_key_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let first = Authority::open_or_create(directory.path(), NOW).unwrap();
        let second = Authority::open_or_create(directory.path(), NOW).unwrap();
        assert_eq!(first.certificate_pem(), second.certificate_pem());
        assert_eq!(first.answer_key(), second.answer_key());
        let path = directory.path().join(AUTHORITY_FILE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(format!("{first:?}"), "Authority(…)");
        assert!(!first.certificate_pem().contains("PRIVATE"));
    }

    #[test]
    fn a_certificate_names_what_the_server_says_and_not_what_the_request_says() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(directory.path(), NOW).unwrap();
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::new(vec!["collective.invalid".to_owned()]).unwrap();
        let request = request.serialize_request(&key).unwrap().pem().unwrap();
        let life = Duration::from_secs(60);
        let pem = authority.sign(&request, "collective:host/1", life, NOW).unwrap();
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(identity_uri(&certificate).unwrap(), "collective:host/1");
        let error = authority.sign("no request", "collective:host/1", life, NOW).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_damaged_authority_is_named_and_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(AUTHORITY_FILE);
        std::fs::write(&path, "torn").unwrap();
        let error = Authority::open_or_create(directory.path(), NOW).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.chain().contains(AUTHORITY_FILE), "{}", error.chain());
        assert_eq!(std::fs::read(&path).unwrap(), b"torn");
    }
}
