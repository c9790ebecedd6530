//! Records with strange content: a record that a process cannot read stops no process. Sound records around it are folded,
//! archived and shown.

use std::collections::BTreeSet;

use common::shutdown::CancellationToken;
use consumer::{
    CheckpointKey, Consumer, Fault, FoldId, Interruption, Progress, Rejection, RowFold, Rows, RowsOf, Statement,
};
use pglog::{Partition, Record};
use serde::Deserialize;
use serde_json::value::RawValue;
use tests::{Process, World};

use crate::api::Api;
use crate::dashboard::Page;
use crate::reaper::reap;

/// Payloads of `ride create` that no fold can apply, as SQL.
const BAD_RIDES: [&str; 17] = [
    "'[1,5]'",
    "'null'",
    "'7'",
    "'\"ride\"'",
    "'{}'",
    "'{\"id\":null,\"distance_mm\":5}'",
    "'{\"id\":\"1\",\"distance_mm\":5}'",
    "'{\"id\":1.5,\"distance_mm\":5}'",
    "'{\"id\":1e400000,\"distance_mm\":5}'",
    "'{\"id\":1,\"distance_mm\":1e400000}'",
    "'{\"id\":99999999999999999999,\"distance_mm\":5}'",
    "'{\"id\":1,\"id\":2,\"distance_mm\":5}'",
    "'{\"id\":\"\\u0000\",\"distance_mm\":5}'",
    "'{\"id\":\"\\ud800\",\"distance_mm\":5}'",
    "'{\"\\ud800\":1,\"id\":1,\"distance_mm\":5}'",
    "(repeat('[', 9000) || repeat(']', 9000))::json",
    "(repeat('{\"id\":', 4000) || '1' || repeat('}', 4000))::json",
];

/// Further members of sound rides, as SQL texts.
pub const STRANGE_MEMBERS: [&str; 6] = [
    "'\"note\":\"\\u0000\"'",
    "'\"note\":\"\\ud800\"'",
    "'\"note\":1e400000'",
    "'\"note\":1,\"note\":2'",
    "E'\"note\"\\n\\t:\\r\\n\"\\u202e\\u2028\"'",
    "'\"note\":' || repeat('[', 9000) || repeat(']', 9000)",
];

/// Times of sound rides, as SQL.
const STRANGE_TIMES: [&str; 6] = [
    "'infinity'",
    "'-infinity'",
    "'294276-12-31 23:59:59.999999+00'",
    "'4714-11-24 00:00:00+00 BC'",
    "'0001-01-01 00:00:00+00'",
    "'1969-07-20 20:17:40+00'",
];

/// Names that no fold takes, as SQL: object and action.
const STRANGE_NAMES: [&str; 4] = [
    "E'\\u001b[2J\\n0 ride', E'create\\r\\n'",
    "E'\\u202eedir', 'create'",
    "repeat('🚲', 100), repeat('مر', 50)",
    "' ', '-1 -1 4 ride create'",
];

pub async fn execute(world: &World, statement: &str) {
    world.client().batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
}

/// Stages a sound ride, with a row in `rides`, with these further members and this time.
async fn stage_sound(world: &World, members: &str, staged_at: &str) {
    execute(
        world,
        &format!(
            "WITH ride AS (INSERT INTO rides (distance_mm) VALUES (7) RETURNING id)
             INSERT INTO staged_log_records (object, action, data, staged_at)
             SELECT 'ride', 'create', ('{{\"id\":' || id || ',\"distance_mm\":7,' || {members} || '}}')::json, {staged_at}
             FROM ride"
        ),
    )
    .await;
}

/// Stages every strange record, with sound rides before, between and behind them.
async fn stage_everything(world: &World) {
    for data in BAD_RIDES {
        execute(
            world,
            &format!("INSERT INTO staged_log_records (object, action, data) VALUES ('ride', 'create', {data})"),
        )
        .await;
        world.write_rides(2).await;
    }
    for members in STRANGE_MEMBERS {
        stage_sound(world, members, "now()").await;
    }
    for staged_at in STRANGE_TIMES {
        // Alone in its batch: the lag is measured at the first and the last record of a batch.
        pglog::assign(world.client(), Partition::FIRST, rand::random()).await.unwrap();
        stage_sound(world, "'\"note\":1'", staged_at).await;
        pglog::assign(world.client(), Partition::FIRST, rand::random()).await.unwrap();
    }
    for names in STRANGE_NAMES {
        let insert = "INSERT INTO staged_log_records (object, action, data) VALUES";
        execute(world, &format!("{insert} ({names}, '{{\"id\":\"\\u0000\"}}')")).await;
    }
    world.write_rides(3).await;
}

/// A page of the history, whose data are not looked into.
#[derive(Deserialize)]
struct ArchivedPage {
    records: Vec<Archived>,
    next_after: i64,
}

#[derive(Deserialize)]
struct Archived {
    offset: i64,
    data: Box<RawValue>,
    staged_at: String,
}

/// The history up to `head`, page by page.
async fn read_history(api: &Api, head: i64) -> Vec<Archived> {
    let (mut records, mut after) = (Vec::new(), 0);
    while after < head {
        let response = reqwest::get(api.url(&format!("/history?limit=7&after={after}"))).await.unwrap();
        assert_eq!(response.status(), 200, "after {after}");
        let page: ArchivedPage = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert!(page.next_after > after);
        after = page.next_after;
        records.extend(page.records);
    }
    records
}

/// The history up to `head`, as events: the ids of the events with data.
async fn watch_history(api: &Api, head: i64) -> Vec<i64> {
    let request = reqwest::Client::new().get(api.url("/history?after=0")).header("accept", "text/event-stream");
    let (mut response, mut text) = (request.send().await.unwrap(), String::new());
    while !text.contains(&format!("id: {head}\n")) || !text.ends_with("\n\n") {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    // A payload with line breaks takes several lines of data.
    let field = |event: &str, name: &str| {
        let lines: Vec<&str> =
            event.split(['\n', '\r']).filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect();
        lines.join("\n")
    };
    let events = text.split("\n\n").filter(|event| field(event, "event") == "record");
    events
        .map(|event| {
            let archived: Archived = serde_json::from_str(&field(event, "data")).unwrap();
            assert_eq!(field(event, "id"), archived.offset.to_string());
            archived.offset
        })
        .collect()
}

#[tokio::test]
async fn no_strange_record_stops_a_process_and_sound_records_are_folded() {
    let world = World::new().await;
    stage_everything(&world).await;
    let mut streamer = world.streamer();
    world.drain_streamer(&mut streamer).await;
    let head = world.number("SELECT max(first_offset + record_count) - 1 FROM log_batches").await;
    world.drain_consumer(&mut world.consumer("c0")).await;
    Process::start(&world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
    // Without the stream, from Postgres.
    let _: i64 = redis::cmd("DEL").arg(world.stream_name()).query_async(&mut world.redis().await).await.unwrap();
    assert_eq!(world.drain_consumer(&mut world.consumer("c1")).await.healed_count as i64, head);
    world.assert_converged(&["c0", "c1"]).await;
    for name in ["c0", "c1"] {
        let letters = format!("SELECT count(*) FROM dead_letters WHERE name = '{name}'");
        assert_eq!(world.number(&letters).await, BAD_RIDES.len() as i64, "{name}");
    }
    for offset in 0..=head {
        let lag = pglog::lag(world.client(), Partition::FIRST, offset, std::time::Duration::ZERO).await.unwrap();
        assert!(lag.waiting_s.is_finite() && lag.taken_s.is_none_or(f64::is_finite), "{offset}: {lag:?}");
    }
    world.drain_streamer(&mut streamer).await;
    Process::start(&world, "audit", &[]).succeed().await;

    // The baseline folds the same records, and the history answers for those that are reaped.
    assert_eq!(reap(&world, &["--keep", "0s"]).await.record_count as i64, head);
    world.carry_rides(10, &mut streamer, &mut world.consumer("c0")).await;
    Process::start(&world, "consumer", &["fresh", "--drain"]).succeed().await;
    Process::start(&world, "consumer", &["again", "--from", "start", "--drain"]).succeed().await;
    world.drain_consumer(&mut world.consumer("c1")).await;
    Process::start(&world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
    world.assert_converged(&["c0", "c1", "fresh", "again"]).await;
    for args in [&[][..], &["--from", "start"]] {
        Process::start(&world, "audit", args).succeed().await;
    }
    everything_is_shown(&world, head + 10).await;
}

/// The api, the page and the tools respond, although some records are strange.
async fn everything_is_shown(world: &World, head: i64) {
    let api = Api::start(world).await;
    let archived = read_history(&api, head).await;
    assert_eq!(archived.iter().map(|record| record.offset).collect::<Vec<_>>(), (1..=head).collect::<Vec<_>>());
    let times: BTreeSet<&str> = archived.iter().map(|record| record.staged_at.as_str()).collect();
    for time in ["0000-01-01T00:00:00.000000Z", "9999-12-30T22:00:00.000000Z", "1969-07-20T20:17:40.000000Z"] {
        assert!(times.contains(time), "{time} is not among {times:?}");
    }
    assert!(archived.iter().any(|record| record.data.get().contains(r#""note":"\u0000""#)), "the bytes as staged");
    assert_eq!(watch_history(&api, head).await, (1..=head).collect::<Vec<_>>());
    let (status, totals) = api.get("/totals").await;
    assert_eq!((status, &totals["converged"]), (200, &true.into()), "{totals}");

    let page = Page::start_on(world, tests::free_port(), &[]).await;
    tests::wait_until("the page says that all is equal", async || {
        let state = reqwest::get(format!("{}/state", page.url)).await.unwrap().text().await.unwrap();
        state.contains(r#""verdict":"converged""#)
    })
    .await;

    let output = Process::start(world, "doctor", &["--json"]).read_to_end().await;
    let findings: Vec<serde_json::Value> = serde_json::from_str(&output).unwrap();
    let is_blind = |finding: &&serde_json::Value| finding["what"].as_str().unwrap().starts_with("cannot see");
    assert_eq!(findings.iter().find(is_blind), None);

    let list = Process::start(world, "dead-letters", &["list"]).succeed().await;
    let letter_count = world.number("SELECT count(*) FROM dead_letters").await;
    assert_eq!(list.lines().count() as i64, letter_count, "one line each: {list}");
    assert!(!list.contains(|c: char| c.is_control() && c != '\n'), "{list:?}");
    let output = Process::start(world, "dead-letters", &["replay", "c0", "--all"]).fail(1).await;
    assert_eq!(output.lines().count(), BAD_RIDES.len(), "every one is tried: {output}");
}

/// Names with a number, as rows. Postgres refuses some of them: the fold does not look at what it writes.
#[derive(Default)]
struct Names {
    offsets: Vec<i64>,
    names: Vec<String>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

const NAMES: &str = "CREATE TABLE names (
        record_offset BIGINT PRIMARY KEY, name TEXT, short VARCHAR(4), number INT,
        CONSTRAINT names_polite CHECK (name <> 'damn'));
    GRANT SELECT, INSERT ON names TO rocket_consumer";

impl RowFold for Names {
    const ID: FoldId = FoldId { name: "names", version: 1 };

    const ROWS: RowsOf = RowsOf::All;

    fn takes(&self, object: &str, _action: &str) -> bool {
        object == "name"
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        let named: Named = consumer::read_object(record, "a name")?;
        if named.name.starts_with('?') {
            return Err(Rejection(named.name));
        }
        self.offsets.push(record.offset);
        self.names.push(named.name);
        Ok(())
    }

    fn statements(&mut self, _: &CheckpointKey) -> Vec<Statement> {
        let Self { offsets, names } = std::mem::take(self);
        let insert = "INSERT INTO names SELECT record_offset, name, name::text, length(name) / NULLIF(length(name), 9)
                      FROM unnest($1::bigint[], $2::text[]) AS page (record_offset, name)
                      WHERE name <> 'json' OR name::json IS NULL";
        vec![Statement::new(insert).with(offsets).with(names)]
    }
}

/// Folds until nothing is left. Every other step crashes before it commits.
async fn drain(consumer: &mut Consumer<Rows<Names>>) {
    loop {
        if let Err(error) = consumer.run_once(Fault::CrashBeforeCommit, None).await {
            assert!(matches!(error.downcast_ref(), Some(Interruption::Crash)), "{error:#}");
        }
        if consumer.run_once(Fault::None, None).await.unwrap() == Progress::default() {
            return;
        }
    }
}

#[tokio::test]
async fn a_row_that_postgres_refuses_becomes_a_dead_letter_alone() {
    let world = World::new().await;
    execute(&world, NAMES).await;
    let bad = [
        (1, "damn"),
        (2, r"a\u0000b"),
        (3, r"?\u0000"),
        (700, "longer than four"),
        (701, "json"),
        (1499, "damn"),
        (2500, "damn"),
    ];
    for (offset, name) in bad {
        let after = world.number("SELECT count(*) FROM staged_log_records").await;
        let stage = format!(
            "INSERT INTO staged_log_records (object, action, data)
             SELECT 'name', 'give', '{{\"name\":\"anna\"}}' FROM generate_series({after} + 2, {offset});
             INSERT INTO staged_log_records (object, action, data) VALUES ('name', 'give', '{{\"name\":\"{name}\"}}')"
        );
        execute(&world, &stage).await;
    }
    world.drain_streamer(&mut world.streamer()).await;
    let mut consumer = Consumer::new(&world.consumer_config("n"), Rows::<Names>::default(), CancellationToken::new());
    drain(&mut consumer).await;
    let letters = "SELECT array_agg(record_offset ORDER BY record_offset) FROM dead_letters WHERE name = 'n'";
    let letters: Vec<i64> = world.client().query_one(letters, &[]).await.unwrap().get(0);
    assert_eq!(letters, bad.map(|(offset, _)| offset));
    assert_eq!(world.number("SELECT count(*) FROM names WHERE name = 'anna'").await, 2500 - bad.len() as i64);
    assert_eq!(world.number("SELECT last_offset FROM checkpoints WHERE name = 'n'").await, 2500);
    let reason = "SELECT reason FROM dead_letters WHERE record_offset = 1";
    let reason: String = world.client().query_one(reason, &[]).await.unwrap().get(0);
    assert!(reason.starts_with("Postgres refuses its row: ") && reason.contains("names_polite"), "{reason}");
    // A replay is refused in the same way, and changes nothing.
    let mut client = world.connect().await;
    let mut fold = Rows::<Names>::default();
    let replayed = consumer::replay(&mut client, &mut fold, "n", Partition::FIRST, 1).await.unwrap();
    assert!(matches!(replayed, consumer::Replay::Rejected(_)), "{replayed:?}");
}

/// Postgres reads a JSON value with more of its stack in some statements than in others. A record that can be staged, and not
/// archived, becomes a dead letter of the history.
#[tokio::test]
async fn json_that_is_nested_as_deep_as_postgres_allows_does_not_stop_the_history() {
    let world = World::new().await;
    let data = |depth: i64| format!("{}{}", "[".repeat(depth as usize), "]".repeat(depth as usize));
    let stage = "INSERT INTO staged_log_records (object, action, data) VALUES ('a', 'b', $1::text::json)";
    let (mut possible, mut impossible) = (1, 32_768);
    while impossible - possible > 1 {
        let depth = (possible + impossible) / 2;
        let is_possible = world.client().execute("SELECT $1::text::json", &[&data(depth)]).await.is_ok();
        if is_possible { possible = depth } else { impossible = depth }
    }
    let mut staged_count = 0;
    for depth in possible - 20..=possible {
        staged_count += world.client().execute(stage, &[&data(depth)]).await.unwrap_or(0);
        world.write_rides(1).await;
    }
    assert!(staged_count > 10, "{staged_count}");
    world.drain_streamer(&mut world.streamer()).await;
    Process::start(&world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
    world.drain_consumer(&mut world.consumer("c0")).await;
    let archived = "SELECT (SELECT count(*) FROM history) + (SELECT count(*) FROM dead_letters WHERE name = 'history')";
    assert_eq!(world.number(archived).await as u64, staged_count + 21);
    Process::start(&world, "audit", &[]).succeed().await;
}
