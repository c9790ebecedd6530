//! The breakers of destinations: which units a destination that is back makes due, and which unit goes first.

use container::units::{choose_canaries, note_success};
use deadpool_postgres::Pool;
use tests::World;

/// The id of the spool of all units.
const SPOOL: &str = "6f2c1f0e-0000-4000-8000-000000000001";

/// The destinations `board` and `notices`, and units that need them.
struct Table {
    world: World,
    pool: Pool,
}

impl Table {
    /// The rows of the destinations: name, failures, and when their breakers let a unit try.
    async fn with(destinations: &str) -> Self {
        let world = World::new().await;
        let pool = connect::postgres::pool(&world.database_url().parse().unwrap(), "test", 1).unwrap();
        let rows = format!(
            "INSERT INTO spools (spool_id, place) VALUES ('{SPOOL}', 'here');
             INSERT INTO destinations (name, fingerprint, failure_count, open_until)
             SELECT name, '', failure_count, open_until FROM (VALUES {destinations}) AS d (name, failure_count, open_until)"
        );
        world.client().batch_execute(&rows).await.unwrap();
        Self { world, pool }
    }

    /// Adds a unit with parts at these destinations.
    async fn add(&self, uow: i64, state: &str, due_at: &str, destinations: &str) {
        let rows = format!(
            "INSERT INTO units (uow, unit_key, resource, subject, state, due_at, spool_id, spool_name, content_hash)
             VALUES ({uow}, gen_random_uuid(), 'manifests', '7', '{state}', {due_at}, '{SPOOL}', 'file {uow}', '');
             INSERT INTO unit_parts (uow, destination) SELECT {uow}, unnest(ARRAY[{destinations}])"
        );
        self.world.client().batch_execute(&rows).await.unwrap();
    }

    async fn choose(&self) {
        choose_canaries(&connect::postgres::take(&self.pool).await.unwrap(), SPOOL).await.unwrap();
    }

    async fn canary_of(&self, destination: &str) -> Option<i64> {
        let query = "SELECT canary FROM destinations WHERE name = $1";
        self.world.client().query_one(query, &[&destination]).await.unwrap().get(0)
    }
}

#[tokio::test]
async fn a_success_ends_the_waiting_for_a_breaker_and_no_pause_of_a_unit() {
    let pause = "now() + INTERVAL '1 hour'";
    for (open_until, due_count) in [("NULL::timestamptz", 0), ("now()", 1)] {
        let table = Table::with(&format!("('board', 1, {open_until}), ('notices', 0, NULL)")).await;
        table.add(1, "fail_queued", pause, "'board'").await;
        table.add(2, "fail_queued", pause, "'notices'").await;
        note_success(&connect::postgres::take(&table.pool).await.unwrap(), "board").await.unwrap();
        let due = table.world.number("SELECT count(*) FROM units WHERE due_at <= now()").await;
        assert_eq!(due, due_count, "open until {open_until}");
        assert_eq!(table.world.number("SELECT failure_count::bigint FROM destinations WHERE name = 'board'").await, 0);
    }
}

#[tokio::test]
async fn a_unit_that_another_breaker_holds_back_does_not_go_first() {
    let table = Table::with("('board', 9, now() + INTERVAL '1 hour'), ('notices', 9, now() - INTERVAL '1 s')").await;
    table.add(1, "queued", "now()", "'board', 'notices'").await;
    table.add(2, "fail_queued", "now() + INTERVAL '1 hour'", "'notices'").await;
    table.choose().await;
    assert_eq!((table.canary_of("notices").await, table.canary_of("board").await), (Some(2), None));
    assert_eq!(table.world.number("SELECT uow FROM units WHERE due_at <= now() AND uow = 2").await, 2);
}

#[tokio::test]
async fn a_unit_that_its_worker_has_lost_goes_first_if_no_other_can() {
    let table = Table::with("('board', 9, now() - INTERVAL '1 s')").await;
    table.add(1, "fanned_out", "now() + INTERVAL '1 minute'", "'board'").await;
    table.choose().await;
    assert_eq!(table.canary_of("board").await, None, "a worker has it");
    table.world.client().batch_execute("UPDATE units SET due_at = now()").await.unwrap();
    table.choose().await;
    assert_eq!(table.canary_of("board").await, Some(1));
}
