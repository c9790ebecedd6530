//! The part of a server that is the process's own.

use std::net::IpAddr;

use axum::Router;
use axum::body::HttpBody;
use axum::response::{IntoResponse, Response};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use tower::ServiceExt;

use crate::error_response::ErrorResponse;
use crate::request_id::RequestId;

/// Facts about a request that are not in its header.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    /// The address of the client; of the last proxy, if it is not [trusted](crate::Proxies).
    pub client: IpAddr,
    /// The request's id.
    pub id: RequestId,
}

/// Responds to requests. A [`Router`] is a handler; a process that must be faster than a router is for one route
/// implements its own.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Responds to one request. The future is dropped if the client leaves or the time is up.
    fn handle(&self, request: Request<Incoming>, info: &RequestInfo) -> impl Future<Output = Response> + Send;

    /// The response to a request that took longer than [`Limits::request_wait`](crate::Limits::request_wait).
    fn late(&self) -> Response {
        ErrorResponse::late().into_response()
    }
}

impl Handler for Router {
    async fn handle(&self, request: Request<Incoming>, info: &RequestInfo) -> Response {
        route(self, request, info).await
    }
}

/// Passes a request to a router. Its handlers find the [`RequestInfo`] as an
/// [`Extension`](axum::extract::Extension).
pub async fn route<B>(router: &Router, mut request: Request<B>, info: &RequestInfo) -> Response
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    request.extensions_mut().insert(info.clone());
    router.clone().oneshot(request).await.unwrap_or_else(|never| match never {})
}
