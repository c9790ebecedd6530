//! All faults by name, and the functions that strike.

use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use rand::rngs::StdRng;

use crate::world::World;
use crate::{strike_cluster, strike_network, strike_postgres, strike_process, strike_redis};

/// A fault. Flags and summary use these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// SIGKILL of an api.
    KillApi,
    /// SIGKILL of the streamer that leads.
    KillLeader,
    /// SIGKILL of the streamer that stands by.
    KillStandby,
    /// SIGKILL of a consumer.
    KillConsumer,
    /// SIGKILL of the consumer with the wallets.
    KillProjector,
    /// SIGKILL of the reaper.
    KillReaper,
    /// SIGKILL of the completer.
    KillCompleter,
    /// SIGKILL of the receipts.
    KillReceipts,
    /// SIGKILL of the payment processor.
    KillPayments,
    /// SIGKILL of a container.
    KillContainer,
    /// SIGKILL of the receiver of the containers' notices.
    KillNotices,
    /// The payment processor dies after it has charged and before it responds.
    DieCharging,
    /// An api dies at some point of a booking.
    DieBooking,
    /// SIGSTOP of the payment processor, and SIGCONT.
    StopPayments,
    /// SIGSTOP of a container, and SIGCONT.
    StopContainer,
    /// SIGSTOP of the receiver of notices for longer than a container waits for it, and SIGCONT.
    StopNotices,
    /// SIGSTOP of an api, and SIGCONT.
    StopApi,
    /// SIGSTOP of the streamer that leads, and SIGCONT.
    StopLeader,
    /// SIGSTOP of the streamer that stands by, and SIGCONT.
    StopStandby,
    /// SIGSTOP of a consumer, and SIGCONT.
    StopConsumer,
    /// SIGSTOP of the consumer with the wallets, and SIGCONT.
    StopProjector,
    /// The leader dies after it has cut a batch and before it publishes a record of it.
    DieAfterAssign,
    /// The leader dies after it has published half of a pipeline.
    DieMidPipeline,
    /// The leader dies directly after it has published a pipeline.
    DieAfterPublish,
    /// A consumer dies after folding, before it commits.
    DieBeforeCommit,
    /// A consumer dies after it has sent its commit and before the response.
    DieAtCommit,
    /// A consumer dies directly after the response to its commit.
    DieAfterCommit,
    /// A second process under a consumer's name.
    TwinConsumer,
    /// A second process with the wallets.
    TwinProjector,
    /// A streamer leads without the lock, beside the streamer that holds it.
    TwinLeader,
    /// FLUSHALL.
    Flushall,
    /// DEL of the stream.
    DelStream,
    /// DEL of a wallet's document, or of the mark that makes all documents certain.
    DelWallet,
    /// XTRIM of the stream to length 0.
    TrimStream,
    /// Redis is killed, and the last second of its append-only file is gone.
    RedisLosesASecond,
    /// Redis is killed, and comes back with older data.
    RedisPutBack,
    /// Redis is killed and away for a while.
    RedisAway,
    /// SIGSTOP of Redis, and SIGCONT.
    StopRedis,
    /// Redis is out of memory and refuses to write.
    RedisOom,
    /// Redis is a replica and refuses to write.
    RedisReadonly,
    /// Redis cannot save and refuses to write.
    RedisMisconf,
    /// The clock of Redis jumps forward or back by an hour.
    RedisClock,
    /// A node of the Redis Cluster is killed, and comes back before or after its replica has taken over.
    KillNode,
    /// SIGSTOP of a node of the Redis Cluster, and SIGCONT.
    StopNode,
    /// A master of the Redis Cluster hands over to its replica.
    HandOver,
    /// The slot of a stream moves to another node of the Redis Cluster.
    MoveSlot,
    /// Postgres is killed and started again at once.
    KillPostgres,
    /// Some connections to Postgres are terminated by the server.
    TerminateBackends,
    /// A transaction that wrote a ride stays open.
    LongTransaction,
    /// Many transactions that commit late, in any order.
    LateCommitters,
    /// A process's connections are cut.
    NetCut,
    /// A process cannot reach a server.
    NetAway,
    /// Everything that a process sends and receives is delayed.
    NetSlow,
    /// No byte arrives for a while, and the connections stay open.
    NetSilent,
    /// A process's connections close on the server's side only.
    NetHalfOpen,
    /// Connections break after a number of bytes, in the middle of a message.
    NetCutAfterBytes,
    /// The connection breaks when a commit is about to be sent.
    NetCutBeforeCommit,
    /// The connection breaks after a commit was sent and before the response.
    NetCutAfterCommit,
}

impl Fault {
    /// The faults that need a Redis Cluster.
    pub const OF_CLUSTER: [Self; 4] = [Self::KillNode, Self::StopNode, Self::HandOver, Self::MoveSlot];

    /// The name of the fault in flags.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The faults that this machine can strike with, without a Redis Cluster, and a message about those that it cannot.
    pub fn available() -> (Vec<Self>, Option<&'static str>) {
        let all = Self::value_variants().iter().copied().filter(|fault| !Self::OF_CLUSTER.contains(fault));
        if launcher::find_clock_library().is_some() {
            return (all.collect(), None);
        }
        let without = all.filter(|fault| *fault != Self::RedisClock).collect();
        (without, Some("redis-clock is left out: it needs libfaketime (apt-get install libfaketime)"))
    }

    /// Strikes, and repairs everything that does not recover by itself. Returns the details for the history.
    ///
    /// # Errors
    /// The fault is impossible at the moment, because of another fault.
    pub(crate) async fn strike(self, world: &Arc<World>, rng: &mut StdRng) -> Result<String> {
        use Fault as F;
        match self {
            F::KillApi
            | F::KillLeader
            | F::KillStandby
            | F::KillConsumer
            | F::KillProjector
            | F::KillReaper
            | F::KillCompleter
            | F::KillReceipts
            | F::KillPayments
            | F::KillContainer
            | F::KillNotices => strike_process::kill(world, self, rng).await,
            F::StopApi
            | F::StopLeader
            | F::StopStandby
            | F::StopConsumer
            | F::StopProjector
            | F::StopPayments
            | F::StopContainer
            | F::StopNotices => strike_process::stop(world, self, rng).await,
            F::DieAfterAssign
            | F::DieMidPipeline
            | F::DieAfterPublish
            | F::DieBeforeCommit
            | F::DieAtCommit
            | F::DieAfterCommit => strike_process::die_at(world, self, rng).await,
            F::DieCharging => strike_process::die_charging(world).await,
            F::DieBooking => strike_process::die_booking(world, rng).await,
            F::TwinConsumer | F::TwinProjector | F::TwinLeader => strike_process::twin(world, self, rng).await,
            F::Flushall | F::DelStream | F::TrimStream => strike_redis::lose(world, self, rng).await,
            F::KillNode | F::StopNode | F::HandOver | F::MoveSlot => strike_cluster::strike(world, self, rng).await,
            F::DelWallet => strike_redis::lose_wallet(world, rng).await,
            F::RedisLosesASecond | F::RedisPutBack | F::RedisAway | F::StopRedis => {
                strike_redis::restart(world, self, rng).await
            }
            F::RedisOom | F::RedisReadonly | F::RedisMisconf => strike_redis::refuse(world, self, rng).await,
            F::RedisClock => strike_redis::step_clock(world, rng).await,
            F::KillPostgres => strike_postgres::kill(world).await,
            F::TerminateBackends => strike_postgres::terminate(world, rng).await,
            F::LongTransaction => strike_postgres::long_transaction(world, rng).await,
            F::LateCommitters => strike_postgres::late_committers(world, rng).await,
            F::NetCut
            | F::NetAway
            | F::NetSlow
            | F::NetSilent
            | F::NetHalfOpen
            | F::NetCutAfterBytes
            | F::NetCutBeforeCommit
            | F::NetCutAfterCommit => strike_network::strike(world, self, rng).await,
        }
    }
}
