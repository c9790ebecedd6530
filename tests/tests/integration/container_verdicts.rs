//! The verdicts on units, compared with all that is kept elsewhere: each destination, the log records, the spool.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;
use redis::AsyncTypedCommands;
use serde_json::Value;
use tests::{Process, binary, wait_long_until, wait_until};
use tokio::process::Command;

use crate::container_fixture::{PATIENCE, Scene, files};

/// A unit whose verdict is final.
struct Settled {
    uow: i64,
    key: String,
    subject: String,
    is_committed: bool,
    attempt: i32,
    /// The state of each part.
    parts: BTreeMap<String, String>,
}

impl Settled {
    /// The name under which destinations know the attempt that counts.
    fn name(&self) -> String {
        format!("{}-{}", self.key, self.attempt)
    }
}

impl Scene {
    /// SIGKILL of the container.
    pub async fn kill_container(&mut self) {
        self.container.signal(Signal::SIGKILL);
        self.container.ended().await;
    }

    /// Waits until the container has died by its own hand.
    pub async fn died(&mut self) {
        assert_eq!(self.container.ended().await.signal(), Some(9), "{}", self.container.output());
    }

    /// SIGKILL of the container, unless it has died.
    pub async fn kill_container_if_it_runs(&mut self) {
        if self.container.is_running() {
            self.container.signal(Signal::SIGKILL);
        }
        self.container.ended().await;
    }

    /// Lets the leases of processes that are gone run out.
    pub async fn end_leases(&self) {
        let statement =
            "UPDATE units SET due_at = now() WHERE due_at > now() AND state IN ('fanned_out', 'rolling_back')";
        self.world.client().execute(statement, &[]).await.unwrap();
    }

    /// Waits until every unit is final. Dead units are retried as a person would do it.
    pub async fn settle(&self) {
        wait_long_until(PATIENCE, "every unit is final", async || {
            let count = |state| format!("SELECT count(*) FROM units WHERE settled_at IS NULL AND state {state}");
            if self.world.number(&count("= 'dead'")).await > 0 {
                self.retry_all().await;
            }
            // The pauses alone: a unit that is leased has a holder now.
            let statement = "UPDATE units SET due_at = now() WHERE state = 'fail_queued' AND due_at > now()";
            self.world.client().execute(statement, &[]).await.unwrap();
            self.world.number(&count("IS NOT NULL")).await == 0
        })
        .await;
    }

    /// `container units retry --all`.
    async fn retry_all(&self) {
        let mut command = Command::new(binary("container"));
        command.args(["units", "retry", "--all"]).env("DATABASE_URL", self.world.database_url_of("operator"));
        Process::spawn("container units", command).succeed().await;
    }

    /// Asserts that every destination equals the verdicts: it has the parts of committed units, each once, and no others. The log
    /// has one record per attempt, and the spool is empty.
    pub async fn assert_verdicts(&self) {
        let units = self.settled().await;
        let committed: Vec<&Settled> = units.iter().filter(|unit| unit.is_committed).collect();
        for unit in &units {
            let whole = unit.parts.values().all(|state| matches!(state.as_str(), "stored" | "declined"));
            let nothing = unit.parts.values().all(|state| state != "stored");
            assert!(if unit.is_committed { whole } else { nothing }, "unit {}: {:?}", unit.uow, unit.parts);
        }
        self.assert_board(&committed, &self.assert_rows(&committed).await).await;
        self.assert_photos(&committed);
        let stored = |unit: &&&Settled| unit.parts.get("notices").is_some_and(|state| state == "stored");
        let told: BTreeSet<String> = committed.iter().filter(stored).map(|unit| unit.name()).collect();
        let notices = self.notices().await;
        let name = |notice: &Value| format!("{}-{}", notice["unit"].as_str().unwrap(), notice["attempt"]);
        let kept: BTreeSet<String> = notices.iter().filter(|told| told["state"] == "stored").map(name).collect();
        assert_eq!(kept, told, "the receiver has the committed attempts");
        self.assert_records(&units).await;
        wait_until("the spool is empty", async || self.spooled() == 0).await;
    }

    /// The units, all of which are final.
    async fn settled(&self) -> Vec<Settled> {
        let query = "SELECT uow, unit_key::text, subject, state, attempt,
                (SELECT json_object_agg(destination, p.state)::text FROM unit_parts AS p WHERE p.uow = u.uow)
            FROM units AS u ORDER BY uow";
        let rows = self.world.client().query(query, &[]).await.unwrap();
        let settled = rows.iter().map(|row| {
            let (uow, state): (i64, String) = (row.get(0), row.get("state"));
            assert!(["committed", "rejected", "dropped"].contains(&state.as_str()), "unit {uow} is {state}");
            Settled {
                uow,
                key: row.get(1),
                subject: row.get(2),
                is_committed: state == "committed",
                attempt: row.get(4),
                parts: serde_json::from_str(row.get(5)).unwrap(),
            }
        });
        settled.collect()
    }

    /// The table has a row per committed unit. Returns the passengers of each.
    async fn assert_rows(&self, committed: &[&Settled]) -> BTreeMap<i64, i64> {
        let query = "SELECT uow, subject, jsonb_array_length(data -> 'passengers')::bigint FROM manifests";
        let rows = self.world.client().query(query, &[]).await.unwrap();
        let kept: BTreeMap<i64, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let expected: BTreeMap<i64, String> = committed.iter().map(|unit| (unit.uow, unit.subject.clone())).collect();
        assert_eq!(kept, expected, "the table has the committed units");
        rows.iter().map(|row| (row.get(0), row.get(2))).collect()
    }

    /// The folder has a file per committed attempt that has a photo. An empty file is a tombstone.
    fn assert_photos(&self, committed: &[&Settled]) {
        let photos = files(&self.folder.join("data/photos"));
        let whole = photos.iter().filter(|path| path.metadata().unwrap().len() > 0);
        let kept: BTreeSet<String> = whole.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        let stored = |unit: &&&Settled| unit.parts.get("photos").is_some_and(|state| state == "stored");
        let expected: BTreeSet<String> = committed.iter().filter(stored).map(|unit| unit.name()).collect();
        assert_eq!(kept, expected, "the folder has the photos of the committed attempts");
    }

    /// The board has an arrival per committed attempt, and shows the newest of each subject.
    async fn assert_board(&self, committed: &[&Settled], passengers: &BTreeMap<i64, i64>) {
        let (mut redis, prefix) = (self.world.redis().await, self.world.stream_name());
        let (mut kept, mut expected) = (BTreeSet::new(), BTreeSet::new());
        let arrivals: Vec<String> = redis.keys(format!("{prefix}:arrivals:*")).await.unwrap();
        for key in arrivals {
            kept.extend(redis.zrange(&key, 0, -1).await.unwrap());
        }
        let (mut newest, mut shown) = (BTreeMap::new(), BTreeMap::new());
        for unit in committed {
            let count = passengers[&unit.uow];
            expected.insert(format!("{}.{}.{count}", unit.key, unit.attempt));
            newest.insert(unit.subject.clone(), count);
        }
        assert_eq!(kept, expected, "the board has the committed attempts");
        for (subject, count) in redis.zrange_withscores(format!("{prefix}:board"), 0, -1).await.unwrap() {
            shown.insert(subject, count as i64);
        }
        assert_eq!(shown, newest, "the board shows the newest committed unit of each subject");
    }

    /// The log has one record per attempt, and the last one is the final verdict.
    async fn assert_records(&self, units: &[Settled]) {
        let query = "SELECT (data ->> 'uow')::bigint, (data ->> 'attempt')::int, action
            FROM staged_log_records WHERE object = 'unit' ORDER BY id";
        let mut records = BTreeMap::<i64, Vec<(i32, String)>>::new();
        for row in self.world.client().query(query, &[]).await.unwrap() {
            records.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
        }
        for unit in units {
            let records = records.remove(&unit.uow).unwrap_or_default();
            let attempts: Vec<i32> = records.iter().map(|(attempt, _)| *attempt).collect();
            assert_eq!(attempts, Vec::from_iter(1..=unit.attempt), "unit {}: {records:?}", unit.uow);
            let verdict = if unit.is_committed { "commit" } else { "rejected" };
            assert_eq!(records.last().unwrap().1, verdict, "unit {}: {records:?}", unit.uow);
            let is_final = |action: &str| matches!(action, "commit" | "rejected");
            assert_eq!(records.iter().filter(|(_, action)| is_final(action)).count(), 1, "{records:?}");
        }
        assert!(records.is_empty(), "records without a unit: {records:?}");
    }
}
