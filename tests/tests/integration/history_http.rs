//! `GET /history` over real HTTP: pages, filters, and holes, which are told and never read over. history_live.rs reads the
//! same as events.

use serde_json::{Value, json};
use tests::World;

use crate::api::Api;

/// The records `first` … `last`, as a consumer archives them: the rest of a row is the same for each.
pub async fn archive(world: &World, first: i64, last: i64) {
    archive_as(world, first, last, "'ride'", "'{}'").await;
}

/// As [`archive`], with SQL expressions over the offset `n`.
async fn archive_as(world: &World, first: i64, last: i64, object: &str, data: &str) {
    let insert = format!(
        "INSERT INTO history (partition, record_offset, object, action, data, staged_at)
         SELECT 0, n, {object}, 'create', {data}, now() FROM generate_series({first}, {last}) AS n"
    );
    world.client().batch_execute(&insert).await.unwrap();
}

/// A world whose history has parts of `part_len` offsets for the records up to `last`.
pub async fn world_with_parts(part_len: i64, last: i64) -> World {
    make_parts(World::new().await, part_len, last).await
}

async fn make_parts(world: World, part_len: i64, last: i64) -> World {
    let make = format!(
        "CREATE OR REPLACE FUNCTION history_part_len() RETURNS BIGINT LANGUAGE sql IMMUTABLE AS 'SELECT {part_len}::bigint';
         INSERT INTO log_batches (partition, first_offset, record_count, snapshot, token)
         VALUES (0, 1, {last}, pg_current_snapshot(), 1);
         SELECT make_history_parts(0, 1, {last});"
    );
    world.client().batch_execute(&make).await.unwrap();
    world
}

/// The offsets of a page, and its `next_after`.
fn offsets(page: &Value) -> (Vec<i64>, i64) {
    let records = page["records"].as_array().unwrap();
    (records.iter().map(|record| record["offset"].as_i64().unwrap()).collect(), page["next_after"].as_i64().unwrap())
}

/// Reads from offset 1 to the end. Returns the offsets of the records and the ranges that the api called missing.
async fn read_all(api: &Api, query: &str) -> (Vec<i64>, Vec<(i64, i64)>) {
    let (mut all, mut holes, mut after) = (Vec::new(), Vec::new(), 0);
    loop {
        let (status, page) = api.get(&format!("/history?after={after}&{query}")).await;
        if status == 410 {
            assert_eq!(page["code"], "records_missing", "{page}");
            let numbers = page["error"].as_str().unwrap().split(|c: char| !c.is_ascii_digit());
            let numbers: Vec<i64> = numbers.filter_map(|number| number.parse().ok()).collect();
            let [first, last, go_on] = numbers[..] else { panic!("{page}") };
            assert_eq!((first, last), (after + 1, go_on), "{page}");
            holes.push((first, last));
            after = go_on;
            continue;
        }
        assert_eq!(status, 200, "{page}");
        let (offsets, next_after) = offsets(&page);
        if next_after == after {
            assert_eq!(offsets, [0; 0], "the end has no records");
            return (all, holes);
        }
        all.extend(offsets);
        after = next_after;
    }
}

#[tokio::test]
async fn a_page_has_the_records_as_they_were_staged() {
    let world = make_parts(World::cut(8).await, 100, 3).await;
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let insert = format!(
        r#"INSERT INTO history VALUES
           (0, 1, 'wallet', 'credit', E'{{"b": 1e2,\r\n "a" :0.10, "b":"\\u0000"}}', '2026-01-02 03:04:05.00006+00', '{traceparent}'),
           (0, 2, 'ride', 'create', '7', '2026-01-02 03:04:05+00', NULL),
           (7, 1, 'ride', 'create', '[]', '2026-01-02 03:04:05+00', NULL)"#
    );
    world.client().batch_execute(&insert).await.unwrap();
    let api = Api::start(&world).await;
    let text = reqwest::get(api.url("/history")).await.unwrap().text().await.unwrap();
    let first = format!(
        r#"{{"partition":0,"offset":1,"object":"wallet","action":"credit","data":{{"b": 1e2,{}"a" :0.10, "b":"\u0000"}},"#,
        "\r\n "
    );
    assert!(text.starts_with(&format!(r#"{{"records":[{first}"staged_at":"2026-01-02T03:04:05.000060Z","#)), "{text}");
    let (_, page) = api.get("/history").await;
    assert_eq!(page["records"][0]["traceparent"], traceparent);
    let second = json!({
        "partition": 0, "offset": 2, "object": "ride", "action": "create", "data": 7,
        "staged_at": "2026-01-02T03:04:05.000000Z", "traceparent": null
    });
    assert_eq!((&page["records"][1], &page["next_after"]), (&second, &json!(2)));
    let (_, page) = api.get("/history?partition=7").await;
    assert_eq!((offsets(&page), &page["records"][0]["partition"]), ((vec![1], 1), &json!(7)));
}

#[tokio::test]
async fn pages_lead_to_the_end_and_then_to_later_records() {
    let world = world_with_parts(10, 40).await;
    let api = Api::start(&world).await;
    assert_eq!(api.get("/history").await, (200, json!({ "records": [], "next_after": 0 })));
    archive(&world, 1, 25).await;
    for limit in [1, 7, 25, 1000] {
        assert_eq!(read_all(&api, &format!("limit={limit}")).await, ((1..=25).collect(), vec![]), "{limit}");
    }
    let page = async |after: i64| offsets(&api.get(&format!("/history?after={after}&limit=10")).await.1);
    assert_eq!(page(8).await, ((9..=18).collect(), 18));
    assert_eq!(page(25).await, (vec![], 25));
    archive(&world, 26, 26).await;
    assert_eq!(page(25).await, (vec![26], 26));
    assert_eq!(page(i64::MAX).await, (vec![], i64::MAX));
}

#[tokio::test]
async fn a_rare_filter_reads_a_bounded_number_of_rows() {
    let world = world_with_parts(6_000, 25_000).await;
    archive_as(&world, 1, 25_000, "CASE WHEN n IN (12345, 12349) THEN 'rare' ELSE 'ride' END", "'{}'").await;
    let api = Api::start(&world).await;
    let page = async |query: &str| offsets(&api.get(&format!("/history?{query}")).await.1);
    assert_eq!(page("object=rare").await, (vec![], 10_000));
    assert_eq!(page("object=rare&after=10000").await, (vec![12_345, 12_349], 20_000));
    assert_eq!(page("object=rare&after=10000&limit=2&action=create").await, (vec![12_345, 12_349], 20_000));
    assert_eq!(page("object=rare&after=10000&limit=1").await, (vec![12_345], 12_345), "the second is not passed");
    assert_eq!(page("object=rare&after=20000").await, (vec![], 25_000));
    assert_eq!(page("object=rare&after=25000").await, (vec![], 25_000));
    assert_eq!(page("action=nothing").await, (vec![], 10_000));
    assert_eq!(page("object=ride&after=12344&limit=4").await, ((12_346..=12_348).chain([12_350]).collect(), 12_350));
    assert_eq!(read_all(&api, "object=rare&limit=1").await, (vec![12_345, 12_349], vec![]));
}

#[tokio::test]
async fn a_page_of_large_records_is_short() {
    let world = world_with_parts(100, 20).await;
    archive_as(&world, 1, 20, "'ride'", "to_json(repeat('x', 60000))").await;
    let api = Api::start(&world).await;
    // Five records are more than 256 KiB.
    assert_eq!(offsets(&api.get("/history").await.1), ((1..=5).collect(), 5));
    assert_eq!(read_all(&api, "").await, ((1..=20).collect(), vec![]));
}

#[tokio::test]
async fn a_hole_is_told_and_never_read_over() {
    let world = world_with_parts(100, 450).await;
    let api = Api::start(&world).await;
    // The history begins late. Its consumer was away between the records 20 and 31, and for a single record.
    for (first, last) in [(11, 20), (31, 59), (61, 450)] {
        archive(&world, first, last).await;
    }
    let offsets = |ranges: &[(i64, i64)]| -> Vec<i64> { ranges.iter().flat_map(|&(a, b)| a..=b).collect() };
    for query in ["", "limit=3", "limit=1000", "object=ride", "object=ride&limit=7"] {
        let whole = (offsets(&[(11, 20), (31, 59), (61, 450)]), vec![(1, 10), (21, 30), (60, 60)]);
        assert_eq!(read_all(&api, query).await, whole, "{query}");
    }
    let none = (vec![], vec![(1, 10), (21, 30), (60, 60)]);
    assert_eq!(read_all(&api, "object=nothing").await, none, "a filter hides no hole");
    // A request from within a hole is told the rest of it.
    let (status, error) = api.get("/history?after=25").await;
    let sentence = "The history lacks the records 26 to 30. Continue with after=30.";
    assert_eq!((status, error), (410, json!({ "error": sentence, "code": "records_missing" })));

    world.client().batch_execute("ALTER TABLE history DETACH PARTITION history_2").await.unwrap();
    let rest = (offsets(&[(11, 20), (31, 59), (61, 199), (300, 450)]), vec![(1, 10), (21, 30), (60, 60), (200, 299)]);
    assert_eq!(read_all(&api, "limit=40").await, rest);
    // Without the newest part, the history ends where the part began.
    world.client().batch_execute("ALTER TABLE history DETACH PARTITION history_4").await.unwrap();
    assert_eq!(read_all(&api, "").await.0.last(), Some(&399));
}

#[tokio::test]
async fn a_bad_request_is_told_which_parameter_to_change() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    for (query, parameter) in [
        ("after=-1", "after"),
        ("after=9223372036854775808", "after"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("partition=-1", "partition"),
        ("partition=2147483648", "partition"),
        ("object=", "object"),
        ("action=a%00b", "action"),
    ] {
        let (status, answer) = api.get(&format!("/history?{query}")).await;
        assert_eq!((status, answer["code"].as_str()), (422, Some("parameter_invalid")), "{query}: {answer}");
        let start = format!("Parameter '{parameter}' must be ");
        assert!(answer["error"].as_str().unwrap().starts_with(&start), "{query}: {answer}");
    }
    let (status, answer) = api.get("/history?after=1&after=2").await;
    assert_eq!((status, answer["code"].as_str()), (400, Some("body_malformed")));
    assert_eq!(api.get("/history?unknown=1").await.0, 200);
    let (status, answer) = api.get("/history?partition=1").await;
    assert_eq!((status, answer["code"].as_str()), (404, Some("partition_unknown")), "{answer}");
    let reason = "the log has 1 partition(s), and partition 1 is not one of them: give numbers from 0 to 0";
    assert!(answer["error"].as_str().unwrap().contains(reason), "{answer}");
    for query in ["partition=1", "partition=1&after=0"] {
        let url = api.url(&format!("/history?{query}"));
        let events = reqwest::Client::new().get(url).header("accept", "text/event-stream");
        assert_eq!(events.send().await.unwrap().status(), 404, "{query}");
    }
}
