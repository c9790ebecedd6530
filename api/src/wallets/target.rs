//! The paths of wallets, `/wallet/<ksuid>` and `/wallet/<ksuid>/<endpoint>`, and their query strings.

use axum::http::Method;
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;
use wallet::{Action, WalletId};

use crate::paths::{BALANCE, CREDIT, DEBIT, TRANSACTIONS, TRANSFER, WALLET};
use crate::wallets::error::WalletError;

/// Where all of these paths begin.
const ROOT: &str = "/wallet";

/// The two parts of a path, as the client wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target<'a> {
    ksuid: &'a str,
    /// `None`: the path ends with the KSUID.
    endpoint: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// `None`: the path is none of a wallet.
    fn of(path: &'a str) -> Option<Self> {
        let parts = path.strip_prefix(ROOT)?.strip_prefix('/')?;
        match parts.split_once('/') {
            None if parts.is_empty() => None,
            None => Some(Self { ksuid: parts, endpoint: None }),
            Some((_, endpoint)) if endpoint.contains('/') => None,
            Some((ksuid, endpoint)) => Some(Self { ksuid, endpoint: Some(endpoint) }),
        }
    }

    fn wallet(self) -> Result<WalletId, WalletError> {
        self.ksuid.parse().map_err(|reason| WalletError::NotAKsuid { text: self.ksuid.to_owned(), reason })
    }
}

/// The wallet of a path.
///
/// # Errors
/// The path has no KSUID.
pub(crate) fn wallet_of(path: &str) -> Result<WalletId, WalletError> {
    Target::of(path).ok_or(WalletError::NotAPath)?.wallet()
}

/// The parameters of a command: none.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoParameters {}

/// The query string. With a misspelt `min_version` a client would take an older state for a newer one, and a command that ignored
/// `dry_run=true` would move money. So no other parameter is allowed.
///
/// # Errors
/// A parameter is unknown, or is given several times.
pub(crate) fn query<T: Default + DeserializeOwned + IntoParams>(head: &Parts) -> Result<T, WalletError> {
    let Some(query) = head.uri.query() else { return Ok(T::default()) };
    serde_urlencoded::from_str(query).map_err(|_| {
        let given: Vec<(String, String)> = serde_urlencoded::from_str(query).unwrap_or_default();
        let known: Vec<String> = T::into_params(|| None).into_iter().map(|parameter| parameter.name).collect();
        match given.into_iter().find(|(name, _)| !known.contains(name)) {
            Some((name, _)) => WalletError::UnknownParameter { name, known },
            None => WalletError::RepeatedParameter,
        }
    })
}

/// A request that the api dispatches without its router, because it is asked for thousands of times a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quick {
    /// `GET /wallet/<ksuid>/balance`.
    Balance,
    /// `POST /wallet/<ksuid>/<action>`.
    Command(Action),
}

/// Whether a request goes straight to its handler, to which the router would lead it too.
pub(crate) fn quick(method: &Method, path: &str) -> Option<Quick> {
    let endpoint = Target::of(path)?.endpoint?;
    match (method, endpoint) {
        (&Method::GET, "balance") => Some(Quick::Balance),
        (&Method::POST, endpoint) => {
            let actions = [Action::Credit, Action::Debit, Action::Transfer];
            actions.into_iter().find(|action| action.name() == endpoint).map(Quick::Command)
        }
        _ => None,
    }
}

/// The error of a request whose path is below `/wallet` and on no route. `None`: the path is elsewhere.
pub(crate) fn error_of(method: &Method, path: &str) -> Option<WalletError> {
    if path != ROOT && !path.starts_with("/wallet/") {
        return None;
    }
    let is_supported = [Method::GET, Method::HEAD, Method::POST].contains(method);
    Some(match Target::of(path) {
        _ if !is_supported => WalletError::WrongMethod { allowed: "GET,HEAD,POST" },
        None => WalletError::NotAPath,
        Some(target) => match (target.wallet(), target.endpoint) {
            (Err(error), _) => error,
            (Ok(_), None) => WalletError::NotAPath,
            (Ok(_), Some(endpoint)) => WalletError::NoHandler { endpoint: endpoint.to_owned() },
        },
    })
}

/// The route of a path, as metrics name it.
pub(crate) fn route_of(path: &str) -> Option<&'static str> {
    match Target::of(path)?.endpoint {
        None => Some(WALLET),
        Some("balance") => Some(BALANCE),
        Some("transactions") => Some(TRANSACTIONS),
        Some("credit") => Some(CREDIT),
        Some("debit") => Some(DEBIT),
        Some("transfer") => Some(TRANSFER),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "28skwt5B8zTrs6AqBWrSgCHLcRL";

    #[test]
    fn quick_requests_are_balances_and_commands() {
        let quick = |method, endpoint| super::quick(&method, &format!("/wallet/{ID}/{endpoint}"));
        assert_eq!(quick(Method::GET, "balance"), Some(Quick::Balance));
        assert_eq!(quick(Method::POST, "credit"), Some(Quick::Command(Action::Credit)));
        assert_eq!(quick(Method::POST, "transfer"), Some(Quick::Command(Action::Transfer)));
        for (method, endpoint) in [
            (Method::HEAD, "balance"),
            (Method::POST, "balance"),
            (Method::GET, "credit"),
            (Method::GET, "transactions"),
            (Method::POST, ""),
            (Method::POST, "credit/"),
        ] {
            assert_eq!(quick(method, endpoint), None, "{endpoint}");
        }
    }

    #[test]
    fn a_path_on_no_route_says_which_part_is_wrong() {
        let error = |path: &str| error_of(&Method::GET, path).map(|error| error.to_string());
        let not_a_path = Some("path must be 'wallet/[entity ksuid]/[endpoint]'".to_owned());
        for path in ["/wallet", "/wallet/", &format!("/wallet/{ID}/balance/2")] {
            assert_eq!(error(path), not_a_path, "{path}");
        }
        for (path, start) in [
            ("/wallet//balance", r#"entity ksuid "" could not be parsed: a KSUID has 27 characters"#),
            ("/wallet/x/nothing", r#"entity ksuid "x" could not be parsed: "#),
            (&format!("/wallet/{ID}/"), r#"no handler for endpoint="": "#),
            (&format!("/wallet/{ID}/close"), r#"no handler for endpoint="close": "#),
        ] {
            assert!(error(path).is_some_and(|error| error.starts_with(start)), "{path}: {:?}", error(path));
        }
        for path in ["/", "/wallets", "/wallets/1", "/walletx"] {
            assert_eq!(error(path), None, "{path}");
        }
    }
}
