//! Operations in Redis: the rules of the table, as scripts. Redis runs each script as one atomic step.
//!
//! If Redis loses an operation, the operation is done again. A server that crashes loses the writes that are not on disk yet,
//! at most those of one second with `appendfsync everysec`. A failover loses the writes that were not replicated yet. With an
//! eviction policy, operations disappear. If an operation must never be done again, store operations in Postgres.
//!
//! The indexes of the sweepers are single keys, which lie in other slots than the operations. So this needs a server of its own, and
//! refuses a node of a Redis Cluster. It needs Redis 7.0 or newer, or Valkey.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use redis::{Client, RedisError, Script, ScriptInvocation, ServerErrorKind};

use crate::claim::{Claim, Claimed, Status, Tracked, kept_message};
use crate::error::Error;
use crate::link::Link;
use crate::operation::{DURATION_MAX, EXPIRED, Operation, STARTED, TIMED_OUT};
use crate::store::Store;

macro_rules! script {
    ($name:ident, $file:literal) => {
        static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!(include_str!("lua/common.lua"), include_str!($file))));
    };
}

script!(CLAIM, "lua/claim.lua");
script!(FINISH, "lua/finish.lua");
script!(FAIL, "lua/fail.lua");
script!(FIND, "lua/find.lua");
script!(FAIL_LATE, "lua/fail_late.lua");
script!(DELETE_LATE, "lua/delete_late.lua");

/// Stores operations in Redis, in hashes `<prefix>:{<target>}:<key>`.
#[derive(Clone)]
pub struct RedisStore {
    link: Link,
    prefix: String,
}

impl RedisStore {
    /// Stores operations on the server of `client` under `prefix`, for example `idempotency`. Connects at the first command,
    /// and again after an error.
    pub fn new(client: Client, prefix: impl Into<String>) -> Self {
        Self { link: Link::new(client), prefix: prefix.into() }
    }

    fn call<'a>(&self, script: &'a Script, key: String) -> ScriptInvocation<'a> {
        let mut invocation = script.key(key);
        invocation.arg(&self.prefix);
        invocation
    }

    fn index(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }
}

impl Store for RedisStore {
    async fn claim(&self, operation: &Operation) -> Result<Claimed, Error> {
        operation.check()?;
        let mut call = self.call(&CLAIM, operation_key(&self.prefix, &operation.target, &operation.key));
        let reference_time = operation.reference_time.map(|time| time.as_microsecond().to_string());
        call.arg(&operation.target)
            .arg(&operation.key)
            .arg(&operation.payload)
            .arg(reference_time.unwrap_or_default())
            .arg(microseconds(operation.timeout))
            .arg(microseconds(operation.expiration));
        let reply: Vec<Vec<u8>> = self.link.run(&call).await?;
        let text = |index: usize| reply.get(index).and_then(|bytes| str::from_utf8(bytes).ok());
        match text(0) {
            Some("finished") => Ok(Claimed::Finished(reply.into_iter().nth(1).unwrap_or_default())),
            Some("mismatch") => Err(operation.mismatch()),
            Some("expired") => Err(operation.expired()),
            Some("running") => {
                let time_left = text(1).and_then(|left_us| left_us.parse().ok()).map(Duration::from_micros);
                Err(operation.still_running(time_left))
            }
            _ => Ok(Claimed::Mine(Claim {
                id: number(text(1))?,
                target: operation.target.clone(),
                key: operation.key.clone(),
                token: number(text(2))?,
                recovery_point: text(3).unwrap_or(STARTED).to_owned(),
                payload: operation.payload.clone(),
                found: Status::from_name(text(4).filter(|status| *status != Status::Ready.name())),
            })),
        }
    }

    async fn finish(&self, claim: &Claim, result: &[u8]) -> Result<(), Error> {
        let mut call = self.call(&FINISH, operation_key(&self.prefix, &claim.target, &claim.key));
        call.arg(claim.token).arg(result).arg(EXPIRED).arg(claim.id);
        let status: String = self.link.run(&call).await?;
        match status.as_str() {
            "finished" => Ok(()),
            "expired" => Err(Error::Expired { target: claim.target.clone(), key: claim.key.clone() }),
            _ => Err(Error::Fenced),
        }
    }

    async fn fail(&self, claim: &Claim, message: &str) -> Result<bool, Error> {
        let mut call = self.call(&FAIL, operation_key(&self.prefix, &claim.target, &claim.key));
        call.arg(claim.token).arg(kept_message(message)).arg(claim.id);
        Ok(self.link.run(&call).await?)
    }

    async fn find(&self, target: &str, key: &str) -> Result<Option<Tracked>, Error> {
        let call = self.call(&FIND, operation_key(&self.prefix, target, key));
        let (now_us, fields): (i64, HashMap<String, Vec<u8>>) = self.link.run(&call).await?;
        if fields.is_empty() { Ok(None) } else { tracked(now_us, &fields).map(Some) }
    }

    async fn fail_timed_out(&self, count_max: i64) -> Result<u64, Error> {
        let mut call = self.call(&FAIL_LATE, self.index("timeouts"));
        Ok(self.link.run(call.arg(TIMED_OUT).arg(count_max)).await?)
    }

    async fn fail_expired(&self, count_max: i64) -> Result<u64, Error> {
        let mut call = self.call(&FAIL_LATE, self.index("expires:running"));
        Ok(self.link.run(call.arg(EXPIRED).arg(count_max)).await?)
    }

    async fn delete_expired(&self, status: Status, count_max: i64) -> Result<u64, Error> {
        let mut call = self.call(&DELETE_LATE, self.index(&format!("expires:{}", status.name())));
        Ok(self.link.run(call.arg(count_max)).await?)
    }
}

/// The key of an operation's hash. The first `}` ends the target, so no two operations have the same key.
fn operation_key(prefix: &str, target: &str, key: &str) -> String {
    let target = target.replace('%', "%25").replace('}', "%7D");
    format!("{prefix}:{{{target}}}:{key}")
}

fn microseconds(duration: Option<Duration>) -> String {
    duration.map(|duration| duration.min(DURATION_MAX).as_micros().to_string()).unwrap_or_default()
}

fn number(text: Option<&str>) -> Result<i64, Error> {
    text.and_then(|text| text.parse().ok()).ok_or_else(|| unreadable("a number"))
}

/// Another program has written under our prefix.
fn unreadable(what: &'static str) -> Error {
    let kind = redis::ErrorKind::Server(ServerErrorKind::ResponseError);
    Error::Redis(RedisError::from((kind, "an operation in Redis lacks", what.to_owned())))
}

fn tracked(now_us: i64, fields: &HashMap<String, Vec<u8>>) -> Result<Tracked, Error> {
    let text = |name: &str| fields.get(name).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let time = |name: &str| -> Result<Option<Timestamp>, Error> {
        let Some(time_us) = text(name) else { return Ok(None) };
        Timestamp::from_microsecond(number(Some(&time_us))?).map(Some).map_err(|_| unreadable("a point in time"))
    };
    let known = |time: Option<Timestamp>| time.ok_or_else(|| unreadable("a point in time"));
    let (timeout_at, expires_at) = (time("timeout_at")?, time("expires_at")?);
    let left_us = |at: Timestamp| at.as_microsecond() - now_us;
    Ok(Tracked {
        id: number(text("id").as_deref())?,
        target: text("target").unwrap_or_default(),
        key: text("key").unwrap_or_default(),
        payload: fields.get("payload").cloned().unwrap_or_default(),
        status: Status::from_name(text("status").as_deref()),
        recovery_point: text("recovery_point").unwrap_or_default(),
        token: number(text("token").as_deref())?,
        result: fields.get("result").cloned(),
        error_count: number(text("error_count").as_deref())?.try_into().unwrap_or(i32::MAX),
        error_message: text("error_message"),
        reference_time: known(time("reference_time")?)?,
        created_at: known(time("created_at")?)?,
        started_at: known(time("started_at")?)?,
        timeout_at,
        expires_at,
        finished_at: time("finished_at")?,
        is_expired: expires_at.is_some_and(|at| left_us(at) <= 0),
        time_left: timeout_at.map(|at| Duration::from_micros(left_us(at).try_into().unwrap_or(0))),
    })
}

#[cfg(test)]
mod tests {
    use super::operation_key;

    #[test]
    fn no_two_operations_share_a_key() {
        assert_eq!(operation_key("idempotency", "[GET]/", "a"), "idempotency:{[GET]/}:a");
        assert_ne!(operation_key("p", "a}:b", "c"), operation_key("p", "a", "b}:c"));
        assert_ne!(operation_key("p", "a}", "c"), operation_key("p", "a%7D", "c"));
    }
}
