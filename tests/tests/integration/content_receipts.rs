//! Receipts with strange content: one that cannot be read or delivered holds up no other.

use tests::{Process, World, scratch_folder};

use crate::content::{STRANGE_MEMBERS, execute};

/// Receipts that an earlier version has noted, as SQL: payload and user's address. They cannot be delivered.
const BAD_RECEIPTS: [&str; 9] = [
    "'[1,1,2000,\"usd\"]', 'a@example.com'",
    "'null', 'a@example.com'",
    "'{}', 'a@example.com'",
    "'{\"user_id\":1e400000,\"amount\":2000,\"currency\":\"usd\"}', 'a@example.com'",
    "'{\"user_id\":1,\"amount\":99999999999999999999,\"currency\":\"usd\"}', 'a@example.com'",
    "'{\"user_id\":1,\"amount\":2000,\"currency\":\"\\ud800\"}', 'a@example.com'",
    "(repeat('[', 9000) || repeat(']', 9000))::json, 'a@example.com'",
    "'{\"user_id\":%s,\"amount\":2000,\"currency\":\"usd\"}', E'b@example.com\\r\\nBcc: c@example.com'",
    "'{\"user_id\":%s,\"amount\":2000,\"currency\":\"usd\"}', E'\\u202eno address'",
];

#[tokio::test]
async fn no_strange_receipt_holds_up_the_others() {
    let (world, folder) = (World::new().await, scratch_folder());
    for (ride_id, receipt) in (-8..).zip(BAD_RECEIPTS) {
        let note = format!(
            "WITH receipt (data, email) AS (VALUES ({receipt})), added AS (
                 INSERT INTO users (email, stripe_customer_id) SELECT email || {ride_id}, {ride_id} FROM receipt RETURNING id)
             INSERT INTO receipts (ride_id, record_offset, data)
             SELECT {ride_id}, 1, replace(data::text, '%s', id::text)::json FROM receipt, added"
        );
        execute(&world, &note).await;
    }
    let receipt = |ride_id: i64, member: &str| {
        format!("('{{\"ride_id\":{ride_id},\"user_id\":1,\"amount\":2000,' || {member} || '}}')::json")
    };
    let stage = async |data: &str| {
        let insert = "INSERT INTO staged_log_records (object, action, data) VALUES ('receipt', 'create',";
        execute(&world, &format!("{insert} {data})")).await;
    };
    for (ride_id, members) in (1..).zip(STRANGE_MEMBERS) {
        stage(&receipt(ride_id, &format!("'\"currency\":\"usd\",' || {members}"))).await;
        for bad in ["'\"currency\":\"u\\u0000\"'", "'\"currency\":7'", "'\"amount\":1,\"currency\":\"usd\"'"] {
            stage(&receipt(100 + ride_id, bad)).await;
        }
        stage("'[100,1,2000,\"usd\"]'").await;
    }
    world.drain_streamer(&mut world.streamer()).await;
    let flags = ["receipts", "--drain", "--folder", folder.to_str().unwrap()];
    Process::start(&world, "receipts", &flags).fail(1).await;
    let sound_count = STRANGE_MEMBERS.len() as i64;
    assert_eq!(world.number("SELECT count(*) FROM dead_letters").await, 4 * sound_count);
    assert_eq!(world.number("SELECT count(*) FROM receipts WHERE ride_id > 0").await, sound_count);
    let delivered = "SELECT count(*) FILTER (WHERE (ride_id > 0) = (delivered_at IS NOT NULL)) FROM receipts";
    assert_eq!(world.number(delivered).await, sound_count + BAD_RECEIPTS.len() as i64);
    assert!((1..=sound_count).all(|ride_id| folder.join(format!("{ride_id}.eml")).exists()));
    std::fs::remove_dir_all(&folder).unwrap();
}
