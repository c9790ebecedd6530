//! Appending a page of records to the stream, and what each of Redis's replies means.

use anyhow::{Context, Result, ensure};
use common::stream::{EntryId, FieldsRef, xadd};
use pglog::Record;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};

/// What to do wrong on purpose with a batch. Consumers must not notice any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Nothing.
    None,
    /// Add every record twice, as `<offset>-0` and `<offset>-1`. Redis takes both.
    SendTwice,
    /// "Fail" after the batch was sent, and send all of it again under the same ids. Redis refuses it.
    ResendBatch,
    /// SIGKILL when a batch is cut and nothing of it is published.
    DieAfterAssign,
    /// SIGKILL when half of the pipeline is in the stream.
    DieMidPipeline,
    /// SIGKILL when all of it is in the stream, before anything else.
    DieAfterPublish,
}

/// What became of the entries sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sent {
    /// Entries that Redis appended.
    pub added_count: usize,
    /// Entries that Redis refused because it has their id, or a later one, already.
    pub refused_count: usize,
}

/// Redis refuses for a reason that does not pass by itself: another type under the key, no permission, a bad password.
#[derive(Debug, thiserror::Error)]
#[error("redis refuses to append to the stream; look at its configuration and at the key")]
pub struct Refused(#[source] RedisError);

/// Appends `copies` copies of each record, in one pipeline, and looks at every reply.
///
/// # Errors
/// The first reply that is neither "added" nor "already there". Entries after it may have been added all the same (a
/// pipeline does not stop at an error): the stream may have a hole then, which consumers heal. The caller reads the
/// stream's last id again before it goes on. [`Refused`] if trying again is pointless.
pub(crate) async fn send(
    stream: &mut MultiplexedConnection,
    key: &str,
    records: &[Record],
    copies: u64,
) -> Result<Sent> {
    let mut pipeline = redis::Pipeline::with_capacity(records.len() * copies as usize);
    pipeline.ignore_errors();
    for record in records {
        let fields = FieldsRef {
            object: &record.object,
            action: &record.action,
            data: &record.data,
            staged_at_us: record.staged_at_us,
            token: record.token,
        };
        for copy in 0..copies {
            pipeline.add_command(xadd(key, EntryId { offset: record.offset, copy }, &fields));
        }
    }
    let replies: Vec<Result<Value, RedisError>> =
        pipeline.query_async(stream).await.map_err(sort_out).context("appending to the stream")?;
    ensure!(replies.len() == records.len() * copies as usize, "redis answered {} entries", replies.len());
    let mut sent = Sent::default();
    for reply in replies {
        match reply {
            Ok(_) => sent.added_count += 1,
            Err(error) if is_already_there(&error) => sent.refused_count += 1,
            Err(error) => return Err(sort_out(error).context("appending to the stream")),
        }
    }
    Ok(sent)
}

/// The id is not greater than the stream's last one, or than the last one there can be. The replies have no code of their
/// own, only these texts (Redis 5 to 8, Valkey 7 to 9).
fn is_already_there(error: &RedisError) -> bool {
    const TEXTS: [&str; 2] = ["equal or smaller than the target stream top item", "exhausted the last possible ID"];
    error.detail().is_some_and(|detail| TEXTS.iter().any(|text| detail.contains(text)))
}

/// Tells errors that pass from errors that stay.
pub(crate) fn sort_out(error: RedisError) -> anyhow::Error {
    /// Failing over, moved to another node, loading, out of memory, out of disk, not enough replicas, running a long
    /// script.
    const PASSING: [&str; 12] = [
        "READONLY",
        "MOVED",
        "ASK",
        "LOADING",
        "OOM",
        "MISCONF",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "MASTERDOWN",
        "NOREPLICAS",
        "BUSY",
        "UNBLOCKED",
    ];
    match error.code() {
        // No code: it is not the server that speaks, but the connection that failed.
        None => error.into(),
        Some(code) if PASSING.contains(&code) => error.into(),
        Some(_) => Refused(error).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::ErrorKind;

    fn server_error(line: &str) -> RedisError {
        // What the crate makes of an error line of the protocol.
        let bytes = format!("-{line}\r\n");
        redis::parse_redis_value(bytes.as_bytes()).and_then(Value::extract_error).unwrap_err()
    }

    #[test]
    fn a_refused_id_is_known_by_its_text() {
        let refused = "ERR The ID specified in XADD is equal or smaller than the target stream top item";
        assert!(is_already_there(&server_error(refused)));
        let exhausted = "ERR The stream has exhausted the last possible ID, unable to add more items";
        assert!(is_already_there(&server_error(exhausted)));
        assert!(!is_already_there(&server_error("ERR unknown command")));
    }

    #[test]
    fn errors_that_pass_are_retried_and_others_stop() {
        for line in
            ["READONLY replica", "MOVED 1 host:1", "LOADING dataset", "OOM memory", "MISCONF disk", "CLUSTERDOWN slot"]
        {
            assert!(sort_out(server_error(line)).downcast_ref::<Refused>().is_none(), "{line}");
        }
        for line in ["WRONGTYPE no stream", "NOAUTH please", "NOPERM never", "ERR unknown command"] {
            assert!(sort_out(server_error(line)).downcast_ref::<Refused>().is_some(), "{line}");
        }
        let lost = RedisError::from((ErrorKind::Io, "connection reset"));
        assert!(sort_out(lost).downcast_ref::<Refused>().is_none());
    }
}
