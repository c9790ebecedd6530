//! A server between a container and the receiver of its notices, which loses responses and delays notices.

use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tests::wait_until;
use tokio::sync::Semaphore;

/// The treatment of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// The receiver is told, and its response is passed on.
    Pass,
    /// The receiver is told, and the response is 503.
    Lose,
    /// The receiver is told, and there is no response.
    Hang,
    /// The notice waits until [`Relay::release`]. Then it is treated as `Pass`, also if its sender is gone.
    Late,
    /// The receiver is not told, and the response has this status.
    Refuse(u16),
}

/// A notice as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `store` or `undo`.
    pub action: String,
    pub attempt: i64,
    headers: HeaderMap,
    body: Bytes,
}

#[derive(Debug)]
struct Plan {
    store: Treatment,
    undo: Treatment,
    seen: Vec<Seen>,
    /// Late notices that the receiver has responded to.
    late_count: usize,
}

/// The server. It ends with the test.
#[derive(Clone)]
pub struct Relay {
    plan: Arc<Mutex<Plan>>,
    receiver: String,
    client: reqwest::Client,
    released: Arc<Semaphore>,
    pub url: String,
}

impl Relay {
    /// A relay to the receiver at this port. It treats stores and undos in these ways.
    pub async fn start(receiver_port: u16, store: Treatment, undo: Treatment) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Self {
            plan: Arc::new(Mutex::new(Plan { store, undo, seen: Vec::new(), late_count: 0 })),
            receiver: format!("http://127.0.0.1:{receiver_port}/notices"),
            client: reqwest::Client::new(),
            released: Arc::new(Semaphore::new(0)),
            url: format!("http://{}/notices", listener.local_addr().unwrap()),
        };
        let router = axum::Router::new().route("/notices", axum::routing::post(relay_notice)).with_state(relay.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        relay
    }

    /// Treats later notices in these ways.
    pub fn treat(&self, store: Treatment, undo: Treatment) {
        let mut plan = self.plan.lock().unwrap();
        (plan.store, plan.undo) = (store, undo);
    }

    /// Lets the first notice that is late reach the receiver, and waits until it has responded.
    pub async fn release(&self) {
        let late_count = || self.plan.lock().unwrap().late_count;
        let before = late_count();
        self.released.add_permits(1);
        wait_until("the receiver has the late notice", async || late_count() > before).await;
    }

    async fn tell_late(self, notice: Seen) -> (StatusCode, Bytes) {
        self.released.acquire().await.unwrap().forget();
        let told = self.tell(&notice).await;
        self.plan.lock().unwrap().late_count += 1;
        told
    }

    /// The notices of this action, in the order in which they arrived.
    pub fn seen(&self, action: &str) -> Vec<Seen> {
        let plan = self.plan.lock().unwrap();
        plan.seen.iter().filter(|seen| seen.action == action).cloned().collect()
    }

    /// Tells the receiver. Returns its response.
    pub async fn tell(&self, notice: &Seen) -> (StatusCode, Bytes) {
        let mut request = self.client.post(&self.receiver).body(notice.body.clone());
        for (name, value) in &notice.headers {
            if name.as_str().starts_with("webhook-") || name == "content-type" {
                request = request.header(name, value);
            }
        }
        let response = request.send().await.unwrap();
        (response.status(), response.bytes().await.unwrap())
    }
}

async fn relay_notice(State(relay): State<Relay>, headers: HeaderMap, body: Bytes) -> Response {
    let notice: Value = serde_json::from_slice(&body).unwrap();
    let action = notice["type"].as_str().unwrap().rsplit('.').next().unwrap().to_owned();
    let seen = Seen { action, attempt: notice["data"]["attempt"].as_i64().unwrap(), headers, body };
    let treatment = {
        let plan = relay.plan.lock().unwrap();
        if seen.action == "undo" { plan.undo } else { plan.store }
    };
    let told = match treatment {
        Treatment::Refuse(_) => None,
        Treatment::Late => {
            relay.plan.lock().unwrap().seen.push(seen.clone());
            // In a task of its own: this one ends if the sender closes the connection.
            return tokio::spawn(relay.clone().tell_late(seen)).await.unwrap().into_response();
        }
        _ => Some(relay.tell(&seen).await),
    };
    // The receiver knows it by now.
    relay.plan.lock().unwrap().seen.push(seen);
    match (treatment, told) {
        (Treatment::Pass, Some(told)) => told.into_response(),
        (Treatment::Refuse(status), _) => StatusCode::from_u16(status).unwrap().into_response(),
        (Treatment::Hang, _) => std::future::pending().await,
        _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
