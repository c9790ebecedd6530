//! A tower layer around your own handlers: HTTP requests that may be sent any number of times.
//!
//! ```text
//! no key                        passed through, or 400 if a key is required
//! done before                   the same status, headers and body, and Idempotent-Replayed: true
//! running, or fenced            409, Retry-After
//! another request, same key     409
//! expired, or its result lost   410
//! bad header, or a bad name     400
//! body too long                 413
//! the handler panics            500; may be retried
//! its response is not final     that response; may be retried (401, 403, 408, 425, 429, 5xx, or as `Settings::is_final` says)
//! the store is away             503, Retry-After; may be retried
//! otherwise                     the handler's response, which is stored
//! ```

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use tower::{Layer, Service};

use crate::error::Error;
use crate::headers::Invalid;
use crate::kept_response::KeptResponse;
use crate::operation::Operation;
use crate::runner::Runner;
use crate::settings::Settings;
use crate::store::Store;

/// The longest body of a request with a key, in bytes: it is stored with the operation.
const BODY_LEN_MAX: usize = 64 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The key of a request, among the request's extensions. A handler in axum takes `Extension<IdempotencyKey>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(pub String);

/// Replays the response to a request that is sent again. Shape:
/// `Router::new().route("/rides", post(handler)).layer(IdempotencyLayer::new(store))`.
///
/// The handler and the record that it is done are two steps. If the process dies between them, or the handler takes longer
/// than its claim holds, it runs again when the client retries. An effect that must not happen twice even then belongs into
/// a [phase](crate::Phase).
#[derive(Clone)]
pub struct IdempotencyLayer<S> {
    runner: Runner<S>,
    settings: Settings,
    is_key_required: bool,
    body_len_max: usize,
}

impl<S: Store> IdempotencyLayer<S> {
    /// Tracks requests in `store`, with default settings.
    pub fn new(store: S) -> Self {
        Self {
            runner: Runner::new(store),
            settings: Settings::default(),
            is_key_required: false,
            body_len_max: BODY_LEN_MAX,
        }
    }

    /// The same layer with `settings` over its present ones. Set shared settings first, then those of each route.
    #[must_use]
    pub fn with(mut self, settings: Settings) -> Self {
        self.settings = settings.over(&self.settings);
        self
    }

    /// Refuses requests without a key.
    #[must_use]
    pub fn require_key(mut self) -> Self {
        self.is_key_required = true;
        self
    }

    /// The longest body of a request with a key, in bytes; 64 KiB by default.
    #[must_use]
    pub fn body_len_max(mut self, body_len_max: usize) -> Self {
        self.body_len_max = body_len_max;
        self
    }

    /// # Errors
    /// The response to a request that is refused before it reaches the store.
    async fn operation_of<B>(&self, request: Request<B>, key: String) -> Result<(Operation, Request<B>), KeptResponse>
    where
        B: BodyExt + From<Bytes>,
        B::Error: Into<BoxError>,
    {
        let (mut parts, body) = request.into_parts();
        let body = match Limited::new(body, self.body_len_max).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                let text = format!("The body is longer than {} bytes.", self.body_len_max);
                return Err(KeptResponse::refusal(StatusCode::PAYLOAD_TOO_LARGE, &text));
            }
            Err(_) => return Err(KeptResponse::refusal(StatusCode::BAD_REQUEST, "The body broke off.")),
        };
        parts.extensions.insert(IdempotencyKey(key.clone()));
        let operation = self.settings.operation_of(key, &parts, &body).map_err(refused)?;
        Ok((operation, Request::from_parts(parts, B::from(body))))
    }

    /// The response of `inner`, or the stored one.
    async fn respond<I, B, R>(
        &self,
        mut inner: I,
        request: Request<B>,
        operation: &Operation,
    ) -> Result<KeptResponse, I::Error>
    where
        I: Service<Request<B>, Response = Response<R>>,
        R: BodyExt<Data = Bytes>,
        R::Error: Into<BoxError>,
    {
        let mut handled = None;
        let work = async || {
            let response = match inner.call(request).await {
                Ok(response) => response,
                Err(error) => {
                    handled = Some(Err(error));
                    return Err(BoxError::from("the service failed"));
                }
            };
            // The head of the handler's response: the response in place of a long one is stored, although its status is 500.
            let (parts, body) = response.into_parts();
            let (is_final, status) = (self.settings.ends(&parts), parts.status);
            let response = KeptResponse::read(Response::from_parts(parts, body)).await?;
            let kept = if is_final { Ok(response.encode()) } else { Err(format!("answered {status}").into()) };
            handled = Some(Ok(response));
            kept
        };
        let called = self.runner.call(operation, work).await;
        Ok(match (called, handled) {
            (Ok(_), Some(handled)) | (Err(Error::Failed(_)), Some(handled)) => handled?,
            (Ok(outcome), None) => KeptResponse::decode(outcome.result).unwrap_or_else(|| {
                KeptResponse::of_error(&Error::Failed("the stored bytes are not a response".into()))
            }),
            (Err(error), _) => KeptResponse::of_error(&error),
        })
    }
}

fn refused(Invalid(text): Invalid) -> KeptResponse {
    KeptResponse::refusal(StatusCode::BAD_REQUEST, &text)
}

impl<S: Store, I> Layer<I> for IdempotencyLayer<S> {
    type Service = IdempotencyService<S, I>;

    fn layer(&self, inner: I) -> Self::Service {
        IdempotencyService { layer: self.clone(), inner }
    }
}

/// A service with its [`IdempotencyLayer`].
#[derive(Clone)]
pub struct IdempotencyService<S, I> {
    layer: IdempotencyLayer<S>,
    inner: I,
}

impl<S, I, B, R> Service<Request<B>> for IdempotencyService<S, I>
where
    S: Store,
    I: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    I::Future: Send,
    I::Error: Send + 'static,
    B: BodyExt + From<Bytes> + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
    R: BodyExt<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<Either<R, Full<Bytes>>>;
    type Error = I::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // `poll_ready` was called on `self.inner`, so that service is called, and its clone stays behind.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let layer = self.layer.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let key = layer.settings.key_of(&parts);
            let request = Request::from_parts(parts, body);
            let key = match key {
                Ok(Some(key)) => key,
                Ok(None) if layer.is_key_required => {
                    let text = "Please specify an idempotency key with the Idempotency-Key header.";
                    return Ok(KeptResponse::refusal(StatusCode::BAD_REQUEST, text).into_response().map(Either::Right));
                }
                Ok(None) => return Ok(inner.call(request).await?.map(Either::Left)),
                Err(invalid) => return Ok(refused(invalid).into_response().map(Either::Right)),
            };
            let (operation, request) = match layer.operation_of(request, key).await {
                Ok(made) => made,
                Err(refusal) => return Ok(refusal.into_response().map(Either::Right)),
            };
            // A separate task: if the client leaves, this future is dropped, and the work must be finished.
            let responding = tokio::spawn(async move { layer.respond(inner, request, &operation).await });
            let response = match responding.await {
                Ok(response) => response?,
                Err(error) => KeptResponse::of_error(&Error::Panic(error.to_string())),
            };
            Ok(response.into_response().map(Either::Right))
        })
    }
}
