//! Accepts connections and serves HTTP/1.1 on them, within [`Limits`]. `axum::serve` has no time-outs.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use common::backoff::Backoff;
use common::shutdown::{CancellationToken, sleep_or_stop};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tracing::{Instrument, debug, warn};

use crate::connection::{Turns, Watched};
use crate::cors::Visit;
use crate::error::Error;
use crate::limits::Limits;
use crate::request_id::RequestId;
use crate::{App, metrics, rides, router};

/// The largest header, in bytes, request line included; larger ones are answered with 431. Browsers with full cookie
/// jars send 8 KiB.
const HEADER_LEN_MAX: usize = 16 * 1024;

/// What is buffered of a connection, in bytes each way. Bounds memory, together with the number of connections.
const BUFFER_LEN_MAX: usize = 32 * 1024;

/// How long to wait, at most, after the system refused to accept a connection, for lack of files or memory.
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The least time between two complaints that all connections are taken.
const CROWDED_INTERVAL: Duration = Duration::from_secs(10);

/// Serves until `shutdown`. Then idle connections are closed; the others are closed after the request in hand, and it
/// returns when there are none.
pub(crate) async fn serve_until(listener: TcpListener, app: App, limits: Limits, shutdown: CancellationToken) {
    let router = router(app.clone());
    let places = Arc::new(Semaphore::new(limits.connection_count_max));
    let mut backoff = Backoff::up_to(ACCEPT_BACKOFF_MAX);
    let mut complained_at = None;
    loop {
        // The place comes first: who is not accepted waits in the kernel's queue, costs nothing here, and is served as
        // soon as somebody leaves. An answer 503 instead would have to be sent while nothing but idle connections may
        // be in the way.
        let place = tokio::select! {
            () = shutdown.cancelled() => break,
            place = free_place(&places, &mut complained_at) => place,
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                backoff.reset();
                let (app, router, shutdown) = (app.clone(), router.clone(), shutdown.clone());
                let connection = serve_connection(stream, peer.ip(), app, router, limits, shutdown, place);
                tokio::spawn(connection);
            }
            Err(error) if concerns_one_client(&error) => {}
            // No files, no memory: the connection is still in the queue, and accept would fail again at once.
            Err(error) => {
                warn!(error = %error, "cannot accept connections");
                if !sleep_or_stop(backoff.next_wait(), &shutdown).await {
                    break;
                }
            }
        }
    }
    drop(listener);
    // Each connection gives its place back at its end.
    let all = u32::try_from(limits.connection_count_max).unwrap_or(u32::MAX);
    let _ = places.acquire_many(all).await;
}

async fn free_place(places: &Arc<Semaphore>, complained_at: &mut Option<Instant>) -> Option<OwnedSemaphorePermit> {
    if let Ok(place) = Arc::clone(places).try_acquire_owned() {
        return Some(place);
    }
    if complained_at.is_none_or(|at| at.elapsed() >= CROWDED_INTERVAL) {
        warn!("all connections are taken; new ones wait");
        *complained_at = Some(Instant::now());
    }
    // None: the semaphore is closed, which nobody does.
    Arc::clone(places).acquire_owned().await.ok()
}

fn concerns_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn serve_connection(
    stream: TcpStream,
    peer: IpAddr,
    app: App,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
    _place: Option<OwnedSemaphorePermit>,
) {
    // Answers are small and complete: waiting for more to send with them only delays them.
    // It fails if the client has gone, as the next read will.
    let _ = stream.set_nodelay(true);
    let turns = Turns::default();
    let socket = TokioIo::new(Watched::new(stream, turns.clone(), &limits));
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request| {
        let (turn, answer) = (turns.begin(), answer(&app, &router, peer, request, limits.request_wait));
        async move {
            let answered = answer.await;
            drop(turn);
            answered
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            // Counts from the end of the answer before, and so bounds the idle time and the header together.
            .header_read_timeout(limits.idle_wait.max(limits.header_wait))
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

async fn answer(
    app: &App,
    router: &TowerToHyperService<Router>,
    peer: IpAddr,
    request: Request<Incoming>,
    wait: Duration,
) -> Result<Response, Infallible> {
    let asked = app.is_watched.then(|| (Instant::now(), request.method().clone(), request.uri().path().to_owned()));
    let id = RequestId::of(request.headers());
    let visit = app.origins.as_deref().map(|origins| Visit::of(origins, &request));
    let (head, body) = request.into_parts();
    let answer = async {
        if let Some(preflight) = visit.as_ref().and_then(Visit::preflight) {
            return preflight;
        }
        match head.method == Method::POST && head.uri.path() == "/rides" {
            true => rides::create(app, peer, &id, &head.headers, body).await,
            false => {
                let routed = router.call(Request::from_parts(head, body)).instrument(id.span());
                Box::pin(routed).await.unwrap_or_else(|never| match never {})
            }
        }
    };
    let mut answer = timeout(wait, answer).await.unwrap_or_else(|_| {
        // What it waited for has said so itself, once for all.
        debug!(request_id = id.as_str(), waited_s = wait.as_secs_f32(), "a request took too long");
        Error::Unavailable.into_response()
    });
    if answer.status() == StatusCode::INTERNAL_SERVER_ERROR {
        warn!(request_id = id.as_str(), "a request failed");
    } else if answer.status().is_server_error() {
        // It may be asked for again, and under load there are many.
        debug!(request_id = id.as_str(), status = answer.status().as_u16(), "a request was put off");
    }
    if let Some((began_at, method, path)) = asked {
        metrics::answered(&method, &path, answer.status().as_u16(), began_at.elapsed());
    }
    id.mark(answer.headers_mut());
    if let Some(visit) = visit {
        visit.mark(answer.headers_mut());
    }
    Ok(answer)
}
