//! The HTTP client of a webhook. It follows no redirect, and connects to no address that is out of reach.

use std::io;
use std::net::SocketAddr;
use std::task::{self, Poll};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tower::Service;

use super::address::Reach;

/// A pool of connections to one server.
pub(super) type Client = legacy::Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>;

/// A client for URLs of this scheme. The caller bounds each request, and checks an address that is written in the URL: such a URL
/// needs no resolver.
///
/// # Errors
/// The scheme is https, and this machine trusts no authority.
pub(super) fn build(scheme: &str, reach: Reach) -> Result<Client> {
    let mut tcp = HttpConnector::new_with_resolver(Resolver { resolver: GaiResolver::new(), reach });
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let config = if scheme == "https" {
        connect::tls::client_config()?
    } else {
        // This configuration is never used.
        let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
        let builder = builder.with_safe_default_protocol_versions().context("preparing TLS")?;
        builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
    };
    let builder = HttpsConnectorBuilder::new().with_tls_config(config);
    let connector = builder.https_or_http().enable_http1().wrap_connector(tcp);
    Ok(legacy::Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector))
}

/// Resolves a name to the addresses that are within reach.
#[derive(Clone)]
pub(super) struct Resolver {
    resolver: GaiResolver,
    reach: Reach,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        self.resolver.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (resolving, reach) = (self.resolver.call(name), self.reach);
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = resolving.await?.filter(|address| reach.allows(address.ip())).collect();
            if addresses.is_empty() {
                return Err(io::Error::other("the name has private addresses only, and allow_private is not set"));
            }
            Ok(addresses.into_iter())
        })
    }
}
