//! Units are accepted and settled in groups: few commits for many units, and no unit suffers from its neighbours.

use std::pin::pin;

use container::units::{
    Accepted, Accepts, NewUnit, PartOutcome, Row, Taken, Unwritten, Verdict, Verdicts, note_success, register_spool,
    start_queues, take,
};
use deadpool_postgres::ClientWrapper as Client;
use futures_util::future::join_all;
use futures_util::poll;
use tests::{World, wait_until};

use crate::container_fixture::{Scene, manifest};

/// The id of the spool of these units.
const SPOOL: &str = "6f2c1f0e-0000-4000-8000-000000000001";

/// Queues without a container.
struct Queues {
    world: World,
    accepts: Accepts,
    verdicts: Verdicts,
}

impl Queues {
    async fn start() -> Self {
        let world = World::new().await;
        let pool = connect::postgres::pool(&world.database_url().parse().unwrap(), "test", 4).unwrap();
        register_spool(&connect::postgres::take(&pool).await.unwrap(), SPOOL, "here").await.unwrap();
        let database_url = world.database_url().parse().unwrap();
        let (accepts, verdicts) = start_queues(&database_url, &monitor::Health::default()).unwrap();
        Self { world, accepts, verdicts }
    }

    /// Accepts a unit about each subject, and takes it.
    async fn units(&self, subjects: &[&str]) -> Vec<Taken> {
        let mut units = Vec::new();
        for subject in subjects {
            let new = new_unit(subject, None);
            let Ok(Some(Accepted::New { uow, lease })) = self.accepts.write(new.clone()).await else {
                panic!("the unit about {subject} is new")
            };
            units.push(Taken::accepted(new, uow, lease));
        }
        units
    }

    /// Gives the verdicts on all but the first unit in one group. The table is locked while the first one is written.
    async fn give_together(&self, verdicts: Vec<Verdict>) -> Vec<Result<bool, Unwritten>> {
        let blocking = locked(&self.world, "units").await;
        let mut verdicts = verdicts.into_iter().map(|verdict| self.verdicts.write(verdict));
        let mut first = pin!(verdicts.next().unwrap());
        assert!(poll!(&mut first).is_pending());
        wait_until("the first is written", async || self.world.waiting_count().await == 1).await;
        let mut others = pin!(join_all(verdicts));
        assert!(poll!(&mut others).is_pending(), "all are in the queue");
        blocking.batch_execute("ROLLBACK").await.unwrap();
        assert!(first.await.unwrap());
        others.await
    }

    async fn subjects(&self, query: &str) -> Vec<String> {
        self.world.client().query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }
}

/// A session that holds a lock on this table until it ends its transaction.
async fn locked(world: &World, table: &str) -> Client {
    let client = world.connect().await;
    client.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN SHARE MODE")).await.unwrap();
    client
}

fn random_id() -> String {
    let hex = format!("{:032x}", rand::random::<u128>());
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn new_unit(subject: &str, idempotency_key: Option<&str>) -> NewUnit {
    NewUnit {
        key: random_id(),
        resource: "manifests".to_owned(),
        subject: subject.to_owned(),
        destinations: vec!["rows".to_owned(), "board".to_owned()],
        spool_id: SPOOL.to_owned(),
        spool_name: random_id(),
        idempotency_key: idempotency_key.map(str::to_owned),
        content_hash: subject.as_bytes().to_vec(),
        traceparent: None,
        waits: false,
    }
}

/// All destinations keep the unit, with this document as its row.
fn verdict(unit: &Taken, document: &str) -> Verdict {
    let part = |destination: &String| PartOutcome {
        destination: destination.clone(),
        state: "stored",
        status: None,
        error: None,
    };
    Verdict {
        unit: unit.clone(),
        row: Some(Row { table: "manifests".to_owned(), data: document.to_owned() }),
        parts: unit.destinations.iter().map(part).collect(),
    }
}

#[tokio::test]
async fn a_group_in_which_a_row_is_refused_commits_the_others() {
    let queues = Queues::start().await;
    let units = queues.units(&["first", "a", "b", "refused", "c", "d"]).await;
    // JSON may contain a NUL, and a text of Postgres may not.
    let document = |unit: &Taken| if unit.subject == "refused" { r#"{"name":"\u0000"}"# } else { "{}" };
    let given = queues.give_together(units.iter().map(|unit| verdict(unit, document(unit))).collect()).await;
    assert!(matches!(&given[..], [Ok(true), Ok(true), Err(Unwritten::Refused(_)), Ok(true), Ok(true)]), "{given:?}");
    let open = queues.subjects("SELECT subject FROM units WHERE state <> 'committed'").await;
    assert_eq!(open, ["refused"]);
    let stored = queues.subjects("SELECT subject FROM manifests ORDER BY uow").await;
    assert_eq!(stored, ["first", "a", "b", "c", "d"]);
    let told =
        "SELECT data->>'subject' FROM staged_log_records WHERE action = 'commit' ORDER BY (data->>'uow')::bigint";
    assert_eq!(queues.subjects(told).await, stored);
    let pending = "SELECT DISTINCT subject FROM unit_parts JOIN units USING (uow) WHERE unit_parts.state = 'pending'";
    assert_eq!(queues.subjects(pending).await, ["refused"]);
}

#[tokio::test]
async fn a_lease_that_was_lost_in_a_group_writes_nothing_about_its_unit() {
    let queues = Queues::start().await;
    let mut units = queues.units(&["first", "a", "lost", "b"]).await;
    // Another worker has the unit now. Its verdict is in the same group, after that of the earlier holder.
    let again = queues.world.client().execute("UPDATE units SET lease = 2 WHERE subject = 'lost'", &[]).await;
    assert_eq!(again.unwrap(), 1);
    let newer = Taken { lease: 2, ..units[2].clone() };
    let mut verdicts: Vec<_> = units.drain(..).map(|unit| verdict(&unit, r#"{"holder":"earlier"}"#)).collect();
    verdicts[2].parts[0].state = "declined";
    verdicts.push(verdict(&newer, r#"{"holder":"newer"}"#));
    let given = queues.give_together(verdicts).await;
    assert!(matches!(&given[..], [Ok(true), Ok(false), Ok(true), Ok(true)]), "{given:?}");
    let row = queues.subjects("SELECT data->>'holder' FROM manifests WHERE subject = 'lost'").await;
    assert_eq!(row, ["newer"]);
    let parts = "SELECT p.state FROM unit_parts AS p JOIN units USING (uow) WHERE subject = 'lost'";
    assert_eq!(queues.subjects(parts).await, ["stored", "stored"]);
    let world = &queues.world;
    let records = "SELECT count(*) FROM staged_log_records WHERE data->>'subject' = 'lost'";
    assert_eq!(world.number(records).await, 1);
    assert_eq!(world.number("SELECT count(*) FROM units WHERE state = 'committed'").await, 4);
    let transactions = "SELECT count(DISTINCT transaction_id) FROM staged_log_records";
    assert_eq!(world.number(transactions).await, 2, "the first alone, and then the group");
}

#[tokio::test]
async fn a_verdict_reads_its_own_rows_only_even_by_a_plan_made_on_empty_tables() {
    const VERDICT_COUNT: i64 = 10;
    let queues = Queues::start().await;
    let settle = async |unit: Taken| queues.verdicts.write(verdict(&unit, "{}")).await;
    // The connection keeps its plan from the first verdict on.
    assert!(settle(queues.units(&["first"]).await.remove(0)).await.unwrap());
    let many = "INSERT INTO units (uow, unit_key, resource, subject, state, lease, spool_id, spool_name, content_hash)
                SELECT 1000 + n, gen_random_uuid(), 'manifests', n::text, 'fanned_out', 1, spool_id, 'file ' || n, ''
                FROM spools, generate_series(1, 20000) AS n;
                INSERT INTO unit_parts (uow, destination)
                SELECT uow, name FROM units, unnest(ARRAY['board', 'rows']) AS name WHERE uow > 1000";
    queues.world.client().batch_execute(many).await.unwrap();
    let counted = async |count: &str| {
        let tables = "pg_stat_user_tables WHERE relname IN ('units', 'unit_parts')";
        queues.world.number(&format!("SELECT sum(COALESCE({count}, 0))::bigint FROM {tables}")).await
    };
    // Postgres counts a little later.
    wait_until("the rows are counted", async || counted("n_tup_ins").await >= 60_000).await;
    let rows_before = counted("seq_tup_read + idx_tup_fetch").await;
    let written_before = counted("n_tup_upd").await;
    let given = join_all(queues.units(&["a"; VERDICT_COUNT as usize]).await.into_iter().map(settle)).await;
    assert!(given.iter().all(|given| *given.as_ref().unwrap()));
    // One reading of all open units would be 20,000 rows.
    let written = 3 * VERDICT_COUNT;
    wait_until("the verdicts are counted", async || counted("n_tup_upd").await >= written_before + written).await;
    let row_count = counted("seq_tup_read + idx_tup_fetch").await - rows_before;
    assert!(row_count <= 1000, "{row_count} rows for {VERDICT_COUNT} verdicts");
}

#[tokio::test]
async fn units_that_wait_for_a_destination_keep_no_other_from_being_taken() {
    const WAITING_COUNT: usize = 40;
    let queues = Queues::start().await;
    let client = queues.world.client();
    let open = "INSERT INTO destinations VALUES ('board', '', 5, now() + INTERVAL '5 seconds'), ('rows', '', 0, NULL)";
    client.batch_execute(open).await.unwrap();
    let new = |destination: &str| NewUnit {
        destinations: vec![destination.to_owned()],
        waits: true,
        ..new_unit(destination, None)
    };
    let waiting = (0..WAITING_COUNT).map(|_| new("board")).chain([new("rows")]);
    join_all(waiting.map(|unit| queues.accepts.write(unit))).await;
    // The unit that can be driven is the last to be due.
    client.execute("UPDATE units SET due_at = now() - INTERVAL '1 s' * (100 - uow)", &[]).await.unwrap();
    let subjects = async || {
        let taken = take(client, SPOOL, WAITING_COUNT / 2).await.unwrap();
        taken.into_iter().map(|unit| unit.subject).collect::<Vec<_>>()
    };
    assert_eq!(subjects().await, ["rows"]);
    assert_eq!(
        queues.world.number("SELECT count(*) FROM units WHERE due_at > now()").await as usize,
        WAITING_COUNT + 1
    );
    assert!(subjects().await.is_empty(), "they are put off");
    note_success(client, "board").await.unwrap();
    assert_eq!(subjects().await, vec!["board"; WAITING_COUNT / 2], "all are due when it is back");
}

#[tokio::test]
async fn requests_with_one_key_in_one_group_are_one_unit() {
    let queues = Queues::start().await;
    let blocking = locked(&queues.world, "units").await;
    let mut first = pin!(queues.accepts.write(new_unit("first", None)));
    assert!(poll!(&mut first).is_pending());
    wait_until("the first is written", async || queues.world.waiting_count().await == 1).await;
    let same = new_unit("a", Some("key"));
    let others = [new_unit("b", None), same.clone(), NewUnit { key: random_id(), spool_name: random_id(), ..same }];
    let others = others.into_iter().chain([new_unit("other", Some("key"))]);
    let mut others = pin!(join_all(others.map(|unit| queues.accepts.write(unit))));
    assert!(poll!(&mut others).is_pending());
    blocking.batch_execute("ROLLBACK").await.unwrap();
    first.await.unwrap();
    let accepted: Vec<_> = others.await.into_iter().map(|accepted| accepted.unwrap().unwrap()).collect();
    let [Accepted::New { .. }, Accepted::New { uow: made, .. }, Accepted::Known { uow, has_this_file, .. }, last] =
        &accepted[..]
    else {
        panic!("{accepted:?}")
    };
    assert_eq!((uow, *has_this_file, last), (made, false, &Accepted::KeyMismatch));
    assert_eq!(queues.world.number("SELECT count(*) FROM units").await, 3);
    assert_eq!(queues.world.number("SELECT count(*) FROM unit_parts").await, 6);
    assert_eq!(queues.world.number("SELECT count(DISTINCT created_at) FROM units").await, 2, "two transactions");
}

#[tokio::test]
async fn more_requests_than_may_wait_are_refused_and_the_others_are_accepted() {
    let queues = Queues::start().await;
    let blocking = locked(&queues.world, "units").await;
    let mut writes: Vec<_> =
        (0..2500).map(|number| Box::pin(queues.accepts.write(new_unit(&number.to_string(), None)))).collect();
    let mut refused_count = 0;
    let mut waiting = Vec::new();
    for mut write in writes.drain(..) {
        match poll!(&mut write) {
            std::task::Poll::Pending => waiting.push(write),
            std::task::Poll::Ready(Err(Unwritten::Overloaded)) => refused_count += 1,
            std::task::Poll::Ready(other) => panic!("{other:?}"),
        }
    }
    assert!(refused_count >= 400, "{refused_count}");
    blocking.batch_execute("ROLLBACK").await.unwrap();
    let accepted_count = waiting.len() as i64;
    assert!(join_all(waiting).await.iter().all(Result::is_ok));
    assert_eq!(queues.world.number("SELECT count(*) FROM units").await, accepted_count);
}

/// Whether the container waits for the lock while it accepts units. It also waits while it looks for units that are due.
async fn is_accepting(scene: &Scene) -> bool {
    scene.world.waiting_count_where("query LIKE '-- container::accept%'").await == 1
}

#[tokio::test]
async fn requests_side_by_side_share_their_transactions() {
    const REQUEST_COUNT: i64 = 16;
    let scene = Scene::start().await;
    let blocking = locked(&scene.world, "units").await;
    let requests: Vec<_> =
        (1..=REQUEST_COUNT).map(|ride_id| tokio::spawn(scene.post(&manifest(ride_id, &["Ada"])).send())).collect();
    wait_until("all are spooled", async || scene.spooled() as i64 == REQUEST_COUNT).await;
    wait_until("the first is accepted", async || is_accepting(&scene).await).await;
    blocking.batch_execute("ROLLBACK").await.unwrap();
    for request in requests {
        request.await.unwrap().unwrap();
    }
    assert_eq!(scene.world.number("SELECT count(*) FROM units").await, REQUEST_COUNT);
    // Some requests reach the queue after the table was unlocked.
    let transactions = scene.world.number("SELECT count(DISTINCT created_at) FROM units").await;
    assert!(transactions <= REQUEST_COUNT / 2, "{transactions} transactions");
}

#[tokio::test]
async fn a_unit_whose_client_leaves_while_it_is_accepted_is_driven_at_once() {
    let scene = Scene::start().await;
    let blocking = locked(&scene.world, "units").await;
    let request = tokio::spawn(scene.post(&manifest(7, &["Ada"])).send());
    wait_until("it is accepted", async || is_accepting(&scene).await).await;
    request.abort();
    wait_until("the client has left", async || request.is_finished()).await;
    blocking.batch_execute("ROLLBACK").await.unwrap();
    // The lease takes longer than this wait.
    wait_until("it is committed", async || scene.current(7).await.is_some()).await;
}

#[tokio::test]
async fn a_traceparent_that_cannot_be_read_is_left_out() {
    let scene = Scene::start().await;
    let response = scene.post(&manifest(7, &["Ada"])).header("traceparent", "00-none").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(scene.world.number("SELECT count(*) FROM units WHERE traceparent IS NULL").await, 1);
}
