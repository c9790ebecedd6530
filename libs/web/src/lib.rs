//! HTTP, written once: the listener with its limits and time-outs, error bodies, request ids, CORS, compression, and metrics
//! per route. Users: the api, the dashboard, payments, and the monitor of every process.
//!
//! ```
//! use axum::Router;
//! use axum::routing::get;
//! use common::shutdown::CancellationToken;
//! use tokio::net::TcpListener;
//! use web::{Limits, Server};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let router = Router::new().route("/livez", get(async || "alive\n"));
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let shutdown = CancellationToken::new();
//! # shutdown.cancel();
//! Server::new(Limits::default()).serve(listener, router, shutdown).await;
//! # Ok(())
//! # }
//! ```
//!
//! A request passes these steps:
//!
//! 1. [`Server`] accepts a connection if there is a free place, and reads the header within [`Limits::header_wait`].
//! 2. The request gets a [`RequestId`]: the client's, or a new one.
//! 3. A request that asks for a name that is none of the server's ([`Hosts`]) is refused.
//! 4. A request that may change something is refused if a browser sends it for a page of an origin that [`Cors`] does not list.
//! 5. A preflight request of a browser is answered here, as [`Cors`] says. Every other request goes to the [`Handler`]:
//!    usually a `Router`, whose handlers return an [`ErrorResponse`] for an error.
//! 6. If the handler takes longer than [`Limits::request_wait`], it is dropped, and the client gets [`Handler::late`].
//! 7. The response is counted, gets its headers, and is written within [`Limits::response_wait`].
//!
//! # Why not tower-http
//!
//! tower-http 0.6 was tried. Its layers respond differently, and clients of the api would notice:
//!
//! | | tower-http | here |
//! | --- | --- | --- |
//! | compression | streams, so the response has no `Content-Length`, also to HEAD; ignores `Accept-Encoding: *` | the length is known |
//! | CORS | responds to every OPTIONS request with 200, even if the origin is not listed | 204 to a preflight of a listed origin; any other OPTIONS request gets the router's 405 |
//! | request ids | accepts every id: empty, with spaces, of any length; keeps it in the request's extensions, which allocates; needs the crate `uuid` | replaces an id that could spoil the log |
//! | time-out, body limit | the response has no JSON body | [`ErrorResponse`] |
//!
//! Its compression also needs three more crates, and `flate2` stays either way: the api decompresses files with it.
//! `axum::serve` has no time-outs and no limit on connections.

mod body;
mod compression;
mod connection;
mod cors;
mod error_response;
mod handler;
mod host;
mod limits;
mod metrics;
mod proxies;
mod request_id;
mod server;

pub use body::{BodyError, is_encoded, read_body};
pub use compression::{accepts_gzip, compress, gunzip};
pub use cors::{Cors, Origins};
pub use error_response::{ErrorBody, ErrorResponse};
pub use handler::{Handler, RequestInfo, route};
pub use host::{Hosts, is_this_machine};
pub use limits::Limits;
pub use metrics::{describe_metrics, route_of};
pub use proxies::Proxies;
pub use request_id::RequestId;
pub use server::Server;
