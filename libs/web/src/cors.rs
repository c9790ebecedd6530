//! Which pages of other hosts may send JSON to the api from a browser, and read its answers. None, unless the settings name
//! them.
//!
//! No cookie is ever looked at, so nothing is allowed that a page could do in a user's name without knowing it.

use std::str::FromStr;

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

/// What such a page may send.
const ALLOWED_METHODS: &str = "GET, HEAD, POST";
const ALLOWED_HEADERS: &str = "authorization, content-type, idempotency-key, traceparent, x-request-id";
/// What it may read, beside the few headers that every page may.
const EXPOSED_HEADERS: &str = "idempotent-replayed, location, retry-after, x-request-id";
/// How long a browser need not ask again, in seconds. Chromium asks after two hours in any case.
const MAX_AGE_S: u16 = 3600;

/// Origins, as a browser writes them: `https://rides.example.com`, with a port where it is not the usual one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Every page there is.
    Any,
    /// These.
    Listed(Vec<HeaderValue>),
}

impl FromStr for Origins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        text.split(',').map(|origin| parse(origin.trim())).collect::<Result<_, _>>().map(Self::Listed)
    }
}

/// Compared byte by byte with what a browser sends, so what it never sends is refused.
fn parse(origin: &str) -> Result<HeaderValue, String> {
    let complaint = match origin {
        "*" => Some("give either * or a list of origins".to_owned()),
        "" => Some("give origins such as https://rides.example.com, with commas between them".to_owned()),
        _ if origin.chars().any(|char| char.is_ascii_uppercase()) => {
            Some(format!("{origin} has capital letters, and browsers send none"))
        }
        _ if !is_origin(origin) => Some(format!(
            "{origin} is no origin: give scheme, host and port only, as in https://rides.example.com:8443"
        )),
        _ => None,
    };
    match complaint {
        None => HeaderValue::try_from(origin).map_err(|error| format!("{origin} is no origin: {error}")),
        Some(complaint) => Err(complaint),
    }
}

fn is_origin(origin: &str) -> bool {
    let Ok(uri) = Uri::from_str(origin) else { return false };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    let usual_port = match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    // Without a path, a user, or a port that goes without saying.
    origin == format!("{scheme}://{authority}")
        && !authority.as_str().contains(['@', '*'])
        && !authority.host().is_empty()
        && (authority.port_u16().is_none() || authority.port_u16() != usual_port)
}

/// A request, as far as it matters here.
#[derive(Debug)]
pub(crate) struct Visit {
    /// What the answer allows; `None`: nothing.
    allowed: Option<HeaderValue>,
    is_preflight: bool,
    depends_on_origin: bool,
}

impl Visit {
    /// Looks at a request before it is answered.
    pub fn of<B>(origins: &Origins, request: &Request<B>) -> Self {
        let origin = request.headers().get(ORIGIN);
        let allowed = match (origins, origin) {
            (_, None) => None,
            (Origins::Any, Some(_)) => Some(HeaderValue::from_static("*")),
            (Origins::Listed(listed), Some(origin)) => listed.contains(origin).then(|| origin.clone()),
        };
        let is_preflight = allowed.is_some()
            && request.method() == Method::OPTIONS
            && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        Self { allowed, is_preflight, depends_on_origin: *origins != Origins::Any }
    }

    /// The answer to a browser that asks whether it may ask. `None`: the request is of another kind.
    pub fn preflight(&self) -> Option<Response> {
        let headers = [
            (ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(ALLOWED_METHODS)),
            (ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS)),
            (ACCESS_CONTROL_MAX_AGE, HeaderValue::from(MAX_AGE_S)),
        ];
        self.is_preflight.then(|| (StatusCode::NO_CONTENT, headers).into_response())
    }

    /// Puts on an answer what lets the browser hand it to the page.
    pub fn mark(self, headers: &mut HeaderMap) {
        if self.depends_on_origin {
            // For caches, also where nothing is allowed.
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        let Some(allowed) = self.allowed else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if !self.is_preflight {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_as_browsers_write_them() {
        assert_eq!("*".parse(), Ok(Origins::Any));
        let listed = "https://rides.example.com, http://localhost:8080,http://[::1]:3000,capacitor://localhost";
        let Ok(Origins::Listed(origins)) = listed.parse() else { panic!("a list") };
        assert_eq!(
            origins,
            ["https://rides.example.com", "http://localhost:8080", "http://[::1]:3000", "capacitor://localhost"]
        );
    }

    #[test]
    fn what_no_browser_sends_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "give origins such as"),
            ("https://a.example,", "give origins such as"),
            ("*,https://a.example", "either * or a list"),
            ("https://A.example", "capital letters"),
            ("https://a.example/", "is no origin"),
            ("https://a.example/path", "is no origin"),
            ("https://a.example:443", "is no origin"),
            ("http://a.example:80", "is no origin"),
            ("https://user@a.example", "is no origin"),
            ("https://*.a.example", "is no origin"),
            ("a.example", "is no origin"),
            ("null", "is no origin"),
            ("https://", "is no origin"),
            ("https://a.example https://b.example", "is no origin"),
        ] {
            let refused = text.parse::<Origins>();
            assert!(refused.as_ref().is_err_and(|error| error.contains(reason)), "{text:?}: {refused:?}");
        }
    }
}
