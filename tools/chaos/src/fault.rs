//! Every fault there is, by name, and who strikes it.

use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use rand::rngs::StdRng;

use crate::world::World;
use crate::{strike_network, strike_postgres, strike_process, strike_redis};

/// What can go wrong. The names are those of the flags and of the summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// SIGKILL of the api.
    KillApi,
    /// SIGKILL of the streamer that leads.
    KillLeader,
    /// SIGKILL of the streamer that stands by.
    KillStandby,
    /// SIGKILL of a consumer.
    KillConsumer,
    /// SIGKILL of the reaper.
    KillReaper,
    /// SIGKILL of the completer.
    KillCompleter,
    /// SIGKILL of the receipts.
    KillReceipts,
    /// SIGKILL of the payment processor.
    KillPayments,
    /// The payment processor dies when it has charged, before it answers.
    DieCharging,
    /// The api dies at some point of a booking.
    DieBooking,
    /// SIGSTOP of the payment processor, and SIGCONT.
    StopPayments,
    /// SIGSTOP of the api, and SIGCONT.
    StopApi,
    /// SIGSTOP of the streamer that leads, and SIGCONT.
    StopLeader,
    /// SIGSTOP of the streamer that stands by, and SIGCONT.
    StopStandby,
    /// SIGSTOP of a consumer, and SIGCONT.
    StopConsumer,
    /// The leader dies after it cut a batch, before anything of it is published.
    DieAfterAssign,
    /// The leader dies when half of a pipeline is in the stream.
    DieMidPipeline,
    /// The leader dies when a pipeline is in the stream, before anything else.
    DieAfterPublish,
    /// A consumer dies after folding, before it commits.
    DieBeforeCommit,
    /// A consumer dies when its commit is sent and not answered.
    DieAtCommit,
    /// A consumer dies when its commit was answered.
    DieAfterCommit,
    /// A second process under a consumer's name.
    TwinConsumer,
    /// A streamer that leads without the lock, beside the one that has it.
    TwinLeader,
    /// FLUSHALL.
    Flushall,
    /// DEL of the stream.
    DelStream,
    /// XTRIM of the stream to nothing.
    TrimStream,
    /// Redis is killed, and the last second of its append-only file is gone.
    RedisLosesASecond,
    /// Redis is killed, and comes back with data of some time ago.
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
    /// The clock of Redis jumps, by an hour forth or back.
    RedisClock,
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
    /// What a process sends and receives is late.
    NetSlow,
    /// Nothing arrives for a while, and nobody is told.
    NetSilent,
    /// A server sees a process's connections closed, and the process does not.
    NetHalfOpen,
    /// Connections break after a number of bytes, in the middle of something.
    NetCutAfterBytes,
    /// The connection breaks when a commit is about to be sent.
    NetCutBeforeCommit,
    /// The connection breaks when a commit was sent, before the answer.
    NetCutAfterCommit,
}

impl Fault {
    /// Its name as a flag.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Every fault that this machine can strike, and those it cannot, with the reason.
    pub fn available() -> (Vec<Self>, Option<&'static str>) {
        let all = Self::value_variants().iter().copied();
        if launcher::find_clock_library().is_some() {
            return (all.collect(), None);
        }
        let without = all.filter(|fault| *fault != Self::RedisClock).collect();
        (without, Some("redis-clock is left out: it needs libfaketime (apt-get install libfaketime)"))
    }

    /// Strikes, and mends what does not mend by itself. Returns what was hit.
    ///
    /// # Errors
    /// It could not be struck at the moment, because of another fault.
    pub(crate) async fn strike(self, world: &Arc<World>, rng: &mut StdRng) -> Result<String> {
        use Fault as F;
        match self {
            F::KillApi
            | F::KillLeader
            | F::KillStandby
            | F::KillConsumer
            | F::KillReaper
            | F::KillCompleter
            | F::KillReceipts
            | F::KillPayments => strike_process::kill(world, self, rng).await,
            F::StopApi | F::StopLeader | F::StopStandby | F::StopConsumer | F::StopPayments => {
                strike_process::stop(world, self, rng).await
            }
            F::DieAfterAssign
            | F::DieMidPipeline
            | F::DieAfterPublish
            | F::DieBeforeCommit
            | F::DieAtCommit
            | F::DieAfterCommit => strike_process::die_at(world, self, rng).await,
            F::DieCharging => strike_process::die_charging(world).await,
            F::DieBooking => strike_process::die_booking(world, rng).await,
            F::TwinConsumer | F::TwinLeader => strike_process::twin(world, self, rng).await,
            F::Flushall | F::DelStream | F::TrimStream => strike_redis::lose(world, self).await,
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
