//! A stream that is not of this log: how it is recognised, and how it is moved out of the way.

use anyhow::{Context, Result};
use stream::codec::DecodeError;
use stream::end::StreamEnd;
use stream::resp::{Commands, Piece, Pieces};
use stream::wire::Wire;

use crate::publish::sort_out;

/// Moves the stream to another key, if it still ends where it was seen to end. Check and rename are one step: another
/// streamer may have mended the stream in the meantime.
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
pub(crate) async fn read_end(stream: &mut Wire, key: &str) -> Result<StreamEnd> {
    let end = StreamEnd::read(stream, key).await.map_err(|error| match error.downcast_ref() {
        Some(DecodeError::Refused(line)) => sort_out(line),
        _ => error,
    });
    end.context("reading the stream's end")
}

/// Moves a stream that is not of this log to `<key>:set-aside`, if it still ends at `end`. Its last entries are of no log
/// that Postgres knows: somebody else wrote them, or Postgres was restored from a backup. They are kept for whoever wants
/// to look.
///
/// # Errors
/// Redis is away, or refuses.
pub(crate) async fn set_aside(stream: &mut Wire, key: &str, end: &StreamEnd) -> Result<()> {
    let mut commands = Commands::default();
    commands.add(&["EVAL", SET_ASIDE, "2", key, &format!("{key}:set-aside"), &end.id]);
    stream.send(&commands).await?;
    let reply = stream.read(1).await?;
    match Pieces::of(&reply).next() {
        Some(Piece::Error(line)) => Err(sort_out(&String::from_utf8_lossy(line)).context("setting the stream aside")),
        _ => Ok(()),
    }
}
