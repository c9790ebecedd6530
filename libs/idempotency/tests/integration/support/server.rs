//! A server for one test on a real socket, and assertions about its responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::post;
use bytes::Bytes;
use idempotency::{IdempotencyLayer, Store};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;
use tokio::net::TcpListener;

use super::World;

/// A server for one test, and how often its handler ran.
pub struct Server {
    pub address: String,
    pub client: Client,
    ran: Arc<AtomicU32>,
}

impl Server {
    /// Serves on a free port.
    pub async fn of(router: Router, ran: Arc<AtomicU32>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { address, client, ran }
    }

    /// `POST` requests go through the layer to this handler.
    pub async fn with<S: Store, F, R>(layer: IdempotencyLayer<S>, handler: F) -> Self
    where
        F: Fn(u32, Bytes) -> R + Clone + Send + Sync + 'static,
        R: Future<Output: IntoResponse> + Send,
    {
        let ran = Arc::new(AtomicU32::new(0));
        let count = ran.clone();
        let handler = async move |body: Bytes| handler(count.fetch_add(1, Ordering::SeqCst) + 1, body).await;
        let router = Router::new().route("/", post(handler.clone())).route("/{*path}", post(handler)).layer(layer);
        Self::of(router, ran).await
    }

    /// A server whose handler returns how often it has run.
    pub async fn counting(world: &impl World) -> Self {
        Self::with(IdempotencyLayer::new(world.store()), async |nth, _| format!("ran {nth}")).await
    }

    /// `POST` under a key.
    pub fn post(&self, path: &str, key: &str) -> RequestBuilder {
        self.client.post(format!("http://{}{path}", self.address)).header("idempotency-key", key)
    }

    /// How often the handler ran.
    pub fn ran(&self) -> u32 {
        self.ran.load(Ordering::SeqCst)
    }
}

pub async fn send(request: RequestBuilder) -> Response {
    request.send().await.unwrap()
}

pub fn is_replayed(response: &Response) -> bool {
    response.headers().get("idempotent-replayed").is_some_and(|value| value == "true")
}

pub async fn assert_text(response: Response, status: u16, text: &str) {
    assert_eq!(response.status(), status);
    assert_eq!(response.text().await.unwrap(), text);
}

/// A refusal states its reason, in JSON.
pub async fn assert_refused(response: Response, status: u16, text: &str) {
    assert_eq!((response.status().as_u16(), is_replayed(&response)), (status, false));
    assert_eq!(response.headers()["content-type"], "application/json");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body, serde_json::json!({ "error": text }));
}

pub fn retry_after_s(response: &Response) -> u64 {
    response.headers()["retry-after"].to_str().unwrap().parse().unwrap()
}
