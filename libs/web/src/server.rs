//! Accepts connections and serves HTTP/1.1 on them, within [`Limits`].

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use common::backoff::Backoff;
use common::shutdown::{CancellationToken, sleep_or_stop};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::connection::{Exchanges, Watched};
use crate::cors::{Cors, Visit, is_foreign_change};
use crate::error_response::ErrorResponse;
use crate::handler::{Handler, RequestInfo};
use crate::host::Hosts;
use crate::limits::Limits;
use crate::metrics::Measurement;
use crate::proxies::Proxies;
use crate::request_id::RequestId;

/// The largest header, in bytes, including the request line. The response to a larger header is 431. Browsers with many
/// cookies send 8 KiB.
const HEADER_LEN_MAX: usize = 16 * 1024;

/// The size of a connection's buffers, in bytes per direction. Together with the number of connections it bounds memory.
const BUFFER_LEN_MAX: usize = 32 * 1024;

/// The longest pause after the system refused to accept a connection for lack of files or memory.
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The least time between two warnings that all connections are taken.
const CROWDED_INTERVAL: Duration = Duration::from_secs(10);

/// A server. By default it answers to no name that has to be set, and has neither request ids on its responses, nor CORS, nor metrics.
#[derive(Debug, Clone)]
pub struct Server {
    limits: Limits,
    hosts: Hosts,
    proxies: Proxies,
    cors: Option<Cors>,
    has_request_ids: bool,
    route_of: Option<fn(&str) -> &'static str>,
}

impl Server {
    /// A server with these limits.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            hosts: Hosts::default(),
            proxies: Proxies::default(),
            cors: None,
            has_request_ids: false,
            route_of: None,
        }
    }

    /// Also answers under these names.
    #[must_use]
    pub fn with_hosts(self, hosts: Hosts) -> Self {
        Self { hosts, ..self }
    }

    /// Believes these proxies about the addresses of clients.
    #[must_use]
    pub fn with_proxies(self, proxies: Proxies) -> Self {
        Self { proxies, ..self }
    }

    /// Puts the request's id on every response, as `X-Request-Id`.
    #[must_use]
    pub fn with_request_ids(self) -> Self {
        Self { has_request_ids: true, ..self }
    }

    /// Lets pages of other origins use the server. `None`: no page of another origin.
    #[must_use]
    pub fn with_cors(self, cors: Option<Cors>) -> Self {
        Self { cors, ..self }
    }

    /// Counts and times requests by the route that `route_of` gives for a path. Call
    /// [`describe_metrics`](crate::describe_metrics) too.
    #[must_use]
    pub fn with_metrics(self, route_of: fn(&str) -> &'static str) -> Self {
        Self { route_of: Some(route_of), ..self }
    }

    /// Serves until `shutdown`. Then it closes idle connections, lets each other connection finish its request, and
    /// returns when all are closed.
    pub async fn serve(self, listener: TcpListener, handler: impl Handler, shutdown: CancellationToken) {
        let server = Arc::new(self);
        let connection_count_max = server.limits.connection_count_max;
        let places = Arc::new(Semaphore::new(connection_count_max));
        let mut backoff = Backoff::up_to(ACCEPT_BACKOFF_MAX);
        let mut warned_at = None;
        loop {
            // A place is taken before a connection is accepted. A client without a place waits in the kernel's queue,
            // costs nothing here, and is served as soon as a connection is closed. A response 503 would be worse: the
            // server would refuse clients although the open connections may all be idle.
            let place = tokio::select! {
                () = shutdown.cancelled() => break,
                place = free_place(&places, &mut warned_at) => place,
            };
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    backoff.reset();
                    let (server, handler, shutdown) = (Arc::clone(&server), handler.clone(), shutdown.clone());
                    tokio::spawn(async move {
                        let _place = place;
                        server.serve_connection(stream, peer.ip(), &handler, &shutdown).await;
                    });
                }
                Err(error) if concerns_one_client(&error) => {}
                // No files or no memory: the connection is still in the queue, and accept would fail again at once.
                Err(error) => {
                    warn!(error = %error, "cannot accept connections");
                    if !sleep_or_stop(backoff.next_wait(), &shutdown).await {
                        break;
                    }
                }
            }
        }
        drop(listener);
        // Each connection gives its place back when it ends.
        let _ = places.acquire_many(u32::try_from(connection_count_max).unwrap_or(u32::MAX)).await;
    }

    async fn serve_connection(
        &self,
        stream: TcpStream,
        peer: IpAddr,
        handler: &impl Handler,
        shutdown: &CancellationToken,
    ) {
        // Responses are small and complete, so waiting for more bytes would only delay them. An error means that the
        // client has left, which the next read finds too.
        let _ = stream.set_nodelay(true);
        let exchanges = Exchanges::default();
        let socket = TokioIo::new(Watched::new(stream, exchanges.clone(), &self.limits));
        let service = service_fn(|request| {
            let (exchange, response) = (exchanges.begin(), self.respond(handler, peer, request));
            async move {
                let response = response.await;
                drop(exchange);
                Ok::<_, Infallible>(response)
            }
        });
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                // hyper counts from the end of the previous response, so this bounds the idle time plus the header.
                .header_read_timeout(self.limits.idle_wait.max(self.limits.header_wait))
                .max_header_size(HEADER_LEN_MAX)
                .max_buf_size(BUFFER_LEN_MAX)
                .serve_connection(socket, service)
        );
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            debug!(error = %error, "a connection ended early");
        }
    }

    async fn respond(&self, handler: &impl Handler, peer: IpAddr, request: Request<Incoming>) -> Response {
        let measurement =
            self.route_of.map(|route_of| Measurement::begin(request.method(), route_of(request.uri().path())));
        let client = self.proxies.client(peer, request.headers());
        let info = RequestInfo { client, id: RequestId::of(request.headers()) };
        let visit = self.cors.as_ref().map(|cors| Visit::of(cors, &request));
        let handled = async {
            if !self.hosts.accept(request.headers()) {
                return ErrorResponse::unknown_host().into_response();
            }
            if is_foreign_change(self.cors.as_ref(), &request) {
                return ErrorResponse::unknown_origin().into_response();
            }
            match visit.as_ref().and_then(Visit::preflight) {
                Some(preflight) => preflight,
                None => handler.handle(request, &info).await,
            }
        };
        let wait = self.limits.request_wait;
        let mut response = timeout(wait, handled).await.unwrap_or_else(|_| {
            // The cause, for example Postgres, has logged a warning of its own.
            debug!(request_id = info.id.as_str(), waited_s = wait.as_secs_f32(), "a request took too long");
            handler.late()
        });
        let status = response.status();
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            warn!(request_id = info.id.as_str(), "a request failed");
        } else if status.is_server_error() {
            // Under load there are many, and the client may retry.
            debug!(request_id = info.id.as_str(), status = status.as_u16(), "a request was put off");
        }
        if let Some(measurement) = measurement {
            measurement.end(status);
        }
        if self.has_request_ids {
            info.id.mark(response.headers_mut());
        }
        if let Some(visit) = visit {
            visit.mark(response.headers_mut());
        }
        response
    }
}

async fn free_place(places: &Arc<Semaphore>, warned_at: &mut Option<Instant>) -> Option<OwnedSemaphorePermit> {
    if let Ok(place) = Arc::clone(places).try_acquire_owned() {
        return Some(place);
    }
    if warned_at.is_none_or(|at| at.elapsed() >= CROWDED_INTERVAL) {
        warn!("all connections are taken; new ones wait");
        *warned_at = Some(Instant::now());
    }
    // `None` would mean that the semaphore is closed, and no code closes it.
    Arc::clone(places).acquire_owned().await.ok()
}

fn concerns_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::net::SocketAddr;

    use axum::Router;
    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures_util::stream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    use super::*;

    /// More than the buffers of both sockets hold: the sender's grows to 4 MiB, the reader's is fixed.
    const PART_LEN: usize = 8 * 1024 * 1024;

    async fn start(server: Server, router: Router) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(server.serve(listener, router, CancellationToken::new()));
        address
    }

    async fn get_path(address: SocketAddr, path: &str) -> TcpStream {
        // A fixed buffer: the kernel would let it grow, and a whole part of a stream would fit.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        let mut socket = socket.connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        socket
    }

    async fn read_text(mut socket: TcpStream) -> String {
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_late_response_is_an_error_body_with_retry_after() {
        let limits = Limits { request_wait: Duration::from_millis(50), ..Limits::default() };
        let address = start(Server::new(limits), Router::new().route("/", get(pending::<()>))).await;
        let response = read_text(get_path(address, "/").await).await;
        assert!(response.starts_with("HTTP/1.1 503 ") && response.contains("retry-after: 1\r\n"), "{response}");
        assert!(response.ends_with(r#""code":"unavailable"}"#), "{response}");
    }

    #[tokio::test]
    async fn request_ids_are_on_responses_only_if_the_server_is_told_so() {
        let router = Router::new().route("/", get(async || "x"));
        for (server, has_id) in
            [(Server::new(Limits::default()), false), (Server::new(Limits::default()).with_request_ids(), true)]
        {
            let response = read_text(get_path(start(server, router.clone()).await, "/").await).await;
            assert_eq!(response.contains("x-request-id: "), has_id, "{response}");
        }
    }

    /// Each part of a stream has `response_wait` for itself; a client that stops reading is left.
    #[tokio::test]
    async fn a_stream_lasts_while_its_client_reads_and_no_longer() {
        let (parts, receiver) = mpsc::unbounded_channel::<()>();
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        let events = async move || {
            let parts = stream::unfold(receiver, async |receiver| {
                receiver.lock().await.recv().await?;
                Some((Ok::<_, Infallible>(Bytes::from(vec![b'x'; PART_LEN])), receiver))
            });
            Body::from_stream(parts)
        };
        let limits = Limits { response_wait: Duration::from_secs(2), ..Limits::default() };
        let address = start(Server::new(limits), Router::new().route("/", get(events))).await;
        let mut socket = get_path(address, "/").await;
        let mut part = vec![0; PART_LEN];
        for _ in 0..3 {
            parts.send(()).unwrap();
            // The server fills the buffers and waits. Together the pauses are longer than the limit.
            sleep(Duration::from_millis(700)).await;
            socket.read_exact(&mut part).await.unwrap();
        }
        parts.send(()).unwrap();
        // A pause that is longer than the limit: the server closes the connection, and a part is missing.
        sleep(Duration::from_millis(3000)).await;
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
        assert!(rest.len() < PART_LEN, "{}", rest.len());
    }
}
