//! The table of routes, and the fast path for the route that nearly every request takes.

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{Method, Request};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use hyper::body::Incoming;
use tracing::Instrument;
use web::{Handler, RequestInfo};

use crate::app::App;
use crate::error::Error;
use crate::paths::{DOCS, HEALTHZ, OPENAPI, RIDE, RIDES, TOTALS};
use crate::{docs, health, rides, totals};

/// Every route that the description describes.
pub(crate) fn described() -> [(&'static str, MethodRouter<App>); 4] {
    let create = async |State(app): State<App>, Extension(info): Extension<RequestInfo>, request: Request<Body>| {
        rides::create_ride(&app, &info, request).await
    };
    [
        (RIDES, get(rides::list_rides).post(create)),
        (RIDE, get(rides::show_ride)),
        (TOTALS, get(totals::show_totals)),
        (HEALTHZ, get(health::check_health)),
    ]
}

/// Every route.
pub(crate) fn router(app: App) -> Router {
    let described = described().into_iter().fold(Router::new(), |router, (path, route)| router.route(path, route));
    described
        .merge(docs::router())
        .method_not_allowed_fallback(async || Error::WrongMethod)
        .fallback(async || Error::NoSuchPath)
        .layer(from_fn(web::compress))
        .with_state(app)
}

/// The fast path: whether a request goes straight to [`rides::create_ride`], to which the router would lead it too. Nearly
/// every request is such a one, and the router is a measurable part of its cost.
fn takes_fast_path<B>(request: &Request<B>) -> bool {
    request.method() == Method::POST && request.uri().path() == RIDES
}

/// The route of a path, as metrics name it.
pub(crate) fn route_of(path: &str) -> &'static str {
    if path.starts_with(DOCS) { DOCS } else { web::route_of(path, &[RIDES, TOTALS, HEALTHZ, OPENAPI, RIDE]) }
}

/// The api as a handler of HTTP requests.
#[derive(Clone)]
pub(crate) struct Site {
    app: App,
    router: Router,
}

impl Site {
    /// All routes, with this state.
    pub fn new(app: App) -> Self {
        Self { router: router(app.clone()), app }
    }
}

impl Handler for Site {
    async fn handle(&self, request: Request<Incoming>, info: &RequestInfo) -> Response {
        if takes_fast_path(&request) {
            return rides::create_ride(&self.app, info, request).await;
        }
        // In a box: the router's future is large, and the future of every guest's ride would have to be as large.
        Box::pin(web::route(&self.router, request, info).instrument(info.id.span())).await
    }

    fn late(&self) -> Response {
        Error::Unavailable.into_response()
    }
}
