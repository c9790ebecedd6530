//! The client of Stripe against an independent server: localstripe.
//!
//! These tests show that requests and responses have the shape that an independent implementation of Stripe expects. They prove
//! nothing about idempotency keys, which localstripe 1.15 ignores.

use std::process::Stdio;
use std::time::{Duration, Instant};

use payments::{ChargeError, ChargeForm, Stripe, StripeArgs};
use serde_json::Value;
use tests::{World, python_program};
use tokio::process::{Child, Command};

use crate::api::Api;

/// How long Python may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A good card, and a card that a customer can add and that is declined when it is charged.
const GOOD_CARD: &str = "4242424242424242";
const BAD_CARD: &str = "4000000000000341";

struct LocalStripe {
    /// Killed when the test ends.
    _child: Child,
    base: String,
    client: reqwest::Client,
}

impl LocalStripe {
    async fn start() -> Self {
        let program = python_program("localstripe");
        // localstripe cannot choose a free port.
        let port = tests::free_port();
        let mut command = Command::new(&program);
        command.args(["--from-scratch", "--port", &port.to_string()]).kill_on_drop(true);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        let (base, client) = (format!("http://127.0.0.1:{port}"), reqwest::Client::new());
        let deadline = Instant::now() + PATIENCE;
        while client.get(format!("{base}/v1/charges")).send().await.is_err() {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{} ended at once ({ended:?}): is it for this Python?", program.display());
            assert!(Instant::now() < deadline, "{} does not answer", program.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { _child: child, base, client }
    }

    fn stripe(&self, key: &str) -> Stripe {
        let args = StripeArgs { stripe_api_base: self.base.clone(), stripe_api_key: Some(key.to_owned()) };
        Stripe::new(&args).unwrap()
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> Value {
        request.header("authorization", "Bearer sk_test_any").send().await.unwrap().json().await.unwrap()
    }

    /// The token of a card. localstripe has no ready tokens like Stripe's `tok_visa`.
    async fn token(&self, card: &str) -> String {
        let form = format!("card[number]={card}&card[exp_month]=12&card[exp_year]=2099&card[cvc]=123");
        let request = self.client.post(format!("{}/v1/tokens", self.base)).body(form);
        let token = self.ask(request.header("content-type", "application/x-www-form-urlencoded")).await;
        token["id"].as_str().unwrap_or_else(|| panic!("no token: {token}")).to_owned()
    }
}

fn fare(customer: &str, charge_key: &str) -> ChargeForm {
    ChargeForm::from([
        ("amount", "2000"),
        ("currency", "usd"),
        ("customer", customer),
        ("description", "Charge for ride 1 – ü & ="),
        ("metadata[charge_key]", charge_key),
    ])
}

#[tokio::test]
async fn a_stripe_server_of_others_charges_and_declines_what_the_client_asks() {
    let server = LocalStripe::start().await;
    let stripe = server.stripe("sk_test_any");

    let good = stripe.create_customer("user@example.com", &server.token(GOOD_CARD).await, "user").await.unwrap();
    assert!(good.starts_with("cus_"), "{good}");
    let made = stripe.charge(&fare(&good, "ride-1"), "ride-1").await.unwrap();
    let id = made.id.clone();
    let charge = server.ask(server.client.get(format!("{}/v1/charges/{id}", server.base))).await;
    assert_eq!((&charge["amount"], &charge["currency"]), (&Value::from(2000), &Value::from("usd")));
    assert_eq!((&charge["customer"], &charge["paid"]), (&Value::from(good.as_str()), &Value::from(true)));
    assert_eq!(charge["description"], "Charge for ride 1 – ü & =");
    assert_eq!(stripe.find(&fare(&good, "ride-1"), 0).await, Ok(Some(made.clone())), "it is found by its metadata");
    assert_eq!(stripe.find(&fare(&good, "ride-0"), 0).await, Ok(None));
    assert_eq!(stripe.show(&id).await, Ok(Some(made)));

    let bad =
        stripe.create_customer("user-bad-source@example.com", &server.token(BAD_CARD).await, "bad").await.unwrap();
    let told = stripe.charge(&fare(&bad, "ride-2"), "ride-2").await;
    assert_eq!(told, Err(ChargeError::Declined { message: "Your card was declined.".to_owned() }));

    let told = stripe.charge(&fare("cus_nobody", "ride-3"), "ride-3").await;
    assert_eq!(told, Err(ChargeError::Refused { message: "Not Found".to_owned() }));
    let told = server.stripe("no_key").charge(&fare("cus_nobody", "ride-4"), "ride-4").await;
    assert_eq!(told, Err(ChargeError::Refused { message: "Unauthorized".to_owned() }));
}

#[tokio::test]
async fn a_ride_is_booked_with_a_stripe_server_of_others() {
    let (world, server) = (World::new().await, LocalStripe::start().await);
    let stripe = server.stripe("sk_test_any");
    for (user, card) in [(1, GOOD_CARD), (2, BAD_CARD)] {
        let customer = stripe.create_customer("someone@example.com", &server.token(card).await, "key").await.unwrap();
        let update = "UPDATE users SET stripe_customer_id = $2 WHERE id = $1";
        world.client().execute(update, &[&i64::from(user), &customer]).await.unwrap();
    }
    let api = Api::start_with(&world, stripe).await;
    let book = async |email: &str| {
        let request = server.client.post(api.url("/rides")).header("authorization", email);
        let request = request.header("idempotency-key", "a-key-of-twenty-or-more-characters");
        let body = "origin_lat=0&origin_lon=0&target_lat=0&target_lon=1";
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!([book("user@example.com").await, book("user@example.com").await], [201, 201]);
    assert_eq!([book("user-bad-source@example.com").await, book("user-bad-source@example.com").await], [402, 402]);
    let charges = server.ask(server.client.get(format!("{}/v1/charges", server.base))).await;
    let paid = charges["data"].as_array().unwrap().iter().filter(|charge| charge["paid"] == true);
    assert_eq!(paid.count(), 1, "{charges}");
    assert_eq!(world.number("SELECT count(*) FROM bookings WHERE stripe_charge_id LIKE 'ch_%'").await, 1);
}
