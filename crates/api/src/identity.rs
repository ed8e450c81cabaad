//! Who a program is to the server: a key pair made on the device, and the certificate that the server gave it.
//!
//! A certificate names its holder in one URI: `collective:host/<id>`, or `collective:user/<name>/device/<id>`. The
//! private key is drawn here and leaves the device never; at rest it is either in a file of mode 0600 (a host's) or
//! sealed under the password's wrap key (a person's), which is what a log-in without network opens.

use std::fmt;
use std::str::FromStr;

use collective_model::{DeviceId, Error, ErrorKind, HostId, Result, ResultExt, UserName};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::secret::{Sealed, Secret};

const KEY_PURPOSE: &str = "private key of a device";

/// Whom a client certificate names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A computer that joined.
    Host(HostId),
    /// A person, at one of their devices.
    Device {
        /// The person.
        user: UserName,
        /// The key pair that their log-in made.
        device: DeviceId,
    },
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(id) => write!(f, "collective:host/{id}"),
            Self::Device { user, device } => write!(f, "collective:user/{user}/device/{device}"),
        }
    }
}

impl FromStr for Subject {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            ["collective:host", id] => Ok(Self::Host(id.parse()?)),
            ["collective:user", user, "device", device] => {
                Ok(Self::Device { user: user.parse()?, device: device.parse()? })
            }
            _ => Err(Error::new(ErrorKind::Denied, "the certificate names no host and no device")),
        }
    }
}

/// A private key, made on this device.
pub struct DeviceKey(Zeroizing<Vec<u8>>);

impl DeviceKey {
    /// Draws a key pair (ECDSA on P-256).
    ///
    /// # Errors
    /// `Internal` if the system has no random bytes.
    pub fn generate() -> Result<Self> {
        let pair = KeyPair::generate()
            .or_error(ErrorKind::Internal, || "cannot draw a key pair".to_owned())?;
        Ok(Self(Zeroizing::new(pair.serialize_der())))
    }

    /// Takes a key from a file that only its owner can read.
    ///
    /// # Errors
    /// `Corrupt` if it is no private key in PEM.
    pub fn from_pem(pem: &str) -> Result<Self> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .or_error(ErrorKind::Corrupt, || "this is no private key".to_owned())?;
        Ok(Self(Zeroizing::new(key.secret_pkcs8_der().to_vec())))
    }

    /// Returns the key for a file that only its owner can read.
    ///
    /// # Errors
    /// `Internal` if the key is damaged.
    pub fn to_pem(&self) -> Result<Zeroizing<String>> {
        Ok(Zeroizing::new(self.pair()?.serialize_pem()))
    }

    /// Seals the key for a disk that others may read.
    #[must_use]
    pub fn seal(&self, key: &Secret) -> Sealed {
        Sealed::seal(key, KEY_PURPOSE, &self.0)
    }

    /// Opens a sealed key.
    ///
    /// # Errors
    /// `Denied` if `key` is not the one that it was sealed with: the password is wrong.
    pub fn unseal(sealed: &Sealed, key: &Secret) -> Result<Self> {
        sealed
            .open(key, KEY_PURPOSE)
            .map(Self)
            .ok_or_else(|| Error::new(ErrorKind::Denied, "the password is wrong"))
    }

    /// Returns the request for a certificate, in PEM. It proves that we have the key; what the certificate
    /// says is the server's business.
    ///
    /// # Errors
    /// `Internal` if the key is damaged.
    pub fn request(&self) -> Result<String> {
        let failed = || "cannot sign a certificate request".to_owned();
        let mut wanted = CertificateParams::default();
        wanted.distinguished_name = DistinguishedName::new();
        let request =
            wanted.serialize_request(&self.pair()?).or_error(ErrorKind::Internal, failed)?;
        request.pem().or_error(ErrorKind::Internal, failed)
    }

    fn pair(&self) -> Result<KeyPair> {
        KeyPair::try_from(self.0.as_slice())
            .or_error(ErrorKind::Internal, || "the device's private key is damaged".to_owned())
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceKey(…)")
    }
}

impl Clone for DeviceKey {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A certificate in PEM with the server's chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Certificate(pub String);

/// A key with its certificate: what a TLS connection shows.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What the server says about the key.
    pub certificate: Certificate,
    /// The key.
    pub key: DeviceKey,
}

impl Identity {
    /// Returns certificate chain and key as TLS takes them.
    pub(crate) fn for_tls(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = CertificateDer::pem_slice_iter(self.certificate.0.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .or_error(ErrorKind::Corrupt, || "the device's certificate is damaged".to_owned())?;
        let key = PrivatePkcs8KeyDer::from(self.key.0.to_vec());
        Ok((chain, PrivateKeyDer::Pkcs8(key)))
    }
}

#[cfg(test)]
mod tests {
    use collective_model::ErrorKind;

    use super::{DeviceKey, Subject};
    use crate::secret::Secret;

    #[test]
    fn a_subject_is_read_as_it_is_written_and_nothing_else_is() {
        let id = "00112233445566778899aabbccddeeff";
        for text in [format!("collective:host/{id}"), format!("collective:user/ann/device/{id}")] {
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
        for text in ["", "collective:host/", "collective:host/1", "collective:user/Ann/device/1"] {
            assert!(text.parse::<Subject>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_survives_rest_and_opens_with_its_password_only() {
        let (key, wrap) = (DeviceKey::generate().unwrap(), Secret::generate());
        let back = DeviceKey::unseal(&key.seal(&wrap), &wrap).unwrap();
        assert_eq!(back.to_pem().unwrap(), key.to_pem().unwrap());
        let again = DeviceKey::from_pem(&key.to_pem().unwrap()).unwrap();
        assert!(again.request().unwrap().contains("CERTIFICATE REQUEST"));
        let refused = DeviceKey::unseal(&key.seal(&wrap), &Secret::generate()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied);
        assert_eq!(format!("{key:?}"), "DeviceKey(…)");
    }
}
