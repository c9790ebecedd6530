//! Idempotency keys, declined charges, errors and lists.

use serde_json::Value;

use crate::world::{Folder, Server};

const FARE: &str = "amount=2000&currency=usd&customer=cus_good&description=Charge+for+ride+1";

#[tokio::test]
async fn a_request_under_its_key_charges_once_and_is_answered_byte_for_byte_again() {
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    let first = server.http.post("/v1/charges", Some("ride-1"), FARE).await;
    assert_eq!((first.status, first.replayed), (200, false));
    let charge = first.json();
    assert!(charge["id"].as_str().unwrap().starts_with("ch_"));
    assert_eq!((&charge["amount"], &charge["paid"]), (&Value::from(2000), &Value::from(true)));
    assert_eq!(charge["description"], "Charge for ride 1");

    // The same fields in another order are the same request.
    let shuffled = "customer=cus_good&description=Charge+for+ride+1&currency=usd&amount=2000";
    for form in [FARE, shuffled] {
        let again = server.http.post("/v1/charges", Some("ride-1"), form).await;
        assert_eq!((again.status, again.replayed, &again.body), (200, true, &first.body));
    }
    assert_eq!(server.http.charges().await, [charge]);
    server.stop().await;
}

#[tokio::test]
async fn another_request_under_a_key_that_is_taken_is_refused() {
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    assert_eq!(server.http.post("/v1/charges", Some("ride-1"), FARE).await.status, 200);
    let other = FARE.replace("2000", "2001");
    let requests = [("/v1/charges", other.as_str()), ("/v1/customers", "email=a@example.com&source=tok_visa")];
    for (path, form) in requests {
        let refused = server.http.post(path, Some("ride-1"), form).await;
        assert_eq!((refused.status, &refused.json()["error"]["type"]), (400, &Value::from("idempotency_error")));
    }
    assert_eq!(server.http.charges().await.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn requests_under_one_key_at_once_make_one_charge() {
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    // The first request takes long enough for the others to arrive meanwhile.
    server.http.plan("kind=slow&ms=2000").await;
    let requests: Vec<_> = (0..20)
        .map(|_| {
            let http = server.http.clone();
            tokio::spawn(async move { http.post("/v1/charges", Some("ride-1"), FARE).await })
        })
        .collect();
    let (mut made_count, mut in_use_count) = (0, 0);
    for request in requests {
        let said = request.await.unwrap();
        match (said.status, said.replayed) {
            (200, false) => made_count += 1,
            (200, true) => {}
            (409, false) => {
                assert_eq!(said.json()["error"]["code"], "idempotency_key_in_use");
                in_use_count += 1;
            }
            _ => panic!("{said:?}"),
        }
    }
    assert_eq!(made_count, 1);
    assert!(in_use_count > 0, "nobody met the request in hand");
    assert_eq!(server.http.charges().await.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_decline_is_kept_under_its_key() {
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    let fare = FARE.replace("cus_good", "cus_bad");
    let first = server.http.post("/v1/charges", Some("ride-1"), &fare).await;
    assert_eq!((first.status, first.replayed), (402, false));
    let error = &first.json()["error"];
    assert_eq!((&error["type"], &error["code"]), (&Value::from("card_error"), &Value::from("card_declined")));
    assert_eq!(error["message"], "Your card was declined.");

    let again = server.http.post("/v1/charges", Some("ride-1"), &fare).await;
    assert_eq!((again.status, again.replayed, &again.body), (402, true, &first.body));
    let charges = server.http.charges().await;
    assert_eq!((charges.len(), &charges[0]["paid"], &charges[0]["id"]), (1, &Value::from(false), &error["charge"]));
    server.stop().await;
}

#[tokio::test]
async fn customers_pay_with_the_source_they_were_made_with() {
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    for (source, status) in [("tok_visa", 200), ("tok_chargeCustomerFail", 402)] {
        let form = format!("email=a%40example.com&source={source}");
        let made = server.http.post("/v1/customers", Some(source), &form).await;
        assert_eq!(made.json()["email"], "a@example.com");
        assert_eq!(server.http.post("/v1/customers", Some(source), &form).await.body, made.body);
        let fare = FARE.replace("cus_good", made.json()["id"].as_str().unwrap());
        assert_eq!(server.http.post("/v1/charges", None, &fare).await.status, status, "{source}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_said_as_stripe_says_it_and_leaves_the_key_free() {
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    let wrong = [
        (FARE.replace("amount=2000&", ""), "parameter_missing", "Missing required param: amount."),
        (FARE.replace("cus_good", ""), "parameter_missing", "Missing required param: customer."),
        (FARE.replace("2000", "20.00"), "parameter_invalid_integer", "Invalid integer: 20.00"),
        (FARE.replace("2000", "49"), "amount_too_small", "Amount must be at least 50 cents."),
        (FARE.replace("2000", "100000000"), "amount_too_large", "Amount must be no more than 999,999.99."),
        (FARE.replace("usd", "dollar"), "", "Invalid currency: dollar."),
        (FARE.replace("cus_good", "cus_nobody"), "resource_missing", "No such customer: 'cus_nobody'"),
        (format!("{FARE}&tip=5"), "parameter_unknown", "Received unknown parameter: tip"),
    ];
    for (form, code, message) in wrong {
        let said = server.http.post("/v1/charges", Some("ride-1"), &form).await;
        let error = &said.json()["error"];
        assert_eq!((said.status, &error["type"]), (400, &Value::from("invalid_request_error")), "{form}");
        assert_eq!((error["code"].as_str().unwrap_or(""), &error["message"]), (code, &Value::from(message)));
    }
    assert_eq!(server.http.post("/v1/charges", Some(&"k".repeat(256)), FARE).await.status, 400);
    assert_eq!(server.http.post("/v1/charges", None, &"x".repeat(100_000)).await.status, 413);
    assert_eq!(server.http.post("/v1/customers", None, "email=a&source=tok_gold").await.status, 400);
    assert_eq!(server.http.post("/v1/refunds", None, "").await.status, 404);
    assert_eq!(server.http.post("/v1/charges", Some("ride-1"), FARE).await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn nobody_charges_without_a_test_key() {
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    let client = reqwest::Client::new();
    for header in ["", "Bearer sk_test_", "Bearer sk_live_x", "Bearer pk_test_x", "Basic c2tfdGVzdF94Og=="] {
        let url = format!("{}/v1/charges", server.http.base);
        let response = client.post(url).header("authorization", header).body(FARE).send().await.unwrap();
        assert_eq!(response.status(), 401, "{header:?}");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
    let health = client.get(format!("{}/healthz", server.http.base)).send().await.unwrap();
    assert_eq!(health.status(), 200);
    server.stop().await;
}

#[tokio::test]
async fn charges_are_listed_newest_first_page_by_page() {
    let folder = Folder::new();
    let server = Server::start(&folder).await;
    let empty = server.http.get("/v1/charges").await.json();
    assert_eq!((&empty["has_more"], empty["data"].as_array().unwrap().len()), (&Value::from(false), 0));
    let mut ids = Vec::new();
    for number in 0..12 {
        let made = server.http.post("/v1/charges", Some(&format!("ride-{number}")), FARE).await.json();
        ids.insert(0, made["id"].as_str().unwrap().to_owned());
    }
    let page = async |query: &str| {
        let page = server.http.get(&format!("/v1/charges{query}")).await.json();
        let ids: Vec<_> = page["data"].as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap().into()).collect();
        (ids, page["has_more"].as_bool().unwrap())
    };
    assert_eq!(page("").await, (ids[..10].to_vec(), true));
    assert_eq!(page("?limit=12").await, (ids.clone(), false));
    assert_eq!(page(&format!("?limit=5&starting_after={}", ids[4])).await, (ids[5..10].to_vec(), true));
    assert_eq!(page(&format!("?limit=5&starting_after={}", ids[9])).await, (ids[10..].to_vec(), false));
    for bad in ["?limit=0", "?limit=101", "?limit=x", "?starting_after=ch_nobody"] {
        assert_eq!(server.http.get(&format!("/v1/charges{bad}")).await.status, 400, "{bad}");
    }
    assert_eq!(server.http.get(&format!("/v1/charges/{}", ids[3])).await.json()["id"], ids[3]);
    assert_eq!(server.http.get("/v1/charges/ch_nobody").await.status, 404);
    server.stop().await;
}
