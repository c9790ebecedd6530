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
use crate::paths::{DOCS, HEALTHZ, HISTORY, OPENAPI, RIDE, RIDES, TOTALS, WALLETS};
use crate::{docs, health, history, rides, totals, wallets};

/// Every route that the description describes.
pub(crate) fn described() -> impl Iterator<Item = (&'static str, MethodRouter<App>)> {
    let create = async |State(app): State<App>, Extension(info): Extension<RequestInfo>, request: Request<Body>| {
        let (head, body) = request.into_parts();
        rides::create_ride(&app, &info, &head.headers, body).await
    };
    let own = [
        (RIDES, get(rides::list_rides).post(create)),
        (RIDE, get(rides::show_ride)),
        (TOTALS, get(totals::show_totals)),
        (HISTORY, get(history::show_history)),
        (HEALTHZ, get(health::check_health)),
    ];
    own.into_iter().chain(wallets::routes())
}

/// Every route.
pub(crate) fn router(app: App) -> Router {
    let described = described().fold(Router::new(), |router, (path, route)| router.route(path, route));
    described
        .merge(docs::router())
        .method_not_allowed_fallback(async || Error::WrongMethod)
        .fallback(wallets::fallback)
        .layer(from_fn(web::compress))
        .with_state(app)
}

/// The fast path: whether a request goes straight to [`rides::create_ride`], to which the router would lead it too. Nearly
/// every request is such a one or one of [`wallets::quick`], and the router is a measurable part of its cost.
fn takes_fast_path<B>(request: &Request<B>) -> bool {
    request.method() == Method::POST && request.uri().path() == RIDES
}

/// The route of a path, as metrics name it.
pub(crate) fn route_of(path: &str) -> &'static str {
    if path.starts_with(DOCS) {
        return DOCS;
    }
    let others = [RIDES, TOTALS, HISTORY, HEALTHZ, OPENAPI, WALLETS, RIDE];
    wallets::route_of(path).unwrap_or_else(|| web::route_of(path, &others))
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
            let (head, body) = request.into_parts();
            return rides::create_ride(&self.app, info, &head.headers, body).await;
        }
        if let Some(quick) = wallets::quick(&request) {
            return Box::pin(wallets::answer(&self.app, info, quick, request).instrument(info.id.span())).await;
        }
        // In a box: the router's future is large, and the future of every guest's ride would have to be as large.
        Box::pin(web::route(&self.router, request, info).instrument(info.id.span())).await
    }

    fn late(&self) -> Response {
        Error::Unavailable.into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::Duration;

    use axum::http::StatusCode;
    use axum::http::header::ALLOW;
    use common::paced::Paced;
    use common::shutdown::CancellationToken;
    use monitor::Health;
    use tokio::sync::Semaphore;
    use tower::ServiceExt;
    use utoipa::OpenApi;

    use super::*;
    use crate::database::Database;
    use crate::description::Description;
    use crate::limits::Limits;
    use crate::reading::Reader;
    use crate::wallet_model::WalletModel;
    use crate::wallet_writer::WalletWriter;
    use crate::writer::Writer;

    /// The methods of a path, as the router or the description names them.
    fn methods<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
        // A router supports HEAD on every route with GET, and OPTIONS on no route.
        names.map(|name| name.trim().to_uppercase()).filter(|name| name != "HEAD").collect()
    }

    fn app() -> App {
        let postgres = "postgres://localhost/nowhere".parse().unwrap();
        let database = Database::new(&postgres, Duration::from_secs(1)).unwrap();
        let pulse = Health::default().pulse("writes", Duration::ZERO);
        let (writer, _) = Writer::start(database.clone(), &Limits::default(), pulse.clone());
        let model = WalletModel::new(None, database.clone());
        let (wallets, _) = WalletWriter::start(&postgres, model.clone(), &Limits::default(), pulse).unwrap();
        let (watchers, shutdown) = (Arc::new(Semaphore::new(1)), CancellationToken::new());
        let totals = Paced::start(Reader(database.clone()));
        let (body_wait, request_wait) = (Duration::ZERO, Duration::ZERO);
        App { database, writer, wallets, desk: None, model, body_wait, request_wait, totals, watchers, shutdown }
    }

    #[tokio::test]
    async fn every_route_is_described_and_nothing_else() {
        let description = serde_json::to_value(Description::openapi()).unwrap();
        let described = description["paths"].as_object().unwrap();
        let routes: BTreeSet<&str> = super::described().map(|(path, _)| path).collect();
        assert_eq!(described.keys().map(String::as_str).collect::<BTreeSet<_>>(), routes);
        let router = super::router(app());
        for (path, operations) in described {
            let request = Request::builder().method(Method::TRACE).uri(path.replace("{id}", "1")).body(Body::empty());
            let answer = router.clone().oneshot(request.unwrap()).await.unwrap();
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
            let allowed = answer.headers()[ALLOW].to_str().unwrap().split(',');
            let operations = operations.as_object().unwrap().keys().map(String::as_str);
            assert_eq!(methods(allowed), methods(operations), "{path}");
        }
    }

    #[test]
    fn metrics_name_the_route_of_each_path() {
        for (path, route) in [
            ("/rides", "/rides"),
            ("/rides/7", "/rides/{id}"),
            ("/totals", "/totals"),
            ("/history", "/history"),
            ("/wallets", "/wallets"),
            ("/wallet/7", "/wallet/{id}"),
            ("/wallet/7/balance", "/wallet/{id}/balance"),
            ("/wallet/7/transfer", "/wallet/{id}/transfer"),
            ("/wallet/7/nothing", "other"),
            ("/wallet", "other"),
            ("/docs/swagger-ui.css", "/docs"),
            ("/openapi.json", "/openapi.json"),
            ("/ride", "other"),
            ("/", "other"),
        ] {
            assert_eq!(route_of(path), route, "{path}");
        }
    }
}
