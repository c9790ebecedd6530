//! Reads Postgres all the time, without a proxy, and folds the log by itself. A broken invariant is reported as a violation at
//! once, and not only at the end.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use common::shutdown::{CancellationToken, sleep_or_stop};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{PartitionCount, Reader, Record};
use serde::Deserialize;
use tokio_postgres::Row;

use crate::bookings::{self, BookingRecords};
use crate::history::History;
use crate::log::{Log, Sum};
use crate::unit_records::UnitRecords;
use crate::wallet_records::WalletRecords;
use crate::world::World;
use crate::{unit_checks, wallet_checks, wallet_model};

/// The pause between two looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks between two counts of all rides. A count takes longer the more rides there are.
const LOOKS_A_COUNT: u64 = 20;

/// The checker's name as a consumer: the reaper keeps every record until the checker has read it.
const NAME: &str = "checker";

#[derive(Deserialize)]
struct Ride {
    id: i64,
    distance_mm: i64,
}

pub(crate) struct Checker {
    world: Arc<World>,
    history: Arc<History>,
    /// By partition.
    logs: Vec<Log>,
    /// Rides that have a record.
    rides: HashSet<i64>,
    /// The highest checkpoint seen of each consumer in each partition, since Postgres was started last.
    checkpoints: HashMap<(String, i32), i64>,
    /// When Postgres was started last.
    postgres_started_at: String,
    bookings: BookingRecords,
    wallets: WalletRecords,
    units: UnitRecords,
    look_count: u64,
}

impl Checker {
    /// Registers the checker as a consumer.
    pub async fn start(world: &Arc<World>, partitions: PartitionCount) -> Result<Self> {
        let query = "-- chaos::checker::start
                     INSERT INTO checkpoints (name, partition) SELECT $1, generate_series(0, log_partitions() - 1)";
        world.connect().await?.execute(query, &[&NAME]).await.context("registering the checker")?;
        Ok(Self {
            world: Arc::clone(world),
            history: Arc::clone(&world.history),
            logs: Log::all(partitions),
            rides: HashSet::new(),
            checkpoints: HashMap::new(),
            postgres_started_at: String::new(),
            bookings: BookingRecords::default(),
            wallets: WalletRecords::default(),
            units: UnitRecords::default(),
            look_count: 0,
        })
    }

    /// Looks until `stop`. Returns the checker, with everything that it has read.
    pub async fn watch(mut self, stop: CancellationToken) -> Self {
        let mut client = None;
        while sleep_or_stop(INTERVAL, &stop).await {
            // Postgres may be killed during a look. Then the look fails, and the next look starts at the same offset.
            if self.look_with(&mut client).await.is_err() {
                client = None;
            }
        }
        self
    }

    async fn look_with(&mut self, client: &mut Option<Client>) -> Result<()> {
        if client.is_none() {
            let fresh = self.world.connect().await?;
            pglog::prepare_session(&fresh).await?;
            *client = Some(fresh);
        }
        self.look(client.as_ref().context("no connection")?).await?;
        Ok(())
    }

    /// Looks once. Returns the consumers' rows.
    async fn look(&mut self, client: &Client) -> Result<Vec<Row>> {
        // Consumers are read first: the records that they have folded are then in the log.
        let consumers = client
            .query(
                "-- chaos::checker::look
                 SELECT name, last_offset, ride_count, total_distance_mm, digest, is_baseline,
                        pg_postmaster_start_time()::text, fold, partition
                 FROM checkpoints LEFT JOIN consumer_states USING (name, partition)
                 WHERE fold IN ('distance', 'history', 'wallets')",
                &[],
            )
            .await
            .context("reading the consumers")?;
        for index in 0..self.logs.len() {
            self.read_log(client, index).await?;
        }
        for row in &consumers {
            // A consumer's COMMIT does not wait for the disk. After a crash of Postgres, a checkpoint may be lower.
            let postgres_started_at: &str = row.get(6);
            if self.postgres_started_at != postgres_started_at {
                self.postgres_started_at = postgres_started_at.to_owned();
                self.checkpoints.clear();
            }
            self.check_place(row);
            let log = &mut self.logs[row.get::<_, i32>(8) as usize];
            match row.get(7) {
                "history" => log.check_archive(client, row.get(1), &self.history).await?,
                "distance" => log.check_state(row, &self.history),
                // Its state is in Redis, and certain at rest only.
                _ => {}
            }
        }
        self.look_count += 1;
        if self.look_count.is_multiple_of(LOOKS_A_COUNT) {
            for log in &self.logs {
                log.check_batches(client, &self.history).await?;
            }
            self.check_rides(client).await?;
            wallet_checks::check_sums(client, &self.history).await?;
            wallet_model::check_events(&self.world, client).await?;
            unit_checks::check_rows(client, &self.history).await?;
        }
        Ok(consumers)
    }

    /// Reads the records that were assigned since the last look. Offsets are contiguous, and each ride has one offset (I2).
    async fn read_log(&mut self, client: &Client, index: usize) -> Result<()> {
        let partition = self.logs[index].partition;
        let mut reader = match Reader::at(client, partition, self.logs[index].head() + 1).await {
            Ok(reader) => reader,
            Err(pglog::Error::Unassigned { .. }) => return Ok(()),
            Err(error) => return self.complain(error),
        };
        loop {
            let page = match reader.next_page(client, 1000).await {
                Ok(page) if page.is_empty() => break,
                Ok(page) => page,
                Err(error) => return self.complain(error),
            };
            for record in page.records() {
                self.take(&record, index);
            }
        }
        let query = "-- chaos::checker::read_log
                     UPDATE checkpoints SET last_offset = $2, updated_at = now() WHERE name = $1 AND partition = $3";
        client
            .execute(query, &[&NAME, &self.logs[index].head(), &partition])
            .await
            .context("moving the checker's checkpoint")?;
        Ok(())
    }

    /// Reports an error of the log as a violation, unless Postgres is away.
    fn complain(&self, error: pglog::Error) -> Result<()> {
        if !matches!(error, pglog::Error::Postgres(_)) {
            self.history.violation(&format!("I2: the log cannot be read: {error}"));
        }
        Err(error.into())
    }

    fn take(&mut self, record: &Record<'_>, index: usize) {
        let mut sum = self.logs[index].sum();
        match serde_json::from_str::<Ride>(record.data) {
            _ if record.object == "wallet" => self.wallets.take(record, &self.history),
            _ if record.object == "unit" => self.units.take(record, &self.history),
            _ if record.object != "ride" => self.bookings.take(record, &self.history),
            Ok(ride) => {
                sum.ride_count += 1;
                sum.total_distance_mm += ride.distance_mm;
                if !self.rides.insert(ride.id) {
                    self.history.violation(&format!("I2: ride {} has a second offset, {}", ride.id, record.offset));
                }
            }
            Err(error) => self.history.violation(&format!("record {} is no ride: {error}", record.offset)),
        }
        self.logs[index].push(record, sum, &self.history);
    }

    /// No consumer is ahead of the log, and no checkpoint ever goes back (I5).
    fn check_place(&mut self, row: &Row) {
        let (name, last_offset, partition): (String, i64, i32) = (row.get(0), row.get(1), row.get(8));
        let log = &self.logs[partition as usize];
        let (head, place) = (log.head(), &log.place);
        if last_offset > head {
            let text = format!("I4: {name} is at offset {last_offset}{place}, and the log ends at {head}");
            self.history.violation(&text);
        }
        let before = self.checkpoints.insert((name.clone(), partition), last_offset).unwrap_or(0);
        if last_offset < before {
            self.history.violation(&format!("I5: {name} went back from offset {before} to {last_offset}{place}"));
        }
    }

    /// The log's sum must never exceed SQL's.
    async fn check_rides(&self, client: &Client) -> Result<()> {
        let logged = self.sum();
        let sql = sql_sum(client).await?;
        if logged.ride_count > sql.ride_count || logged.total_distance_mm > sql.total_distance_mm {
            self.history.violation(&format!("I1: the log has {logged:?}, and SQL has {sql:?}"));
        }
        Ok(())
    }

    /// Waits after the last fault until every consumer has SQL's sum, at most `patience`. Then it compares everything again,
    /// from the first record. Returns the common sum.
    pub async fn settle(&mut self, patience: Duration) -> Result<Sum> {
        let deadline = tokio::time::Instant::now() + patience;
        let client = self.world.connect().await?;
        pglog::prepare_session(&client).await?;
        self.logs.iter_mut().for_each(Log::start_over);
        loop {
            // `look` reads the log, so it comes last: work that finished before it has all of its records there.
            let unfinished = bookings::unfinished(&client).await?;
            let unsettled = unit_checks::unfinished(&self.world, &client).await?;
            let is_all_cut = self.is_all_cut(&client).await?;
            let sql = sql_sum(&client).await?;
            let mut consumers = self.look(&client).await?;
            // The baseline is behind by design.
            consumers.retain(|row| !row.get::<_, bool>(5));
            let (logged, head, behind) = (self.sum(), self.head(), self.behind(&consumers));
            let checkpoint_count = self.world.folding().count() * self.logs.len();
            let all_agree = is_all_cut && logged == sql && behind.is_empty() && consumers.len() == checkpoint_count;
            let stale = wallet_model::stale(&self.world, &client).await?;
            if all_agree && unfinished.is_empty() && stale.is_empty() && unsettled.is_empty() {
                break;
            }
            if tokio::time::Instant::now() > deadline {
                self.history.violation(&format!(
                    "no convergence within {patience:?}: SQL has {sql:?}, the log {logged:?} at head {head}; {} {unfinished} {stale} \
                     {unsettled}",
                    behind.join(", ")
                ));
                break;
            }
            tokio::time::sleep(INTERVAL).await;
        }
        for log in &self.logs {
            log.check_batches(&client, &self.history).await?;
        }
        self.check_promises(&client).await?;
        bookings::check(&self.world, &client).await?;
        wallet_checks::check(&client, &self.world.wallets.ledger, &self.wallets, &self.history).await?;
        unit_checks::check(&self.world, &client, &self.units).await?;
        self.read_again(&client).await?;
        sql_sum(&client).await
    }

    /// Every confirmed ride must be in the table, and every ride in the table must have its record (I1).
    async fn check_promises(&self, client: &Client) -> Result<()> {
        let mut promised = self.world.promises.confirmed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut last_id = i64::MIN;
        loop {
            let rows = client
                .query(
                    "-- chaos::checker::check_promises
                     SELECT id, distance_mm FROM rides WHERE id > $1 ORDER BY id LIMIT 10000",
                    &[&last_id],
                )
                .await
                .context("reading rides")?;
            for row in &rows {
                let (id, distance_mm): (i64, i64) = (row.get(0), row.get(1));
                if !self.rides.contains(&id) {
                    self.history.violation(&format!("I1: ride {id} has no record"));
                }
                if promised.remove(&id).is_some_and(|promised_mm| promised_mm != distance_mm) {
                    self.history.violation(&format!("ride {id} was confirmed with another distance"));
                }
            }
            match rows.last() {
                Some(row) => last_id = row.get(0),
                None => break,
            }
        }
        if !promised.is_empty() {
            self.history.violation(&format!("{} confirmed rides are gone: {promised:?}", promised.len()));
        }
        Ok(())
    }

    /// Every record that is still in the log must be unchanged since its first read (I2).
    async fn read_again(&self, client: &Client) -> Result<()> {
        for log in &self.logs {
            loop {
                match log.compare(client, &self.history).await {
                    // The reaper still runs. The comparison starts again with the remaining records.
                    Err(pglog::Error::Reaped { .. }) => {}
                    Err(pglog::Error::Unassigned { .. }) | Ok(()) => break,
                    Err(error) => return self.complain(error),
                }
            }
        }
        Ok(())
    }

    async fn is_all_cut(&self, client: &Client) -> Result<bool> {
        for log in &self.logs {
            if pglog::is_anything_staged(client, log.partition).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The consumers that have not folded every record.
    fn behind(&self, consumers: &[Row]) -> Vec<String> {
        let behind = consumers.iter().filter_map(|row| {
            let (name, last_offset, partition): (String, i64, i32) = (row.get(0), row.get(1), row.get(8));
            let log = &self.logs[partition as usize];
            (last_offset < log.head()).then(|| format!("{name} is at {last_offset}{}", log.place))
        });
        behind.collect()
    }

    /// The sum over all partitions.
    fn sum(&self) -> Sum {
        self.logs.iter().map(Log::sum).fold(Sum::default(), |sum, part| Sum {
            ride_count: sum.ride_count + part.ride_count,
            total_distance_mm: sum.total_distance_mm + part.total_distance_mm,
        })
    }

    /// The number of records in the log.
    pub fn head(&self) -> i64 {
        self.logs.iter().map(Log::head).sum()
    }
}

async fn sql_sum(client: &Client) -> Result<Sum> {
    let row = client
        .query_one(
            "-- chaos::checker::sql_sum
             SELECT count(*), COALESCE(sum(distance_mm), 0)::bigint FROM rides",
            &[],
        )
        .await
        .context("counting rides")?;
    Ok(Sum { ride_count: row.get(0), total_distance_mm: row.get(1) })
}
