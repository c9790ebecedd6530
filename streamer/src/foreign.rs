//! A stream that is not of this log: how it is recognised, and how it is moved out of the way.
//!
//! The stream is of this log while every entry carries the token of the batch that holds its offset. It is not when
//! another program appended to it, or when Postgres was restored from a backup and the stream is ahead of it.

use anyhow::{Context, Result, anyhow};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Partition;
use stream::codec::DecodeError;
use stream::end::StreamEnd;
use stream::hash_tag;
use stream::resp::{Commands, Element, Elements};
use stream::wire::Wire;

use crate::refusal::{Refusal, classify_refusal};

/// Streams that are kept aside. A program that writes into the stream again and again would fill Redis otherwise.
const ASIDE_LEN_MAX: usize = 10;

/// Moves the stream to the first free one of the other keys, if it still ends where it was seen to end. Check and rename are
/// one step, because another streamer may have set the stream aside and begun a new one in the meantime.
const SET_ASIDE: &str = "
    if redis.call('EXISTS', KEYS[1]) == 0 then return end
    local info = redis.call('XINFO', 'STREAM', KEYS[1])
    for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' and info[i + 1] == ARGV[1] then
            for k = 2, #KEYS do
                if redis.call('RENAMENX', KEYS[1], KEYS[k]) == 1 then return end
            end
            return redis.error_reply('NOFREEKEY')
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

/// The command that moves a stream which is not of this log to a key of its own, if it still ends at `end`. Its entries are kept,
/// so that an operator can look at them.
pub(crate) fn set_aside(key: &str, end: &StreamEnd) -> Commands {
    let keys = aside_keys(key);
    let key_count = (keys.len() + 1).to_string();
    let mut command = vec!["EVAL", SET_ASIDE, &key_count, key];
    command.extend(keys.iter().map(String::as_str));
    command.push(&end.id);
    let mut commands = Commands::default();
    commands.add(&command);
    commands
}

/// Looks at the reply to [`set_aside`].
///
/// # Errors
/// Redis refuses; or too many streams are aside already.
pub(crate) fn check_set_aside(key: &str, reply: &[u8]) -> Result<(), Refusal> {
    match Elements::of(reply).next() {
        Some(Element::Error(line)) if line.ends_with(b"NOFREEKEY") => {
            let keys = aside_keys(key);
            Err(Refusal::OfTheStream(anyhow!(
                "{ASIDE_LEN_MAX} streams have been set aside, {} to {}: look for the program that writes into the stream, and \
                 delete the keys that you do not need",
                keys[0],
                keys[ASIDE_LEN_MAX - 1]
            )))
        }
        Some(Element::Error(line)) => Err(Refusal::of(&String::from_utf8_lossy(line), "setting the stream aside")),
        _ => Ok(()),
    }
}

fn aside_keys(key: &str) -> Vec<String> {
    (1..=ASIDE_LEN_MAX).map(|number| aside_key(key, number)).collect()
}

/// The key of a stream that is set aside. It lies in the same hash slot as the stream's own key: a Redis Cluster renames a key
/// within its slot only.
fn aside_key(key: &str, number: usize) -> String {
    match hash_tag(key) {
        Some(_) => format!("{key}:set-aside:{number}"),
        None => format!("{{{key}}}:set-aside:{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::aside_key;

    #[test]
    fn the_key_of_a_stream_that_is_set_aside_has_the_hash_tag_of_its_own_key() {
        assert_eq!(aside_key("rocket-rides-log", 1), "{rocket-rides-log}:set-aside:1");
        assert_eq!(aside_key("rocket-rides-log:{3}", 2), "rocket-rides-log:{3}:set-aside:2");
    }
}
