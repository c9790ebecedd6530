//! A stream that is not of this log: how it is recognised, and how it is moved out of the way.
//!
//! The stream is of this log while every entry carries the token of the batch that holds its offset. It is not when
//! another program appended to it, or when Postgres was restored from a backup and the stream is ahead of it.

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Partition;
use stream::codec::DecodeError;
use stream::end::StreamEnd;
use stream::resp::{Commands, Element, Elements};
use stream::wire::Wire;

use crate::refusal::classify_refusal;

/// Moves the stream to another key, if it still ends where it was seen to end. Check and rename are one step, because
/// another streamer may have set the stream aside and begun a new one in the meantime.
const SET_ASIDE: &str = "
    if redis.call('EXISTS', KEYS[1]) == 0 then return end
    local info = redis.call('XINFO', 'STREAM', KEYS[1])
    for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' and info[i + 1] == ARGV[1] then
            redis.call('RENAME', KEYS[1], KEYS[2])
        end
    end";

/// Where the stream ends.
///
/// # Errors
/// Redis is away; [`Refused`](crate::Refused) if for example another type of value is under the key.
pub(crate) async fn read_end(wire: &mut Wire, key: &str) -> Result<StreamEnd> {
    let end = StreamEnd::read(wire, key).await.map_err(|error| match error.downcast_ref() {
        Some(DecodeError::Refused(line)) => classify_refusal(line),
        _ => error,
    });
    end.context("reading the stream's end")
}

/// Whether the last entry that the stream still holds is of another log. This finds a Postgres that was restored and has
/// grown past the stream's end since.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn has_foreign_entry(end: &StreamEnd, client: &Client, partition: Partition) -> Result<bool> {
    let Some(offset) = end.entry_offset() else { return Ok(false) };
    let token =
        pglog::token_at(client, partition, offset).await.context("looking up the token of the stream's last entry")?;
    Ok(token.is_some_and(|token| end.is_foreign(token)))
}

/// Moves a stream that is not of this log to `<key>:set-aside`, if it still ends at `end`. Its entries are kept, so that
/// an operator can look at them.
///
/// # Errors
/// Redis is away, or refuses.
pub(crate) async fn set_aside(wire: &mut Wire, key: &str, end: &StreamEnd) -> Result<()> {
    let mut commands = Commands::default();
    commands.add(&["EVAL", SET_ASIDE, "2", key, &format!("{key}:set-aside"), &end.id]);
    wire.send(&commands).await?;
    let reply = wire.read(1).await?;
    match Elements::of(&reply).next() {
        Some(Element::Error(line)) => {
            Err(classify_refusal(&String::from_utf8_lossy(line)).context("setting the stream aside"))
        }
        _ => Ok(()),
    }
}
