//! How far the stream is: the one place that knows what has been published.

use std::collections::HashMap;

use anyhow::{Context, Result};
use common::stream::{Entry, EntryId, decode_entry};
use pglog::BatchRange;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};

use crate::publish::sort_out;

/// The last entry ever added to the stream. Trimming does not change its id.
pub(crate) struct StreamEnd {
    /// Its offset; 0 if there is no stream.
    pub offset: i64,
    /// Its id as Redis writes it.
    pub id: String,
    /// The last entry that is still there; `None` if all were trimmed.
    pub entry: Option<Entry>,
}

impl StreamEnd {
    /// Whether the last entry is the record at its offset. `range` is the batch that holds this offset, or a later one
    /// if that batch is reaped; then, as with a stream that holds no entry, there is nothing to compare.
    pub fn is_strange(&self, range: Option<&BatchRange>) -> bool {
        let (Some(entry), Some(range)) = (&self.entry, range) else { return false };
        range.first_offset <= entry.id.offset && !entry.fields.as_ref().is_ok_and(|fields| fields.token == range.token)
    }
}

/// Where the stream ends.
///
/// # Errors
/// Redis is away, or another type of value is under the key.
pub(crate) async fn read_end(stream: &mut MultiplexedConnection, key: &str) -> Result<StreamEnd> {
    let reply: Result<HashMap<String, Value>, RedisError> =
        redis::cmd("XINFO").arg("STREAM").arg(key).query_async(stream).await;
    let info = match reply {
        Ok(info) => info,
        Err(error) if error.detail().is_some_and(|detail| detail.contains("no such key")) => {
            return Ok(StreamEnd { offset: 0, id: "0-0".to_owned(), entry: None });
        }
        Err(error) => return Err(sort_out(error).context("reading the stream's last id")),
    };
    let last_id = info.get("last-generated-id").context("XINFO STREAM has no last-generated-id")?;
    let id: String = redis::from_redis_value_ref(last_id).context("reading the stream's last id")?;
    // It comes with the same reply, so looking at it costs nothing.
    let entry = match info.get("last-entry") {
        None | Some(Value::Nil) => None,
        Some(entry) => Some(decode_entry(entry.clone()).context("reading the stream's last entry")?),
    };
    Ok(StreamEnd { offset: EntryId::parse(&id)?.offset, id, entry })
}

/// Moves a stream that is not of this log out of the way, to `<key>:set-aside`, if it still ends at `end`. Its last
/// entries are of no log that Postgres knows: somebody else wrote them, or Postgres was restored from a backup. They are
/// kept for whoever wants to look.
///
/// # Errors
/// Redis is away, or refuses.
pub(crate) async fn set_aside(stream: &mut MultiplexedConnection, key: &str, end: &StreamEnd) -> Result<()> {
    // Check and rename are one step: another streamer may have mended the stream in the meantime.
    let script = redis::Script::new(
        "if redis.call('EXISTS', KEYS[1]) == 0 then return end
         local info = redis.call('XINFO', 'STREAM', KEYS[1])
         for i = 1, #info, 2 do
             if info[i] == 'last-generated-id' and info[i + 1] == ARGV[1] then
                 redis.call('RENAME', KEYS[1], KEYS[2])
             end
         end",
    );
    let () = script
        .key(key)
        .key(format!("{key}:set-aside"))
        .arg(&end.id)
        .invoke_async(stream)
        .await
        .map_err(sort_out)
        .context("setting the stream aside")?;
    Ok(())
}
