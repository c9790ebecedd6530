//! The description at `/openapi.json`, and a page at `/docs` that shows it. The page's files are in the binary, and its
//! policy forbids the browser to load anything from elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, VARY};
use axum::http::header::{REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use utoipa::OpenApi;
use utoipa_swagger_ui::Config;
use web::{accepts_gzip, gunzip};

use crate::app::App;
use crate::description::Description;
use crate::error::Error;
use crate::paths::{DOCS, OPENAPI};

/// Swagger UI draws icons from `data:` and sets styles of single elements; it runs its own scripts only.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// How long a browser may keep the page's files. After that it asks again, because a new version may run by then.
const FILES_MAX_AGE: &str = "max-age=3600";

/// The routes of the description and of its page. Links are relative, so they work behind a proxy that adds a prefix to the
/// paths.
pub(crate) fn router() -> Router<App> {
    let page = async |headers: HeaderMap| file("index.html", &headers);
    let any_file = async |Path(name): Path<String>, headers: HeaderMap| file(&name, &headers);
    Router::new()
        .route(OPENAPI, get(description))
        .route(DOCS, get(async || (StatusCode::PERMANENT_REDIRECT, [(LOCATION, "docs/")])))
        .route(&format!("{DOCS}/"), get(page))
        .route(&format!("{DOCS}/{{*name}}"), get(any_file))
}

async fn description() -> impl IntoResponse {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| {
        Description::openapi().to_json().expect("a description is JSON: nothing in it can fail to be written").into()
    });
    ([(CONTENT_TYPE, "application/json")], TEXT.clone())
}

fn file(name: &str, headers: &HeaderMap) -> Result<Response, Error> {
    static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
        // By default the page would show a badge from a server on the internet: `none` prevents that.
        Arc::new(Config::from("../openapi.json").try_it_out_enabled(true).use_base_layout().validator_url("none"))
    });
    let file = utoipa_swagger_ui::serve(name, Arc::clone(&CONFIG)).map_err(|_| Error::Internal)?;
    let file = file.ok_or(Error::NoSuchPath)?;
    let policies = [
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (CACHE_CONTROL, HeaderValue::from_static(FILES_MAX_AGE)),
    ];
    let content_type = [(CONTENT_TYPE, file.content_type)];
    // The build has compressed these files.
    Ok(match (file.gzpipped, accepts_gzip(headers)) {
        (false, _) => (policies, content_type, file.bytes).into_response(),
        (true, true) => (policies, content_type, [(CONTENT_ENCODING, "gzip"), (VARY, "accept-encoding")], file.bytes)
            .into_response(),
        (true, false) => (policies, content_type, plain(name, &file.bytes)?).into_response(),
    })
}

/// The decompressed file. It is made for the first client that does not accept gzip, and kept for later ones.
fn plain(name: &str, compressed: &[u8]) -> Result<Bytes, Error> {
    static FILES: LazyLock<Mutex<HashMap<String, Bytes>>> = LazyLock::new(Mutex::default);
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(file) = files.get(name) {
        return Ok(file.clone());
    }
    let file = Bytes::from(gunzip(compressed).map_err(|_| Error::Internal)?);
    files.insert(name.to_owned(), file.clone());
    Ok(file)
}
