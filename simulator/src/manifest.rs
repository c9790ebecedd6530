//! One flight manifest of a ride.

use rand::RngExt;
use rand::rngs::StdRng;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

/// The share of manifests with a photo.
const PHOTO_RATE: f64 = 0.3;

/// The share of manifests that a destination refuses.
const REFUSED_RATE: f64 = 0.05;

/// The most passengers of a ride.
const PASSENGER_COUNT_MAX: usize = 6;

const NAMES: [&str; 8] = ["Ada", "Bea", "Cid", "Dee", "Eli", "Fay", "Gus", "Hal"];

/// The smallest picture: one white pixel, as PNG.
const PHOTO: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU\
    \0\0\0\x0aIDATx\xdac\xf8\x0f\0\x01\x01\x01\0\x1c\xb0\x8c\x99\0\0\0\0IEND\xaeB`\x82";

/// Separates the parts of a body. It never occurs in a document, which is one line.
const BOUNDARY: &str = "rocket-rides-manifest";

/// A manifest, which the container stores in all of its destinations or in none. With a key it may be sent any number of times.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// `{"ride_id", "passengers": […]}`, and any other field.
    pub document: Value,
    /// A picture, as PNG.
    pub photo: Option<Vec<u8>>,
    /// The idempotency key.
    pub key: Option<String>,
}

impl Manifest {
    /// A random manifest of this ride, with a key. Some have a photo. The board refuses a few, whose passengers are no list.
    pub fn random(ride_id: i64, rng: &mut StdRng) -> Self {
        let passenger_count = rng.random_range(1..=PASSENGER_COUNT_MAX);
        let passengers: Value = (0..passenger_count).map(|_| NAMES[rng.random_range(0..NAMES.len())]).collect();
        let passengers = if rng.random_bool(REFUSED_RATE) { json!("Ada and Bea") } else { passengers };
        Self {
            document: json!({ "ride_id": ride_id, "passengers": passengers }),
            photo: rng.random_bool(PHOTO_RATE).then(|| PHOTO.to_vec()),
            key: Some(format!("{:032x}", rng.random::<u128>())),
        }
    }

    /// The request that sends it to the container at `base_url`: JSON, or multipart if it has a photo.
    pub fn request(&self, client: &Client, base_url: &str) -> RequestBuilder {
        let request = client.post(format!("{base_url}/manifests"));
        let request = match &self.photo {
            None => request.json(&self.document),
            Some(photo) => request
                .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
                .body(self.multipart(photo)),
        };
        match &self.key {
            Some(key) => request.header("idempotency-key", key),
            None => request,
        }
    }

    fn multipart(&self, photo: &[u8]) -> Vec<u8> {
        let part = "content-disposition: form-data; name=";
        let head = format!(
            "--{BOUNDARY}\r\n{part}\"manifest\"\r\ncontent-type: application/json\r\n\r\n{}\r\n\
             --{BOUNDARY}\r\n{part}\"photo\"; filename=\"photo.png\"\r\ncontent-type: image/png\r\n\r\n",
            self.document
        );
        [head.as_bytes(), photo, format!("\r\n--{BOUNDARY}--\r\n").as_bytes()].concat()
    }
}
