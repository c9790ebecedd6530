//! Lets pages of other origins use a server from a browser, if the settings name those origins (CORS). Other pages change nothing.
//!
//! A server reads no cookie, so a page cannot act in a user's name without the user's knowledge. But CORS only keeps responses from
//! a page. A browser still sends forms for every page, and reaches servers that the page's own server does not.

use std::str::FromStr;

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

/// How long a browser may keep the response to a preflight request, in seconds. Chromium keeps it for two hours at most.
const MAX_AGE_S: u16 = 3600;

/// The header in which a browser compares the origin of the page with that of the server: `same-origin`, `same-site` or
/// `cross-site`. It is `none` if no page sends the request, but a person has entered the address. No page can write this header.
/// Browsers leave it out towards plain `http` on other machines.
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// The pages of other origins that may use a server, and the requests that they may send.
#[derive(Debug, Clone)]
pub struct Cors {
    /// The origins of these pages.
    pub origins: Origins,
    /// The methods that such a page may use: `GET, HEAD, POST`.
    pub methods: &'static str,
    /// The headers that such a page may send.
    pub request_headers: &'static str,
    /// The headers of a response that such a page may read, beside the few that every page may read.
    pub response_headers: &'static str,
}

/// Origins, as a browser writes them: `https://rides.example.com`, with a port if it is not the scheme's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Every page.
    Any,
    /// The pages of these origins.
    Listed(Vec<HeaderValue>),
}

impl Origins {
    fn admit(&self, origin: &HeaderValue) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(listed) => listed.contains(origin),
        }
    }
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

/// An origin is compared with the browser's header byte by byte, so a spelling that a browser never sends is refused.
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
    // Without a path, a user, or the scheme's own port.
    origin == format!("{scheme}://{authority}")
        && !authority.as_str().contains(['@', '*'])
        && !authority.host().is_empty()
        && (authority.port_u16().is_none() || authority.port_u16() != usual_port)
}

/// Whether a browser sends the request for a page of another origin that is not listed, and it may change something. Programs that
/// are no browsers send neither header.
pub(crate) fn is_foreign_change<B>(cors: Option<&Cors>, request: &Request<B>) -> bool {
    let headers = request.headers();
    let origin = headers.get(ORIGIN);
    let is_listed = || cors.zip(origin).is_some_and(|(cors, origin)| cors.origins.admit(origin));
    let is_foreign = match (headers.get(SEC_FETCH_SITE), origin) {
        (Some(site), _) => site != "same-origin" && site != "none",
        (None, Some(origin)) => !is_of_host(origin, headers.get(HOST)),
        (None, None) => false,
    };
    !request.method().is_safe() && is_foreign && !is_listed()
}

/// Whether a page of this origin comes from the server that is asked for as `host`. The scheme is not compared: a proxy may have
/// ended TLS.
fn is_of_host(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let (Ok(origin), Some(Ok(host))) = (origin.to_str(), host.map(HeaderValue::to_str)) else { return false };
    origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host))
}

/// The facts about a request that matter for CORS.
#[derive(Debug)]
pub(crate) struct Visit<'a> {
    cors: &'a Cors,
    /// The origin that the response allows, or `*`. `None`: the response allows nothing.
    allowed: Option<HeaderValue>,
    is_preflight: bool,
}

impl<'a> Visit<'a> {
    /// Reads the header of a request.
    pub fn of<B>(cors: &'a Cors, request: &Request<B>) -> Self {
        let origin = request.headers().get(ORIGIN);
        let allowed = match (&cors.origins, origin) {
            (_, None) => None,
            (Origins::Any, Some(_)) => Some(HeaderValue::from_static("*")),
            (Origins::Listed(_), Some(origin)) => cors.origins.admit(origin).then(|| origin.clone()),
        };
        let is_preflight = allowed.is_some()
            && request.method() == Method::OPTIONS
            && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        Self { cors, allowed, is_preflight }
    }

    /// The response to a preflight request. `None`: the request is of another kind.
    pub fn preflight(&self) -> Option<Response> {
        let headers = [
            (ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(self.cors.methods)),
            (ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(self.cors.request_headers)),
            (ACCESS_CONTROL_MAX_AGE, HeaderValue::from(MAX_AGE_S)),
        ];
        self.is_preflight.then(|| (StatusCode::NO_CONTENT, headers).into_response())
    }

    /// Puts the headers on a response with which the browser hands it to the page.
    pub fn mark(self, headers: &mut HeaderMap) {
        if self.cors.origins != Origins::Any {
            // A cache needs this header even if nothing is allowed.
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        let Some(allowed) = self.allowed else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if !self.is_preflight {
            let exposed = HeaderValue::from_static(self.cors.response_headers);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_not_listed_changes_nothing() {
        let cors = |origins: &str| Cors {
            origins: origins.parse().unwrap(),
            methods: "",
            request_headers: "",
            response_headers: "",
        };
        let (any, listing) = (cors("*"), cors("https://a.example"));
        let (none, any, listing) = (None, Some(&any), Some(&listing));
        let (ours, theirs) = ("http://localhost:5005", "https://b.example");
        for (cors, site, origin, is_foreign) in [
            // curl, or a service.
            (none, "", "", false),
            (none, "none", "", false),
            (none, "same-origin", ours, false),
            // Behind a proxy that writes another name into Host.
            (none, "same-origin", "https://rides.example.com", false),
            (none, "cross-site", theirs, true),
            (none, "cross-site", "null", true),
            (none, "cross-site", "", true),
            // Another server of the same machine: its pages are of the same site.
            (none, "same-site", "http://localhost:8080", true),
            // A browser that does not say whether the page is of this site.
            (none, "", ours, false),
            (none, "", "https://localhost:5005", false),
            (none, "", "HTTP://LOCALHOST:5005", false),
            (none, "", "http://localhost", true),
            (none, "", "http://localhost:50050", true),
            (none, "", theirs, true),
            (none, "", "null", true),
            (listing, "cross-site", "https://a.example", false),
            (listing, "", "https://a.example", false),
            (listing, "cross-site", theirs, true),
            (listing, "same-origin", ours, false),
            (any, "cross-site", theirs, false),
            (any, "", "null", false),
        ] {
            for method in ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE"] {
                let mut request = Request::builder().method(method).header(HOST, "localhost:5005");
                for (name, value) in [(SEC_FETCH_SITE, site), (ORIGIN.as_str(), origin)] {
                    request = if value.is_empty() { request } else { request.header(name, value) };
                }
                let is_change = ["POST", "PUT", "DELETE"].contains(&method);
                let is_refused = is_foreign_change(cors, &request.body(()).unwrap());
                assert_eq!(is_refused, is_change && is_foreign, "{method} {site} {origin} {cors:?}");
            }
        }
    }

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
    fn a_spelling_that_no_browser_sends_is_refused_with_the_reason() {
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
