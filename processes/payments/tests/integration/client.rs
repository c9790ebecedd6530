//! The client: the requests that it sends, and its results for every kind of response, for silence and for a closed port.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use payments::{ChargeError, Stripe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, crypto::ring};

use crate::world::{ANSWER_WAIT, args, fare};

/// A server that always sends the same response, and the requests that it received.
struct Parrot {
    base: String,
    heard: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
}

impl Parrot {
    async fn saying(status: u16, body: impl Into<String>) -> Self {
        Self::with_headers(status, body, HeaderMap::new()).await
    }

    /// A server with advice on retries, and a name for each request.
    async fn advising(status: u16, body: impl Into<String>, should_retry: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert("stripe-should-retry", should_retry.parse().unwrap());
        headers.insert("request-id", "req_1".parse().unwrap());
        Self::with_headers(status, body, headers).await
    }

    async fn with_headers(status: u16, body: impl Into<String>, said: HeaderMap) -> Self {
        let (status, body, heard) = (StatusCode::from_u16(status).unwrap(), body.into(), Arc::default());
        let router = Router::new()
            .fallback(async move |State(heard): State<Arc<Mutex<Vec<_>>>>, headers: HeaderMap, form: Bytes| {
                heard.lock().unwrap().push((headers, form));
                (status, said.clone(), body.clone())
            })
            .with_state(Arc::clone(&heard));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { base, heard }
    }

    fn stripe(&self) -> Stripe {
        Stripe::with_answer_wait(&args(&self.base), ANSWER_WAIT).unwrap()
    }
}

#[tokio::test]
async fn a_charge_is_asked_for_as_stripe_wants_it() {
    let parrot =
        Parrot::saying(200, "{\"id\":\"ch_1\",\"object\":\"charge\",\"status\":\"succeeded\",\"paid\":true}").await;
    assert_eq!(parrot.stripe().charge(&fare(), "ride-1").await.unwrap().id, "ch_1");
    assert_eq!(parrot.stripe().create_customer("a@b.c", "tok_visa", "a").await, Ok("ch_1".to_owned()));
    let heard = parrot.heard.lock().unwrap();
    let (headers, form) = &heard[0];
    let fields = "amount=2000&currency=usd&customer=cus_good&description=Charge+for+ride+1";
    assert_eq!(&form[..], format!("{fields}&metadata%5Bcharge_key%5D=key-of-ride-1").as_bytes());
    assert_eq!(headers["authorization"], "Bearer sk_test_any");
    assert_eq!(headers["idempotency-key"], "ride-1");
    assert_eq!(headers["stripe-version"], "2024-06-20");
    assert_eq!(headers["content-type"], "application/x-www-form-urlencoded");
    let (headers, form) = &heard[1];
    assert_eq!(
        (&form[..], &headers["idempotency-key"]),
        (&b"email=a%40b.c&source=tok_visa"[..], &"a".parse().unwrap())
    );
}

fn declined(message: &str) -> ChargeError {
    ChargeError::Declined { message: message.to_owned() }
}

fn refused(message: &str) -> ChargeError {
    ChargeError::Refused { message: message.to_owned() }
}

fn unavailable(message: &str) -> ChargeError {
    ChargeError::Unavailable { message: message.to_owned() }
}

fn spent(message: &str) -> ChargeError {
    ChargeError::Spent { message: message.to_owned() }
}

fn busy(message: &str) -> ChargeError {
    ChargeError::Busy { message: message.to_owned() }
}

fn error(kind: &str) -> String {
    format!("{{\"error\":{{\"type\":\"{kind}\",\"message\":\"m\",\"code\":null}}}}")
}

#[tokio::test]
async fn every_answer_is_a_paid_charge_or_an_error_that_says_what_to_do() {
    let pending = || ChargeError::Pending { charge_id: "ch_1".to_owned() };
    let charge = |fields: &str| format!("{{\"id\":\"ch_1\"{fields}}}");
    let answers = [
        (402, error("card_error"), declined("m")),
        (400, error("card_error"), declined("m")),
        (402, error("invalid_request_error"), unavailable("m")),
        (402, error("invalid_request_error").replace("null", "\"card_declined\""), declined("m")),
        (402, "{\"error\":{}}".to_owned(), unavailable("HTTP 402 Payment Required")),
        (400, error("invalid_request_error"), refused("m")),
        (400, error("idempotency_error"), spent("m")),
        (401, error("invalid_request_error"), refused("m")),
        (403, error("invalid_request_error"), refused("m")),
        (404, error("invalid_request_error"), refused("m")),
        (409, error("idempotency_error"), busy("m")),
        (429, error("rate_limit_error"), unavailable("m")),
        (500, error("api_error"), unavailable("m")),
        (503, error("card_error"), unavailable("m")),
        (302, error("api_error"), unavailable("m")),
        (402, "pay the proxy".to_owned(), unavailable("HTTP 402 Payment Required, and not in Stripe's words")),
        (200, "{\"id\":".to_owned(), unavailable("HTTP 200 OK, and not in Stripe's words")),
        (200, "{}".to_owned(), unavailable("HTTP 200 OK, and not in Stripe's words")),
        // A charge that does not say that it is paid is not.
        (200, charge(""), pending()),
        (200, charge(",\"status\":\"pending\",\"paid\":false"), pending()),
        (200, charge(",\"status\":\"succeeded\",\"paid\":false"), pending()),
        (200, charge(",\"status\":\"succeeded\",\"paid\":true,\"captured\":false"), pending()),
        (200, charge(",\"status\":\"failed\",\"paid\":false,\"failure_message\":\"m\""), declined("m")),
        (200, charge(",\"status\":\"failed\""), declined("The charge failed.")),
    ];
    for (status, body, expected) in answers {
        let stripe = Parrot::saying(status, body.as_str()).await.stripe();
        assert_eq!(stripe.charge(&fare(), "ride-1").await, Err(expected), "{status} {body}");
    }
}

#[tokio::test]
async fn the_advice_of_stripe_counts_more_than_the_status() {
    let answers = [
        (400, "true", error("invalid_request_error"), unavailable("m (request req_1)")),
        (429, "false", error("rate_limit_error"), refused("m (request req_1)")),
        (409, "true", error("lock_timeout"), busy("m (request req_1)")),
        (409, "false", error("lock_timeout"), refused("m (request req_1)")),
        // The charge may have been made, and every retry gets the same response.
        (500, "false", error("api_error"), spent("m (request req_1)")),
        (503, "true", error("api_error"), unavailable("m (request req_1)")),
        (402, "false", error("card_error"), declined("m")),
        (400, "true", error("idempotency_error"), spent("m (request req_1)")),
        (500, "perhaps", error("api_error"), unavailable("m (request req_1)")),
    ];
    for (status, advice, body, expected) in answers {
        let stripe = Parrot::advising(status, body.as_str(), advice).await.stripe();
        assert_eq!(stripe.charge(&fare(), "ride-1").await, Err(expected), "{status} {advice} {body}");
    }
}

async fn unavailable_from(base: &str) -> String {
    let stripe = Stripe::with_answer_wait(&args(base), ANSWER_WAIT).unwrap();
    match stripe.charge(&fare(), "ride-1").await {
        Err(ChargeError::Unavailable { message }) => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let parrot = Parrot::saying(200, format!("{{\"id\":\"{}\"}}", "x".repeat(3_000_000))).await;
    let message = unavailable_from(&parrot.base).await;
    assert!(message.contains("length limit exceeded"), "{message}");
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let message = unavailable_from(&base).await;
    assert!(message.contains(&base) && message.contains("refused"), "{message}");
    assert!(!message.contains("sk_test"), "{message}");
}

#[tokio::test]
async fn silence_is_unavailable_when_the_time_is_over() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let stripe = Stripe::with_answer_wait(&args(&base), Duration::from_millis(100)).unwrap();
    let told = stripe.charge(&fare(), "ride-1").await;
    assert_eq!(told, Err(ChargeError::Unavailable { message: format!("no answer from {base} within 100ms") }));
}

#[tokio::test]
async fn a_connection_that_breaks_within_the_answer_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 4096]).await;
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"id\":\"ch_1\"").await;
        }
    });
    let message = unavailable_from(&base).await;
    assert!(message.starts_with("reading from"), "{message}");
}

#[tokio::test]
async fn a_server_that_cannot_prove_who_it_is_gets_no_key() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let serving = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            assert!(acceptor.accept(socket).await.is_err(), "the client believed it");
        }
    });
    let message = unavailable_from(&base).await;
    assert!(message.contains("invalid peer certificate"), "{message}");
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled(), "the client believed it");
}

#[tokio::test]
async fn without_a_key_the_client_says_what_to_set() {
    for key in [None, Some(String::new())] {
        let mut args = args("https://api.stripe.com");
        args.stripe_api_key = key;
        let complaint = Stripe::new(&args).err().unwrap().to_string();
        assert!(complaint.starts_with("need STRIPE_API_KEY: set it"), "{complaint}");
    }
}

#[tokio::test]
async fn a_charge_without_an_idempotency_key_is_not_sent() {
    let parrot = Parrot::saying(200, "{\"id\":\"ch_1\"}").await;
    for key in [String::new(), "k".repeat(256), "ride\n1".to_owned()] {
        let told = parrot.stripe().charge(&fare(), &key).await;
        assert!(matches!(told, Err(ChargeError::Refused { .. })), "{told:?}");
    }
    assert!(parrot.heard.lock().unwrap().is_empty());
}
