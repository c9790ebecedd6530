//! A bucket of S3. Requests go through the HTTP client and the TLS settings of the other processes, because the client of
//! `object_store` brings a TLS library of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::aws::AmazonS3Builder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::{ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use tokio::time::{Instant, Sleep, sleep, timeout};

/// The longest wait for a response: 5 MiB are sent, and S3 keeps them.
const RESPONSE_WAIT: Duration = Duration::from_secs(30);

/// The longest wait for the next bytes of a response.
const READ_WAIT: Duration = Duration::from_secs(10);

/// The longest time from the first try of a request to its last.
const RETRY_WAIT: Duration = Duration::from_secs(20);

const RETRY_COUNT_MAX: usize = 3;

/// A bucket. Credentials, region and endpoint come from the variables `AWS_…`.
pub(super) fn store(bucket: &str) -> Result<Arc<dyn ObjectStore>> {
    let retry = RetryConfig { max_retries: RETRY_COUNT_MAX, retry_timeout: RETRY_WAIT, ..RetryConfig::default() };
    let builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry).with_http_connector(Connector);
    Ok(Arc::new(builder.build().with_context(|| format!("configure the bucket {bucket} from the variables AWS_…"))?))
}

#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let tls = connect::tls::client_config()
            .map_err(|error| object_store::Error::Generic { store: "S3", source: error.into_boxed_dyn_error() })?;
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls);
        let may_be_plain = options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|value| value == "true");
        let builder = if may_be_plain { builder.https_or_http() } else { builder.https_only() };
        let mut tcp = TcpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = builder.enable_http1().wrap_connector(tcp);
        Ok(HttpClient::new(Client(
            legacy::Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector),
        )))
    }
}

#[derive(Debug)]
struct Client(legacy::Client<HttpsConnector<TcpConnector>, HttpRequestBody>);

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = timeout(RESPONSE_WAIT, self.0.request(request))
            .await
            .map_err(|error| HttpError::new(HttpErrorKind::Timeout, error))?
            .map_err(|error| {
                let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Request };
                HttpError::new(kind, error)
            })?;
        Ok(response.map(|body| HttpResponseBody::new(Bounded { body, late: Box::pin(sleep(READ_WAIT)) })))
    }
}

/// A body that fails if its next bytes do not come.
struct Bounded {
    body: Incoming,
    late: Pin<Box<Sleep>>,
}

impl Body for Bounded {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.late.as_mut().reset(Instant::now() + READ_WAIT);
            return Poll::Ready(
                frame.map(|frame| frame.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))),
            );
        }
        ready!(self.late.as_mut().poll(cx));
        let error = std::io::Error::new(std::io::ErrorKind::TimedOut, "the response stopped");
        Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Timeout, error))))
    }
}
