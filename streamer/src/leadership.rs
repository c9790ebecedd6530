//! Leadership: one streamer publishes a partition, and a second one does no harm.
//!
//! # Owner
//!
//! The leader of a partition holds an advisory lock of Postgres. The lock belongs to the session on which the leader also
//! cuts batches: a leader that loses this session loses the lock with it, and cannot cut another batch.
//!
//! # States
//!
//! ```text
//! disconnected ───connect───▶ standing by ───lock taken───▶ leading
//!      ▲                           │                           │
//!      └─ error of Postgres, no answer in 45 s, 10 s without Redis
//! ```
//!
//! A streamer that stands by asks for the lock twice a second. The lock ends with the session, and the session ends with
//! the process. A leader that loses Redis keeps its lock and connects again. After ten seconds without success it ends the
//! session, because another streamer may reach Redis. It does not ask for the lock in the next 1.5 s, so a streamer that
//! stands by gets it. If no other streamer runs, the same one leads again. It cuts batches all the time.
//!
//! # Hints
//!
//! The session with the lock never listens for hints. Postgres sends each hint to every session that listens. A process
//! that is stopped reads none of them, and when its socket is full the server waits until it reads. No time limit of
//! Postgres ends a session that waits so. On a unix socket a stopped leader would keep the lock for ever. Therefore
//! [`hints`](crate::hints) has a session of its own.
//!
//! # Window of trust
//!
//! A streamer that has taken the lock believes that it leads for as long as its session answers; it does not ask again.
//! If its machine is gone or its process is stopped, Postgres must end the session although the connection is not closed.
//! It does so 15 s after the session's last statement, and after 20 s in which the peer acknowledges nothing. Until
//! then no streamer leads: new records wait in `staged_log_records`, and consumers read the batches that were cut.
//!
//! # Two leaders
//!
//! A leader that was stopped and goes on after its session has ended still believes that it leads, until its next
//! statement fails. It may have a page in hand and send it. Another streamer leads by then. Three things keep this
//! harmless:
//!
//! - **Cutting is a compare-and-set.** The primary key of `log_batches` is the batch's first offset. Two leaders that cut
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
//! | the leader is killed | its session closes; another streamer leads within half a second |
//! | the leader is stopped, or its machine is gone | another streamer leads when Postgres ends the session, within 20 s |
//! | Postgres fails over or becomes read-only | all streamers connect anew, and ask the new primary for the lock |
//! | Redis is away | the leader cuts batches and tries again; consumers read from Postgres |
//! | only the leader cannot reach Redis | after ten seconds another streamer leads |

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Partition;

/// How often a streamer that stands by asks for the leadership: the length of the pause when a leader dies.
pub(crate) const STANDBY_WAIT: Duration = Duration::from_millis(500);

/// The limits of the session, see "Window of trust": a leader asks ten times a second, so a session that is silent for 15 s
/// is abandoned. Counting a huge backlog may take longer than a statement of other processes, though not longer than a
/// step.
const SESSION_LIMITS: &str =
    "SET idle_session_timeout = '15s'; SET tcp_user_timeout = '20s'; SET statement_timeout = '40s'";

/// A session with Postgres that leads, or asks to.
pub(crate) struct LeaderSession {
    /// The connection.
    pub client: Client,
    leads: bool,
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
    /// Postgres is away, or the tables are of another version.
    pub async fn connect(config: &tokio_postgres::Config, policy: LockPolicy) -> Result<Self> {
        let client = connect::postgres::connect(config, "streamer", || {}).await?;
        client.batch_execute(SESSION_LIMITS).await.context("setting up the session")?;
        pglog::prepare_session(&client).await.context("setting up the session")?;
        Ok(Self { client, leads: policy == LockPolicy::Ignore })
    }

    /// Whether this session led when it was last asked.
    pub fn is_leading(&self) -> bool {
        self.leads
    }

    /// Whether this session leads. If it does not, it asks for the lock, and does not wait for it.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn leads(&mut self, partition: Partition) -> Result<bool> {
        if !self.leads {
            let row = self
                .client
                .query_one(
                    "-- streamer::leads
                     SELECT pg_try_advisory_lock($1 # log_key(), $2)",
                    &[&pglog::LEADER_LOCK, &partition],
                )
                .await
                .context("asking for the leadership")?;
            self.leads = row.get(0);
        }
        Ok(self.leads)
    }
}
