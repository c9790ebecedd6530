//! Clients of a container under load: each sends its requests until their responses are final.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tests::{World, wait_until};

use crate::container_fixture::multipart;

/// The rides that manifests are about. They are few, so that many units are about one ride.
const RIDE_COUNT: i64 = 20;

/// The note of a document whose row Postgres refuses.
const REFUSED_NOTE: &str = "to be refused";

/// Has Postgres refuse some rows: those of some of the documents that are drawn.
pub async fn refuse_some_rows(world: &World) {
    let refuse = format!("ALTER TABLE manifests ADD CHECK (data ->> 'note' <> '{REFUSED_NOTE}')");
    world.client().batch_execute(&refuse).await.unwrap();
}

/// Whether a document is good, and if not, where that shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Document {
    Good,
    /// It names no ride, so it becomes no unit.
    WithoutRide,
    /// The board refuses it.
    WithoutPassengers,
    /// Postgres refuses its row, when all others have stored it.
    WithRefusedRow,
}

/// A request with its key.
pub struct Request {
    key: String,
    document: Document,
    body: Value,
    photo: Option<Vec<u8>>,
}

/// The responses that a client got to one request.
pub struct Answered {
    pub request: Request,
    /// The final status.
    pub status: u16,
    /// The unit. `None`: the request became none.
    pub uow: Option<i64>,
}

impl Request {
    pub fn draw(key: String, rng: &mut StdRng) -> Self {
        let document = match rng.random_range(0..10) {
            0 => Document::WithoutRide,
            1 => Document::WithoutPassengers,
            2 => Document::WithRefusedRow,
            _ => Document::Good,
        };
        let passengers = vec!["Ada"; rng.random_range(0..9)];
        let mut body = json!({ "ride_id": rng.random_range(0..RIDE_COUNT), "passengers": passengers, "key": key });
        let fields = body.as_object_mut().unwrap();
        match document {
            Document::Good => None,
            Document::WithoutRide => fields.remove("ride_id"),
            Document::WithoutPassengers => fields.remove("passengers"),
            Document::WithRefusedRow => fields.insert("note".to_owned(), json!(REFUSED_NOTE)),
        };
        let photo = rng.random_bool(0.5).then(|| vec![7; rng.random_range(1..200_000)]);
        Self { key, document, body, photo }
    }

    /// The final status that the request deserves.
    pub fn status(&self) -> u16 {
        match self.document {
            Document::Good => 200,
            Document::WithoutRide => 400,
            Document::WithoutPassengers | Document::WithRefusedRow => 422,
        }
    }

    /// Sends it once. Returns status and unit, or `None` if there is no whole response.
    pub async fn send(&self, client: &reqwest::Client, base: &str, wait: Duration) -> Option<(u16, Option<i64>)> {
        let request = client.post(format!("{base}/manifests")).header("idempotency-key", &self.key).timeout(wait);
        let request = match &self.photo {
            None => request.json(&self.body),
            Some(photo) => {
                let (content_type, body) = multipart(&self.body, photo);
                request.header(CONTENT_TYPE, content_type).body(body)
            }
        };
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        let body: Value = response.json().await.ok()?;
        Some((status, body["uow"].as_i64()))
    }

    /// Sends it until the response is final. A client loses patience with some requests. `base` is where the container is now.
    pub async fn send_until_final(
        self,
        client: &reqwest::Client,
        mut base: impl FnMut() -> String,
        rng: &mut StdRng,
    ) -> Answered {
        let mut units = BTreeSet::new();
        loop {
            let wait = Duration::from_millis(rng.random_range(100..8_000));
            let response = self.send(client, &base(), wait).await;
            units.extend(response.and_then(|(_, uow)| uow));
            assert!(units.len() < 2, "the key {} has the units {units:?}", self.key);
            match response {
                Some((status @ (200 | 400 | 422), uow)) => return Answered { request: self, status, uow },
                Some((status, _)) if (400..500).contains(&status) => panic!("{}: {status}", self.key),
                _ => tokio::time::sleep(Duration::from_millis(rng.random_range(5..50))).await,
            }
        }
    }
}

impl Answered {
    /// Asserts that the response was the one that the request deserves, and that it is the same now.
    pub async fn assert_kept(&self, client: &reqwest::Client, base: &str) {
        let Self { request, status, uow } = self;
        assert_eq!(*status, request.status(), "{}: {:?}", request.key, request.document);
        let mut again = None;
        // The server closes a connection when it has refused a body that it has not read.
        wait_until("there is a response", async || {
            again = request.send(client, base, Duration::from_secs(60)).await;
            again.is_some()
        })
        .await;
        assert_eq!(again, Some((*status, *uow)), "{}", request.key);
    }
}
