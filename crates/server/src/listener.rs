//! Accepts connections: TLS for everybody, and the administrators' socket.
//!
//! Every connection lives in a task of its own from its first byte, handshake included, with a time limit: a silent client
//! holds a file descriptor and nothing else. What the connection knows of its peer goes into each of its requests as a
//! [`Peer`]; whether the peer may do anything is decided per request.

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
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::authority::identity_uri;

/// Connections at a time; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// How long a TLS handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may take for the head of a request, and may idle between two.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
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
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Connections {
    pub fn new(router: Router, tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { router, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)), tasks, stop }
    }

    /// Accepts clients on the network until the server stops.
    pub async fn serve_network(self, listener: TcpListener, tls: Arc<ServerConfig>) {
        let acceptor = TlsAcceptor::from(tls);
        self.accept(
            || listener.accept(),
            |connections, stream, address| {
                let acceptor = acceptor.clone();
                async move {
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
        let service = hyper::service::service_fn(move |request| {
            let mut request: Request<hyper::body::Incoming> = request;
            request.extensions_mut().insert(peer.clone());
            router.clone().call(request)
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
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
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

fn network_peer<S>(
    stream: &tokio_rustls::server::TlsStream<S>,
    address: SocketAddr,
) -> Result<Peer> {
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let identity = certificates.first().map(identity_uri).transpose()?;
    Ok(Peer::Network { address: address.ip(), identity })
}
