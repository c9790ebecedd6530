//! Leadership: each partition is published by one streamer, and a second one does no harm.
//!
//! # Owner
//!
//! The leader of a partition holds an advisory lock of Postgres. The lock belongs to the session on which the leader also
//! cuts batches: a leader that loses this session loses its locks with it, and cannot cut another batch.
//!
//! # States of a streamer
//!
//! ```text
//! disconnected ───connect───▶ standing by ◀──locks taken, given back──▶ leading
//!      ▲                           │                                      │
//!      └── error of Postgres, no answer in 45 s, 10 s without Redis ──────┘
//! ```
//!
//! A streamer that stands by asks for locks twice a second. The locks end with the session, and the session ends with the
//! process. A leader that loses Redis keeps its locks and connects again. After ten seconds without success it ends the
//! session, because another streamer may reach Redis. It asks for no lock in the next 1.5 s, so a streamer that
//! stands by gets them. If no other streamer runs, the same one leads again. It cuts batches all the time.
//!
//! # Sharing
//!
//! If the log has several partitions, streamers share them, and each looks at the locks of all twice a second.
//! [`share`](crate::share) has the rules. A streamer takes part as soon as a node of Redis has answered it. From then on it holds a
//! shared lock, which Postgres takes away with the session. It leaves only if no node of Redis answers for ten seconds: one dead
//! node moves no partition. While no streamer takes part, any streamer leads what is free. So every partition is led while a
//! streamer lives that reaches Postgres (P2), and batches are cut while Redis is away.
//!
//! A partition is given back between two steps, when no page of it is under way. Locks stack: a lock that was taken twice has to be
//! given back twice. So a streamer never asks for one that it holds, and each look reads from Postgres which ones those are.
//!
//! # Hints
//!
//! The session with the locks never listens for hints. Postgres sends each hint to every session that listens. A process
//! that is stopped reads none of them, and when its socket is full the server waits until it reads. No time limit of
//! Postgres ends a session that waits so. On a unix socket a stopped leader would keep its locks for ever. Therefore
//! [`hints`](crate::hints) has a session of its own.
//!
//! # Window of trust
//!
//! A streamer believes that it leads for as long as its session answers. If its machine is gone or its process is stopped,
//! Postgres must end the session although the connection is not closed. It does so 15 s after the session's last statement,
//! and after 20 s in which the peer acknowledges nothing. Until then its partitions have no leader: new records wait in
//! `staged_log_records`, and consumers read the batches that were cut.
//!
//! # Two leaders
//!
//! A leader that was stopped and goes on after its session has ended still believes that it leads, until its next
//! statement fails. It may have a page in hand and send it. Another streamer leads by then. Three things keep this
//! harmless:
//!
//! - **Cutting is a compare-and-set.** The primary key of `log_batches` contains the batch's first offset. Two leaders that cut
//!   after the same batch collide on it: one commits, the other fails (I2).
//! - **The order is fixed before anything is published.** Both leaders publish the same records under the same offsets,
//!   whenever they read them.
//! - **The stream's ids only grow.** Redis refuses an entry whose id is not greater than the last one, so the stream never
//!   has an entry twice or out of order. If two pipelines interleave, it may lack some: consumers heal such a hole
//!   from Postgres (I6).
//!
//! A leader whose entries are refused looks at the stream's end before it publishes on. `--lead-without-lock` makes
//! this case on purpose, for tests.
//!
//! # Failures
//!
//! | failure | effect |
//! | --- | --- |
//! | a leader is killed | its session closes; other streamers lead its partitions within half a second |
//! | a leader is stopped, or its machine is gone | others lead when Postgres ends the session, within 20 s |
//! | Postgres fails over or becomes read-only | all streamers connect anew, and ask the new primary for locks |
//! | Redis is away | leaders cut batches and try again; consumers read from Postgres |
//! | one node of a Redis Cluster is away | its partitions wait for its successor; all others are published |
//! | only one streamer cannot reach Redis | after ten seconds others lead its partitions |

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::stay_down::StayDown;
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Identity, Partition, PartitionCount, Partitions, Session};

use crate::share::{Locks, Wanted, decide};

/// How often a streamer that stands by asks for the leadership: the length of the pause when a leader dies.
pub(crate) const STANDBY_WAIT: Duration = Duration::from_millis(500);

/// How often a streamer that shares partitions looks at the locks of all. It is a little shorter than the pause of a streamer that
/// stands by, so that each of its steps looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(400);

/// The limits of the session, see "Window of trust": a leader asks ten times a second, so a session that is silent for 15 s
/// is abandoned. Counting a huge backlog may take longer than a statement of other processes, though not longer than a
/// step.
const SESSION_LIMITS: &str =
    "SET idle_session_timeout = '15s'; SET tcp_user_timeout = '20s'; SET statement_timeout = '40s'";

/// A session with Postgres that leads partitions, or asks to.
pub(crate) struct LeaderSession {
    /// The connection.
    pub client: Client,
    /// What the log is.
    pub log: Identity,
    wanted: Wanted,
    policy: LockPolicy,
    led: BTreeSet<Partition>,
    /// Led, and to be given back.
    excess: BTreeSet<Partition>,
    is_inside: bool,
    looked_at: Option<Instant>,
}

/// Whether a streamer needs the lock to lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockPolicy {
    /// It leads while it holds the lock.
    Require,
    /// It leads at once: the wrong leader that the design must bear.
    Ignore,
}

impl LeaderSession {
    /// Connects.
    ///
    /// # Errors
    /// Postgres is away, or the tables are of another version. [`StayDown`] if the log lacks one of the partitions.
    pub async fn connect(config: &tokio_postgres::Config, partitions: &Partitions, policy: LockPolicy) -> Result<Self> {
        let client = connect::postgres::connect(config, "streamer", || {}).await?;
        client.batch_execute(SESSION_LIMITS).await.context("setting up the session")?;
        let log = pglog::prepare_session(&client).await.context("setting up the session")?;
        let is_pinned = *partitions != Partitions::All;
        let wanted = partitions.of(log.partitions).map_err(|error| StayDown(error.into()))?;
        let led = if policy == LockPolicy::Ignore { wanted.iter().copied().collect() } else { BTreeSet::new() };
        Ok(Self {
            client,
            log,
            wanted: Wanted { partitions: wanted, is_pinned },
            policy,
            led,
            excess: BTreeSet::new(),
            is_inside: false,
            looked_at: None,
        })
    }

    /// The partitions that it leads, as far as it knows.
    pub fn led(&self) -> &BTreeSet<Partition> {
        &self.led
    }

    /// Those of them that it is to give back.
    pub fn excess(&self) -> &BTreeSet<Partition> {
        &self.excess
    }

    /// The partitions that it is to work on.
    pub fn wanted(&self) -> &[Partition] {
        &self.wanted.partitions
    }

    /// Whether it is a member, or has claimed its partitions. In a log of one partition there is nothing to share.
    pub fn is_inside(&self) -> bool {
        self.is_inside
    }

    /// Whether the log has partitions to share.
    pub fn is_shared(&self) -> bool {
        self.log.partitions != PartitionCount::ONE
    }

    /// Whether it should [`look`](Self::look) at the locks: the leader of a log's only partition need not.
    pub fn is_look_due(&self) -> bool {
        match self.policy {
            LockPolicy::Ignore => false,
            LockPolicy::Require if self.is_shared() => self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL),
            LockPolicy::Require => self.led.is_empty(),
        }
    }

    /// Asks for the partitions that are free, up to its share, and decides which ones to give back. It waits for no lock. Once it
    /// reaches Redis, it takes part in the sharing.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn look(&mut self, reaches_redis: bool) -> Result<()> {
        self.looked_at = Some(Instant::now());
        if !self.is_shared() {
            self.led = self.ask_for(&self.wanted.partitions, 1).await?.into_iter().collect();
            return Ok(());
        }
        let mut locks = self.locks().await?;
        if reaches_redis && !locks.is_inside {
            self.enter().await?;
            locks = self.locks().await?;
        }
        let change = decide(&self.wanted, self.log.partitions.number() as usize, &locks);
        let mut led = locks.own;
        if !change.ask_for.is_empty() {
            led.extend(self.ask_for(&change.ask_for, change.take_count as i64).await?);
        }
        self.is_inside = locks.is_inside;
        self.led = led;
        self.excess = change.give_back;
        Ok(())
    }

    /// Gives back those partitions of the [`excess`](Self::excess) that are `free` of work.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn give_back(&mut self, free: impl Fn(Partition) -> bool) -> Result<()> {
        let partitions: Vec<Partition> = self.excess.iter().copied().filter(|partition| free(*partition)).collect();
        if partitions.is_empty() {
            return Ok(());
        }
        self.client
            .execute(
                "-- streamer::give_back
                 SELECT pg_advisory_unlock($1 # log_key(), number) FROM unnest($2::int[]) AS number",
                &[&pglog::LEADER_LOCK, &partitions],
            )
            .await
            .context("giving partitions back")?;
        for partition in partitions {
            self.led.remove(&partition);
            self.excess.remove(&partition);
        }
        Ok(())
    }

    /// Takes the locks of at most `count_max` of these partitions, without waiting.
    async fn ask_for(&self, partitions: &[Partition], count_max: i64) -> Result<Vec<Partition>> {
        let rows = self
            .client
            .query(
                "-- streamer::leads
                 SELECT number FROM unnest($2::int[]) AS number
                 WHERE pg_try_advisory_lock($1 # log_key(), number) LIMIT $3",
                &[&pglog::LEADER_LOCK, &partitions, &count_max],
            )
            .await
            .context("asking for the leadership")?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Becomes a member, or claims its partitions.
    async fn enter(&self) -> Result<()> {
        let claims = || self.wanted.partitions.iter().map(|partition| partition.number() + 1).collect();
        let numbers: Vec<i32> = if self.wanted.is_pinned { claims() } else { vec![0] };
        self.client
            .execute(
                "-- streamer::enter
                 SELECT pg_try_advisory_lock_shared($1 # log_key(), number) FROM unnest($2::int[]) AS number",
                &[&pglog::MEMBER_LOCK, &numbers],
            )
            .await
            .context("entering the membership")?;
        Ok(())
    }

    /// The locks of all streamers. Its own are among them, as Postgres knows them: a lock that is asked for twice would have to be
    /// given back twice.
    async fn locks(&self) -> Result<Locks> {
        let row = self
            .client
            .query_one(
                "-- streamer::locks
                 -- Once, and not for each lock of the server.
                 WITH kinds AS MATERIALIZED (
                     SELECT (($1 # log_key())::bigint & 4294967295)::oid AS leader,
                            (($2 # log_key())::bigint & 4294967295)::oid AS member
                 ), locks AS (
                     SELECT classid = leader AS leads, objid::int AS number, pid = pg_backend_pid() AS is_own
                     FROM kinds, pg_locks
                     WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND classid IN (leader, member)
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                 )
                 SELECT array_agg(number) FILTER (WHERE leads AND is_own) AS own,
                        array_agg(number) FILTER (WHERE leads AND NOT is_own) AS of_others,
                        array_agg(number - 1) FILTER (WHERE NOT leads AND NOT is_own AND number > 0) AS claimed,
                        count(*) FILTER (WHERE NOT leads AND number = 0) AS member_count,
                        count(*) FILTER (WHERE NOT leads AND is_own) > 0 AS is_inside
                 FROM locks",
                &[&pglog::LEADER_LOCK, &pglog::MEMBER_LOCK],
            )
            .await
            .context("looking at the locks of all streamers")?;
        let set = |column: &str| row.get::<_, Option<Vec<Partition>>>(column).into_iter().flatten().collect();
        Ok(Locks {
            own: set("own"),
            of_others: set("of_others"),
            claimed: set("claimed"),
            member_count: row.get::<_, i64>("member_count") as usize,
            is_inside: row.get("is_inside"),
        })
    }
}
