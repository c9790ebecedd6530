//! The trace of a request travels with its record through the log, and consumers link to it.

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use pglog::NewRecord;
use serde_json::Value;
use stream::codec::{EntryId, decode_xrange};
use tests::{Payments, Process, World, binary, wait_until};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::api::Api;
use crate::collector::{Collector, SpanContext};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENTS_SPAN_ID: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE_ID}-{CLIENTS_SPAN_ID}-{flags}")
}

fn context_of(traceparent: &str) -> SpanContext {
    let parts: Vec<&str> = traceparent.split('-').collect();
    (parts[1].to_owned(), parts[2].to_owned())
}

/// Waits until the api has started. Returns its address.
async fn address_of(api: &mut Process) -> String {
    api.wait_for("api started").await;
    api.output().split("address=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Posts a ride, with one header `traceparent` per given value.
async fn ride(address: &str, metres: u32, traceparents: &[&str]) {
    let mut request = reqwest::Client::new().post(format!("http://{address}/rides"));
    for traceparent in traceparents {
        request = request.header("traceparent", *traceparent);
    }
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let response = request.body(format!("distance={metres}")).send().await.unwrap();
    assert_eq!(response.status(), 201);
}

/// The traceparents of the records, in the order in which they were staged.
async fn staged(world: &World) -> Vec<Option<String>> {
    let query = "SELECT traceparent FROM staged_log_records ORDER BY id";
    world.client().query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The entries of the stream: ids, and names and values of their fields.
async fn entries(world: &World) -> Vec<(String, Vec<String>)> {
    let mut redis = world.redis().await;
    redis::cmd("XRANGE").arg(world.stream_name()).arg("-").arg("+").query_async(&mut redis).await.unwrap()
}

#[tokio::test]
async fn a_trace_goes_with_the_ride_through_the_log_and_consumers_link_to_it() {
    let (world, collector) = (World::new().await, Collector::start().await);
    let mut api = Process::start(&world, "api", &[&["--api-port", "0"], &collector.flags()[..]].concat());
    let address = address_of(&mut api).await;
    ride(&address, 1, &[&traceparent("01")]).await;
    ride(&address, 2, &[]).await;
    ride(&address, 3, &["00-1-2-01"]).await;
    ride(&address, 4, &[&traceparent("01"), &traceparent("01")]).await;
    ride(&address, 5, &[&traceparent("00")]).await;
    let staged = staged(&world).await;
    let first = staged[0].clone().unwrap();
    assert!(first.starts_with(&format!("00-{TRACE_ID}-")) && first.ends_with("-01"), "{first}");
    assert_ne!(context_of(&first).1, CLIENTS_SPAN_ID, "the record names the span of the api");
    // No header, a malformed header, two headers, and a trace that is not sampled.
    assert_eq!(staged[1..], [None, None, None, Some(traceparent("00"))]);

    let streamer = Process::start(&world, "streamer", &collector.flags());
    let mut consumer = Process::start(&world, "consumer", &[&["c0"], &collector.flags()[..]].concat());
    wait_until("all is folded", async || consumer.output().contains("last_offset=5")).await;
    let entries = entries(&world).await;
    assert_eq!(entries[0].1[4..], ["traceparent".to_owned(), first.clone()]);
    assert_eq!(entries[1].1.len(), 4, "an entry without a trace has no further field");
    assert_eq!(entries[1].1[2..], ["data".to_owned(), "{\"id\":2,\"distance_mm\":2000}".to_owned()]);

    // A process sends its last spans before it ends.
    assert!(consumer.is_running());
    for process in [api, streamer, consumer] {
        process.stop().await;
    }
    let [of_api] = &collector.spans("POST /rides")[..] else { panic!("of one request") };
    assert_eq!((of_api.service.as_str(), &of_api.context), ("api", &context_of(&first)));
    assert_eq!(of_api.parent, CLIENTS_SPAN_ID);
    assert_eq!(of_api.number("http.response.status_code"), Some(201));
    for (service, name) in [("streamer", format!("publish {}", world.stream_name())), ("consumer", "process c0".into())]
    {
        let [of_batch] = &collector.spans(&name)[..] else { panic!("of one batch: {name}") };
        assert_eq!((of_batch.service.as_str(), &of_batch.links), (service, &vec![context_of(&first)]));
        assert_eq!(of_batch.number("rocket_rides.first_offset"), Some(1));
        assert!(of_batch.parent.is_empty() && of_batch.context.0 != TRACE_ID, "{of_batch:?}");
    }
    assert_eq!(collector.span_count(), 3);
    world.assert_converged(&["c0"]).await;
}

#[tokio::test]
async fn records_that_are_healed_from_postgres_are_linked_too() {
    let (world, collector) = (World::new().await, Collector::start().await);
    for flags in ["01", "00", "01"] {
        let (data, traceparent) = (r#"{"id":1,"distance_mm":1}"#, traceparent(flags));
        let record = NewRecord { key: "", object: "ride", action: "create", data, traceparent: Some(&traceparent) };
        pglog::stage(world.client(), record).await.unwrap();
    }
    world.drain_streamer(&mut world.streamer()).await;
    // Redis loses the published entries.
    let _: () = redis::cmd("DEL").arg(world.stream_name()).query_async(&mut world.redis().await).await.unwrap();
    let args = [&["c0", "--drain", "--rust-log", "info,consumer=debug"], &collector.flags()[..]].concat();
    let output = Process::start(&world, "consumer", &args).succeed().await;
    assert!(output.contains("healed_count=3"), "{output}");
    for (offset, flags) in [(1, "01"), (2, "00"), (3, "01")] {
        let line = format!(
            "a record of a trace is committed consumer=\"c0\" offset={offset} traceparent=\"{}\"",
            traceparent(flags)
        );
        assert!(output.contains(&line), "{line}\n{output}");
    }
    let [span] = &collector.spans("process c0")[..] else { panic!("of one batch") };
    let recorded = (TRACE_ID.to_owned(), CLIENTS_SPAN_ID.to_owned());
    assert_eq!(span.links, [recorded.clone(), recorded], "the trace that is not sampled has no link");
    assert_eq!(span.number("messaging.batch.message_count"), Some(3));
}

#[tokio::test]
async fn a_batch_of_many_traces_has_a_bounded_number_of_links() {
    let (world, collector) = (World::new().await, Collector::start().await);
    let insert =
        "WITH written AS (INSERT INTO rides (distance_mm) SELECT generate_series(1, 500) RETURNING id, distance_mm)
                  INSERT INTO staged_log_records (object, action, data, traceparent)
                  SELECT 'ride', 'create', format('{\"id\":%s,\"distance_mm\":%s}', id, distance_mm)::json,
                         format('00-%s-%s-01', lpad(id::text, 32, '0'), lpad(id::text, 16, '0')) FROM written";
    world.client().batch_execute(insert).await.unwrap();
    Process::start(&world, "streamer", &[&["--drain"], &collector.flags()[..]].concat()).succeed().await;
    let [span] = &collector.spans(&format!("publish {}", world.stream_name()))[..] else { panic!("of one batch") };
    assert_eq!((span.links.len(), span.number("messaging.batch.message_count")), (32, Some(500)));
    let mut wire = world.wire().await;
    let mut question = stream::resp::Commands::default();
    question.add(&["XRANGE", world.stream_name(), "500", "500"]);
    wire.send(&question).await.unwrap();
    let page = wire.read(1).await.unwrap();
    let entry = &decode_xrange(&page).unwrap()[0];
    assert_eq!(entry.id, EntryId { offset: 500, copy: 0 });
    let wanted = format!("00-{:0>32}-{:0>16}-01", 500, 500);
    assert_eq!(entry.fields.as_ref().unwrap().traceparent, Some(wanted.as_str()));
    // Stream and Postgres hold the same traceparents.
    world.drain_consumer(&mut world.consumer("c0")).await;
    Process::start(&world, "audit", &[]).succeed().await;
}

#[tokio::test]
async fn in_a_group_every_ride_keeps_its_own_trace() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let mut locker = world.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE rides IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let address = format!("127.0.0.1:{}", api.port());
    let of = |n: u32| (!n.is_multiple_of(3)).then(|| format!("00-{n:032x}-{n:016x}-01"));
    // The first request waits for the lock. All later requests wait behind it, and are written in groups.
    let rides = (1..=100).map(|n| {
        let (address, traceparent) = (&address, of(n));
        async move { ride(address, n, traceparent.as_deref().as_slice()).await }
    });
    let release = async {
        wait_until("the writer waits", async || world.waiting_count().await == 1).await;
        lock.commit().await.unwrap();
    };
    tokio::join!(join_all(rides), release);
    let query = "SELECT data::text, traceparent FROM staged_log_records ORDER BY id";
    let rows = world.client().query(query, &[]).await.unwrap();
    assert_eq!(rows.len(), 100);
    for row in rows {
        let data: Value = serde_json::from_str(row.get(0)).unwrap();
        let n = data["distance_mm"].as_u64().unwrap() / 1000;
        assert_eq!(row.get::<_, Option<String>>(1), of(n as u32), "of the ride of {n} m");
        let ride = format!("SELECT distance_mm FROM rides WHERE id = {}", data["id"]);
        assert_eq!(world.number(&ride).await, n as i64 * 1000, "a record names its own ride");
    }
    let transaction_count = world.number("SELECT count(DISTINCT transaction_id) FROM staged_log_records").await;
    assert!(transaction_count < 50, "rides are written in groups: {transaction_count} transactions");
}

#[tokio::test]
async fn all_records_of_a_booked_ride_are_part_of_its_trace() {
    let (world, payments) = (World::new().await, Payments::start().await);
    let api = Api::start_with(&world, payments.stripe()).await;
    let request = reqwest::Client::new()
        .post(api.url("/rides"))
        .header("authorization", "user@example.com")
        .header("idempotency-key", "3b1cb8c2-0f0d-4f4f-9d4e-5a4f8a1f0c11")
        .header("traceparent", traceparent("01"))
        .header("content-type", "application/x-www-form-urlencoded")
        .body("origin_lat=52.52&origin_lon=13.405&target_lat=48.8566&target_lon=2.3522");
    assert_eq!(request.send().await.unwrap().status(), 201);
    assert_eq!(staged(&world).await, vec![Some(traceparent("01")); 3]);
}

/// One collector accepts connections and never responds, and one does not listen.
#[tokio::test]
async fn a_collector_that_is_silent_or_away_stops_nobody() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = [&silent, &away].map(|listener| format!("http://{}", listener.local_addr().unwrap()));
    drop(away);
    for (endpoint, is_away) in endpoints.into_iter().zip([false, true]) {
        let world = World::new().await;
        let start = |name: &str, args: &[&str]| {
            let mut command = Command::new(binary(name));
            command.args(args).env("DATABASE_URL", world.database_url_of(name)).env("REDIS_URL", world.redis_url());
            command.env("STREAM_NAME", world.stream_name()).env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
            // The queue is far shorter than the number of spans.
            command.env("OTEL_BSP_MAX_QUEUE_SIZE", "10").env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1");
            Process::spawn(name, command)
        };
        let mut api = start("api", &["--api-port", "0"]);
        let address = address_of(&mut api).await;
        let (streamer, mut consumer) = (start("streamer", &[]), start("consumer", &["c0"]));
        let (traceparent, address) = (traceparent("01"), &address);
        let headers = &[traceparent.as_str()];
        for _ in 0..10 {
            join_all((1..=20).map(|metres| ride(address, metres, headers))).await;
        }
        wait_until("all is folded", async || consumer.output().contains("last_offset=200")).await;
        assert!(consumer.is_running());
        api.signal(Signal::SIGTERM);
        let (output, (), ()) = tokio::join!(api.succeed(), streamer.stop(), consumer.stop());
        let says_so = output.matches("the collector does not take spans: they are lost").count();
        assert!(!is_away || says_so == 1, "{output}");
        world.assert_converged(&["c0"]).await;
    }
}

#[tokio::test]
async fn a_log_of_schema_version_3_gets_the_column_and_its_rows_stay_where_they_are() {
    let world = World::new().await;
    world.write_rides(5).await;
    let older = "ALTER TABLE staged_log_records DROP COLUMN traceparent; UPDATE log_identity SET schema_version = 3";
    world.client().batch_execute(older).await.unwrap();
    let error = pglog::prepare_session(world.client()).await.unwrap_err();
    assert!(matches!(error, pglog::Error::SchemaVersion { found: 3, .. }), "{error}");
    let file = "SELECT pg_relation_filenode('staged_log_records')::bigint";
    let file_before = world.number(file).await;
    for _ in 0..2 {
        launcher::apply_schema(world.client()).await.unwrap();
        launcher::apply_roles(world.client()).await.unwrap();
    }
    assert_eq!(world.number(file).await, file_before, "the table was not rewritten");
    pglog::prepare_session(world.client()).await.unwrap();
    let api = Api::start(&world).await;
    let address = format!("127.0.0.1:{}", api.port());
    ride(&address, 1, &[&traceparent("01")]).await;
    assert_eq!(staged(&world).await, [vec![None; 5], vec![Some(traceparent("01"))]].concat());
    let malformed = NewRecord { key: "", object: "ride", action: "create", data: "{}", traceparent: Some("00-1-2-01") };
    let error = pglog::stage(world.client(), malformed).await.unwrap_err();
    assert_eq!(error.as_db_error().unwrap().constraint(), Some("staged_log_records_traceparent_w3c"));
    world.drain_streamer(&mut world.streamer()).await;
    world.drain_consumer(&mut world.consumer("c0")).await;
    world.assert_converged(&["c0"]).await;
}
