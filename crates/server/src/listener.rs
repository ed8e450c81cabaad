//! Accepts connections: TLS for everybody, and the administrators' socket.
//!
//! Every connection lives in a task of its own from its first byte, handshake included, with a time limit: a silent client
//! holds a file descriptor and nothing else, and one that stops reading is cut off: by the kernel, or by what `untaken` sees. What the connection knows of
//! its peer goes into each of its requests as a [`Peer`]; whether the peer may do anything is decided per request.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use collective_model::Result;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::authority::identity_uri;
use crate::untaken::Answers;

/// Connections at a time; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// How long a TLS handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may take for the head of a request, and may idle between two.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
/// How long the network may take nothing of what was sent. The kernel measures it by what the peer acknowledges, so a slow line is
/// not cut, nor is a connection on which nothing waits.
const UNREAD_LIMIT: Duration = Duration::from_secs(120);
/// How long a living connection may ask none of its answers for more. A MiB or two go at a time: half a minute at 64 KiB/s.
const UNTAKEN_LIMIT: Duration = Duration::from_secs(5 * 60);
/// How often a silent HTTP/2 connection is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// How long after a failed accept (no file descriptors left) the next one is tried.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// Whoever may open the administrators' socket.
    Socket,
    /// A client on the network, and what its certificate names.
    Network { address: IpAddr, identity: Option<String> },
}

/// The server's certificate, exchanged while it runs.
#[derive(Debug)]
pub struct CurrentCertificate(RwLock<Arc<CertifiedKey>>);

impl CurrentCertificate {
    pub fn new(certificate: CertifiedKey) -> Self {
        Self(RwLock::new(Arc::new(certificate)))
    }

    pub fn replace(&self, certificate: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificate);
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// What all connections share.
#[derive(Clone)]
pub struct Connections {
    router: Router,
    permits: Arc<Semaphore>,
    unread_limit: Duration,
    untaken_limit: Duration,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Connections {
    pub fn new(router: Router, tasks: TaskTracker, stop: CancellationToken) -> Self {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let (unread_limit, untaken_limit) = (UNREAD_LIMIT, UNTAKEN_LIMIT);
        Self { router, permits, unread_limit, untaken_limit, tasks, stop }
    }

    /// Accepts clients on the network until the server stops.
    pub async fn serve_network(self, listener: TcpListener, tls: Arc<ServerConfig>) {
        let acceptor = TlsAcceptor::from(tls);
        self.accept(
            || listener.accept(),
            |connections, stream, address| {
                let acceptor = acceptor.clone();
                async move {
                    if let Err(error) = limit_unread(&stream, connections.unread_limit) {
                        tracing::debug!(%address, "a connection has no limit: {error}");
                    }
                    let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream));
                    let Ok(Ok(stream)) = handshake.await else {
                        tracing::debug!(%address, "a TLS handshake came to nothing");
                        return;
                    };
                    match network_peer(&stream, address) {
                        Ok(peer) => connections.serve(stream, peer).await,
                        Err(error) => tracing::info!(%address, "{}", error.chain()),
                    }
                }
            },
        )
        .await;
    }

    /// Accepts administrators until the server stops.
    pub async fn serve_socket(self, listener: UnixListener) {
        self.accept(
            || listener.accept(),
            |connections, stream, _| async move {
                connections.serve(stream, Peer::Socket).await;
            },
        )
        .await;
    }

    async fn accept<S, A, W, F>(
        &self,
        mut next: impl FnMut() -> W,
        handle: impl Fn(Self, S, A) -> F,
    ) where
        W: Future<Output = std::io::Result<(S, A)>>,
        F: Future<Output = ()> + Send + 'static,
    {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                permit = Arc::clone(&self.permits).acquire_owned() => match permit {
                    Ok(permit) => tokio::select! {
                        () = self.stop.cancelled() => return,
                        accepted = next() => accepted.map(|accepted| (permit, accepted)),
                    },
                    Err(_) => return,
                },
            };
            match accepted {
                Ok((permit, (stream, address))) => {
                    let work = handle(self.clone(), stream, address);
                    self.tasks.spawn(async move {
                        work.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves one connection; when the server stops, the running requests are finished.
    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static, peer: Peer) {
        let router = self.router;
        let answers = Answers::new();
        let watched = answers.clone();
        let service = hyper::service::service_fn(move |request| {
            let mut request: Request<hyper::body::Incoming> = request;
            request.extensions_mut().insert(peer.clone());
            let (answer, watched) = (router.clone().call(request), watched.clone());
            async move { Ok::<_, Infallible>(answer.await?.map(|body| watched.watch(body))) }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .max_concurrent_streams(STREAMS_MAX);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let left = async {
            answers.left(self.untaken_limit).await;
            tracing::debug!("a connection leaves its answers untaken");
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = left => return,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!("a connection broke off: {error}");
        }
    }
}

fn limit_unread(stream: &TcpStream, limit: Duration) -> rustix::io::Result<()> {
    let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(stream, limit_ms)
}

fn network_peer<S>(
    stream: &tokio_rustls::server::TlsStream<S>,
    address: SocketAddr,
) -> Result<Peer> {
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let identity = certificates.first().map(identity_uri).transpose()?;
    Ok(Peer::Network { address: address.ip(), identity })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use axum::Router;
    use axum::body::Body;
    use bytes::Bytes;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::{Connections, CurrentCertificate};
    use crate::authority::Authority;

    /// More than all buffers between a server and a client that does not read.
    const ANSWER_BYTES: usize = 64 << 20;
    const PIECE_BYTES: usize = 1 << 20;
    const UNREAD_LIMIT: Duration = Duration::from_secs(2);
    const UNTAKEN_LIMIT: Duration = Duration::from_secs(2);
    /// For the limit that a test is not about.
    const NEVER: Duration = Duration::from_secs(3600);
    /// How long what must happen may take on a busy machine.
    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn only_a_connection_whose_answer_nobody_reads_is_cut_off() {
        let server = Served::start(UNREAD_LIMIT, NEVER).await;
        let mut waiting = server.ask("/later").await;
        let unread = server.ask("/large").await;
        let mut read = server.ask("/large").await;
        let permits = server.connections.permits.available_permits();
        let mut taken = vec![0; PIECE_BYTES];
        // Slower than the limit altogether, but never for so long without a byte.
        let slow = tokio::time::Instant::now();
        while slow.elapsed() < 3 * UNREAD_LIMIT {
            read.read_exact(&mut taken).await.unwrap();
            tokio::time::sleep(UNREAD_LIMIT / 10).await;
        }
        let mut rest = Vec::new();
        read.read_to_end(&mut rest).await.unwrap();
        let freed = server.connections.permits.acquire_many(permits as u32 + 2);
        drop(tokio::time::timeout(LIMIT, freed).await.expect("is cut off").unwrap());
        drop(unread);
        server.answer_later.cancel();
        let mut answer = String::new();
        waiting.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("at last"), "{answer}");
    }

    #[tokio::test]
    async fn a_stream_that_stands_still_on_a_living_connection_ends_it_and_one_that_waits_does_not()
    {
        let server = Served::start(NEVER, UNTAKEN_LIMIT).await;
        let waiting = tokio::spawn(server.http().get(server.url("/later")).send());
        let mut read = server.http().get(server.url("/large")).send().await.unwrap();
        let untaken = server.http().get(server.url("/large")).send().await.unwrap();
        assert_eq!(untaken.version(), axum::http::Version::HTTP_2);
        let permits = server.connections.permits.available_permits();
        let mut taken = 0;
        let slow = tokio::time::Instant::now();
        let freed = || server.connections.permits.available_permits() > permits;
        while slow.elapsed() < 2 * UNTAKEN_LIMIT || !freed() {
            taken += read.chunk().await.unwrap().expect("the other is cut off before").len();
            tokio::time::sleep(UNTAKEN_LIMIT / 400).await;
        }
        while let Some(chunk) = read.chunk().await.unwrap() {
            taken += chunk.len();
        }
        assert_eq!(taken, ANSWER_BYTES);
        let cut = untaken.bytes().await.unwrap_err();
        assert!(cut.is_body() || cut.is_decode(), "{cut:?}");
        server.answer_later.cancel();
        let answer = waiting.await.unwrap().unwrap();
        assert_eq!(answer.text().await.unwrap(), "at last");
    }

    /// Connections that are served with short limits.
    struct Served {
        connections: Connections,
        address: std::net::SocketAddr,
        trusting: Arc<ClientConfig>,
        answer_later: CancellationToken,
        stop: CancellationToken,
    }

    impl Drop for Served {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    impl Served {
        async fn start(unread_limit: Duration, untaken_limit: Duration) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let now = std::time::SystemTime::now().into();
            let authority = Authority::open_or_create(directory.path(), now).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let certificate = authority.server_certificate(&["server".to_owned()], &provider, now);
            let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(CurrentCertificate::new(certificate.unwrap())));
            let mut roots = RootCertStore::empty();
            let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes());
            roots.add(root.unwrap()).unwrap();
            let trusting = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let (answer_later, stop) = (CancellationToken::new(), CancellationToken::new());
            let router = router(&answer_later);
            let mut connections = Connections::new(router, TaskTracker::new(), stop.clone());
            connections.unread_limit = unread_limit;
            connections.untaken_limit = untaken_limit;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(connections.clone().serve_network(listener, Arc::new(config)));
            Self { connections, address, trusting: Arc::new(trusting), answer_later, stop }
        }

        /// Makes a client that speaks HTTP/2 on a connection of its own.
        fn http(&self) -> reqwest::Client {
            let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge();
            let client = client.tls_backend_preconfigured((*self.trusting).clone());
            client.resolve("server", self.address).build().unwrap()
        }

        fn url(&self, path: &str) -> String {
            format!("https://server:{}{path}", self.address.port())
        }

        /// Asks for something and reads the first byte of the answer, unless that is to come later.
        async fn ask(&self, path: &str) -> TlsStream<TcpStream> {
            let stream = TcpStream::connect(self.address).await.unwrap();
            let name = ServerName::try_from("server").unwrap();
            let connector = TlsConnector::from(Arc::clone(&self.trusting));
            let mut stream = connector.connect(name, stream).await.unwrap();
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            if path == "/large" {
                stream.read_u8().await.unwrap();
            }
            stream
        }
    }

    fn router(answer_later: &CancellationToken) -> Router {
        let answer_later = answer_later.clone();
        let pieces = || {
            let piece = Bytes::from(vec![7; PIECE_BYTES]);
            let pieces = vec![Ok::<_, std::convert::Infallible>(piece); ANSWER_BYTES / PIECE_BYTES];
            Body::from_stream(futures::stream::iter(pieces))
        };
        Router::new().route("/large", axum::routing::get(move || async move { pieces() })).route(
            "/later",
            axum::routing::get(move || async move {
                answer_later.cancelled().await;
                "at last"
            }),
        )
    }
}
