//! The description of the api is true, and its page loads nothing from other servers.

use std::time::Duration;

use reqwest::Client;
use serde_json::Value;
use tests::{Payments, Process, World, python_program};
use tokio::process::Command;

use crate::manners::start_api;

/// The folder with the settings of schemathesis.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schemathesis");

/// How long schemathesis may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

#[tokio::test]
async fn the_api_does_what_its_description_says() {
    let (world, payments) = (World::new().await, Payments::start().await);
    let (api, base) = start_api(&world, &payments.flags()).await;
    let mut command = Command::new(python_program("schemathesis"));
    command.current_dir(FOLDER).args(["--config-file", "schemathesis.toml", "run", "--no-color"]);
    command.arg(format!("{base}/openapi.json"));
    let output = Process::spawn("schemathesis", command).succeed_within(PATIENCE).await;
    assert!(output.contains("Tested: 13") && output.contains("3 covered / 3 selected"), "{output}");
    assert!(!output.contains("errored"), "{output}");

    // Many requests were accepted.
    let guests = world.number("SELECT count(*) FROM rides WHERE id NOT IN (SELECT ride_id FROM bookings)").await;
    let booked = world.number("SELECT count(*) FROM bookings WHERE stripe_charge_id IS NOT NULL").await;
    let declined = world.number("SELECT count(*) FROM audit_records WHERE action = 'charge.declined'").await;
    assert!(guests > 10 && booked > 10 && declined > 3, "{guests} guests, {booked} booked, {declined} declined");
    assert_eq!(payments.charges().await.len() as i64, booked);
    let accepted = world.number("SELECT count(*) FROM wallet_events WHERE accepted").await;
    let rejected = world.number("SELECT count(*) FROM wallet_events WHERE NOT accepted").await;
    assert!(accepted > 10 && rejected > 10, "{accepted} accepted, {rejected} rejected");
    assert!(!api.output().contains("ERROR"), "{}", api.output());
    api.stop().await;
}

#[tokio::test]
async fn the_description_and_its_page_are_served_and_load_nothing_from_elsewhere() {
    let world = World::new().await;
    let (_api, base) = start_api(&world, &[]).await;
    let client = Client::new();
    let get = async |path: &str| {
        let response = client.get(format!("{base}{path}")).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response
    };
    let description: Value = get("/openapi.json").await.json().await.unwrap();
    assert_eq!(description["openapi"], "3.1.0");

    // The page's policy allows the browser to send requests to this api only.
    let page = get("/docs").await;
    assert_eq!(page.url().path(), "/docs/");
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
    assert!(!policy.contains("http") && !policy.contains('*') && !policy.contains("unsafe-eval"), "{policy}");

    let page = page.text().await.unwrap();
    let links = page.split([' ', '>']).filter_map(|word| word.strip_prefix("href=").or(word.strip_prefix("src=")));
    let links: Vec<&str> = links.map(|link| link.trim_matches('"')).collect();
    assert!(links.len() >= 7 && links.iter().any(|link| link.contains("favicon")), "{links:?}");
    for link in links {
        assert!(!link.contains("//"), "{link}");
        let file = get(&format!("/docs/{}", link.trim_start_matches("./"))).await;
        assert_eq!(file.headers()["content-security-policy"], policy.as_str(), "{link}");
        assert!(!file.bytes().await.unwrap().is_empty(), "{link}");
    }
    let script = get("/docs/swagger-initializer.js").await.text().await.unwrap();
    assert!(script.contains(r#""../openapi.json""#) && !script.contains("http"), "{script}");
    assert!(script.contains(r#""validatorUrl": "none""#), "{script}");
    let missing = client.get(format!("{base}/docs/nothing.js")).send().await.unwrap();
    assert_eq!(
        (missing.status().as_u16(), missing.json::<Value>().await.unwrap()["code"].clone()),
        (404, "path_unknown".into())
    );
}
