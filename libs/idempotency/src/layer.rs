//! Requests over HTTP that may be sent any number of times: a tower layer around one's own handlers.
//!
//! ```text
//! no key                        passed through as it is, or 400 if a key is required
//! done before                   the same status, headers and body, and Idempotent-Replayed: true
//! running, or overtaken         409, Retry-After
//! other request, same key       409
//! expired, or its result lost   410
//! bad header, or a bad name     400
//! body too long                 413
//! the handler panics            500; may be retried
//! the handler answers 5xx       its answer; may be retried
//! the store is away             503, Retry-After; may be retried
//! otherwise                     the handler's answer, which is kept
//! ```

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use tower::{Layer, Service};

use crate::kept_response::Answer;
use crate::error::Error;
use crate::operation::Request as Operation;
use crate::runner::Runner;
use crate::settings::{Invalid, Settings};
use crate::store::Store;

/// How long the body of a request with a key may be, in bytes: it is kept with the operation.
const BODY_LEN_MAX: usize = 64 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Under which key a request is known, among its extensions: for handlers, as `Extension<IdempotencyKey>` in axum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(pub String);

/// Makes handlers answer a request that was sent again as they answered it first. Shape:
/// `Router::new().route("/rides", post(handler)).layer(IdempotencyLayer::new(store))`.
///
/// A handler and the note that it is done are two steps. If the process dies between them, or the handler takes longer
/// than its claim holds, it runs again when the client retries. What must not happen twice even then belongs into a
/// [phase](crate::Phase).
#[derive(Clone)]
pub struct IdempotencyLayer<S> {
    runner: Runner<S>,
    settings: Settings,
    is_key_required: bool,
    body_len_max: usize,
}

impl<S: Store> IdempotencyLayer<S> {
    /// Keeps track of requests in `store`; everything else as by default.
    pub fn new(store: S) -> Self {
        Self {
            runner: Runner::new(store),
            settings: Settings::default(),
            is_key_required: false,
            body_len_max: BODY_LEN_MAX,
        }
    }

    /// The same with `settings` over those it has: shared ones first, then for each route its own.
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

    /// How long the body of a request with a key may be, in bytes; 64 KiB if nobody says otherwise.
    #[must_use]
    pub fn body_len_max(mut self, body_len_max: usize) -> Self {
        self.body_len_max = body_len_max;
        self
    }

    /// # Errors
    /// The answer to a request that does not get to the store.
    async fn operation_of<B>(&self, request: Request<B>, key: String) -> Result<(Operation, Request<B>), Answer>
    where
        B: BodyExt + From<Bytes>,
        B::Error: Into<BoxError>,
    {
        let (mut parts, body) = request.into_parts();
        let body = match Limited::new(body, self.body_len_max).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                let text = format!("The body is longer than {} bytes.", self.body_len_max);
                return Err(Answer::refusal(StatusCode::PAYLOAD_TOO_LARGE, &text));
            }
            Err(_) => return Err(Answer::refusal(StatusCode::BAD_REQUEST, "The body broke off.")),
        };
        parts.extensions.insert(IdempotencyKey(key.clone()));
        let operation = self.settings.operation_of(key, &parts, &body).map_err(refused)?;
        Ok((operation, Request::from_parts(parts, B::from(body))))
    }

    /// Has the request answered, by `inner` or by the store.
    async fn answer<I, B, R>(
        &self,
        mut inner: I,
        request: Request<B>,
        operation: &Operation,
    ) -> Result<Answer, I::Error>
    where
        I: Service<Request<B>, Response = Response<R>>,
        R: BodyExt<Data = Bytes>,
        R::Error: Into<BoxError>,
    {
        let mut answered = None;
        let work = async || {
            let response = match inner.call(request).await {
                Ok(response) => response,
                Err(error) => {
                    answered = Some(Err(error));
                    return Err(BoxError::from("the service failed"));
                }
            };
            // Not the status of the answer: one that stands for an answer which is too long is kept, although it is a 500.
            let status = response.status();
            let answer = Answer::read(response).await?;
            let kept =
                if status.is_server_error() { Err(format!("answered {status}").into()) } else { Ok(answer.encode()) };
            answered = Some(Ok(answer));
            kept
        };
        let called = self.runner.call(operation, work).await;
        Ok(match (called, answered) {
            (Ok(_), Some(answered)) | (Err(Error::Failed(_)), Some(answered)) => answered?,
            (Ok(outcome), None) => Answer::decode(outcome.result)
                .unwrap_or_else(|| Answer::of_error(&Error::Failed("what the store has is no answer".into()))),
            (Err(error), _) => Answer::of_error(&error),
        })
    }
}

fn refused(Invalid(text): Invalid) -> Answer {
    Answer::refusal(StatusCode::BAD_REQUEST, &text)
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
        // The one that said it was ready is the one to call.
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
                    return Ok(Answer::refusal(StatusCode::BAD_REQUEST, text).into_response().map(Either::Right));
                }
                Ok(None) => return Ok(inner.call(request).await?.map(Either::Left)),
                Err(invalid) => return Ok(refused(invalid).into_response().map(Either::Right)),
            };
            let (operation, request) = match layer.operation_of(request, key).await {
                Ok(made) => made,
                Err(answer) => return Ok(answer.into_response().map(Either::Right)),
            };
            // In a task of its own: a client that leaves drops this future, and what was begun is to be finished.
            let answering = tokio::spawn(async move { layer.answer(inner, request, &operation).await });
            let answer = match answering.await {
                Ok(answer) => answer?,
                Err(error) => Answer::of_error(&Error::Panic(error.to_string())),
            };
            Ok(answer.into_response().map(Either::Right))
        })
    }
}
