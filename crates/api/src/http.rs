//! The HTTP clients that both sides' clients are made of: with TLS set up by `trust`, or over a Unix socket without.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use collective_model::{ErrorKind, Result, ResultExt};
use reqwest::header::HeaderMap;
use reqwest::{Client, ClientBuilder};
use rustls::{ClientConfig, RootCertStore};

/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Makes a client that speaks on a Unix socket, whatever the URL's host, and sends `headers` with every request.
pub(crate) fn over_socket(socket: &Path, headers: HeaderMap) -> Result<Client> {
    // The stack wants a TLS set-up although a Unix socket has no TLS; one without roots reads no certificates.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .or_error(ErrorKind::Internal, cannot_set_up)?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    finish(with_tls(tls).unix_socket(socket).default_headers(headers))
}

/// Makes a client that speaks TLS.
pub(crate) fn over_tls(tls: ClientConfig) -> Result<Client> {
    finish(with_tls(tls))
}

fn with_tls(tls: ClientConfig) -> ClientBuilder {
    Client::builder().no_proxy().connect_timeout(CONNECT_LIMIT).tls_backend_preconfigured(tls)
}

fn finish(builder: ClientBuilder) -> Result<Client> {
    builder.build().or_error(ErrorKind::Internal, cannot_set_up)
}

fn cannot_set_up() -> String {
    "cannot set up the HTTP client".to_owned()
}
