//! The end of a stream: its last id says how far the log is published. Users: streamer, dashboard, operator.

use anyhow::Result;

use crate::codec::{DecodeError, EntryId, decode_entry, unexpected};
use crate::resp::{Commands, Element, Elements};
use crate::wire::Wire;

/// The last entry ever added to a stream. Trimming does not change its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEnd {
    /// The last entry's offset; 0 if there is no stream.
    pub offset: i64,
    /// The last entry's id as Redis writes it.
    pub id: String,
    /// `None` if Redis did not say.
    pub counts: Option<EntryCounts>,
    /// The last entry that the stream still holds; `None` if all were trimmed.
    entry: Option<LastEntry>,
}

/// How many entries a stream has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntryCounts {
    /// The entries that it holds now.
    pub held: i64,
    /// All entries that were ever added to it.
    pub added: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LastEntry {
    offset: i64,
    /// `None` if the entry has no readable token.
    token: Option<i64>,
}

impl StreamEnd {
    /// Asks Redis where the stream ends.
    ///
    /// # Errors
    /// Redis is away; [`DecodeError::Refused`] with Redis's text if it refuses, for example because another type of value
    /// is under the key.
    pub async fn read(stream: &mut Wire, key: &str) -> Result<Self> {
        let mut question = Commands::default();
        Self::ask(&mut question, key);
        stream.send(&question).await?;
        let reply = stream.read(1).await?;
        Ok(Self::decode(&reply)?)
    }

    /// Adds the question where a stream ends.
    pub fn ask(commands: &mut Commands, key: &str) {
        commands.add(&["XINFO", "STREAM", key]);
    }

    /// The offset of the last entry that the stream still holds.
    pub fn entry_offset(&self) -> Option<i64> {
        self.entry.map(|entry| entry.offset)
    }

    /// Whether the last entry that the stream still holds is of another log: it lacks `token`, which is the token of the
    /// batch that holds its offset.
    pub fn is_foreign(&self, token: i64) -> bool {
        self.entry.is_some_and(|entry| entry.token != Some(token))
    }

    /// Reads the reply to [`ask`](Self::ask). More replies may follow it.
    ///
    /// # Errors
    /// [`DecodeError::Refused`] with Redis's text if it refuses.
    pub fn decode(reply: &[u8]) -> Result<Self, DecodeError> {
        // [name, value, …], among them length, entries-added, last-generated-id and last-entry.
        let mut elements = Elements::of(reply);
        let len = match elements.next() {
            Some(Element::Array(len)) => len,
            Some(Element::Error(line)) if line.ends_with(b"no such key") => {
                let counts = Some(EntryCounts::default());
                return Ok(Self { offset: 0, id: "0-0".to_owned(), counts, entry: None });
            }
            other => return Err(unexpected(other)),
        };
        let (mut id, mut entry, mut held, mut added) = (None, None, None, None);
        for _ in 0..len / 2 {
            match elements.next() {
                Some(Element::Bulk(b"last-generated-id")) => match elements.next() {
                    Some(Element::Bulk(bytes)) => id = Some(String::from_utf8_lossy(bytes).into_owned()),
                    other => return Err(unexpected(other)),
                },
                Some(Element::Bulk(b"last-entry")) => {
                    // Nil, or an entry as in a reply to XRANGE.
                    if let Ok(last) = decode_entry(&mut elements.clone()) {
                        let token = last.fields.ok().map(|fields| fields.token);
                        entry = Some(LastEntry { offset: last.id.offset, token });
                    }
                    elements.skip_value();
                }
                Some(Element::Bulk(b"length")) => held = Some(integer(&mut elements)?),
                Some(Element::Bulk(b"entries-added")) => added = Some(integer(&mut elements)?),
                Some(_) => elements.skip_value(),
                None => return Err(DecodeError::Shape),
            }
        }
        let id = id.ok_or(DecodeError::Missing("last-generated-id"))?;
        let counts = held.zip(added).map(|(held, added)| EntryCounts { held, added });
        Ok(Self { offset: EntryId::parse(&id)?.offset, id, counts, entry })
    }
}

fn integer(elements: &mut Elements<'_>) -> Result<i64, DecodeError> {
    match elements.next() {
        Some(Element::Integer(number)) => Ok(number),
        other => Err(unexpected(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "*4\r\n$17\r\nlast-generated-id\r\n$4\r\n42-0\r\n$10\r\nlast-entry\r\n";
    const FIELDS: &str = "*4\r\n$5\r\nabout\r\n$9\r\n7 1 1 a b\r\n$4\r\ndata\r\n$2\r\n{}\r\n";

    fn end(last_entry: &str) -> StreamEnd {
        StreamEnd::decode(format!("{ID}{last_entry}").as_bytes()).unwrap()
    }

    #[test]
    fn counts_are_found_among_what_redis_says_of_a_stream() {
        let (length, node) = ("$6\r\nlength\r\n:3\r\n", "$15\r\nradix-tree-keys\r\n:1\r\n");
        let added = "$13\r\nentries-added\r\n:9\r\n";
        let last_id = "$17\r\nlast-generated-id\r\n$3\r\n9-0\r\n";
        let first = "$11\r\nfirst-entry\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n";
        let counts = |text: String| StreamEnd::decode(text.as_bytes()).unwrap().counts;
        let all = counts(format!("*10\r\n{length}{node}{first}{last_id}{added}"));
        assert_eq!(all, Some(EntryCounts { held: 3, added: 9 }));
        assert_eq!(counts("-ERR no such key\r\n".to_owned()), Some(EntryCounts { held: 0, added: 0 }));
        assert_eq!(counts(format!("*6\r\n{length}{node}{last_id}")), None, "a count is missing");
        let refused = StreamEnd::decode(b"-NOPERM no\r\n").unwrap_err();
        assert_eq!(refused, DecodeError::Refused("NOPERM no".to_owned()));
    }

    #[test]
    fn the_end_is_the_last_id_and_the_token_of_what_is_still_there() {
        let whole = end(&format!("*2\r\n$4\r\n40-1\r\n{FIELDS}"));
        assert_eq!((whole.offset, whole.id.as_str(), whole.entry_offset()), (42, "42-0", Some(40)));
        assert!(!whole.is_foreign(7) && whole.is_foreign(8));
        let junk = end("*2\r\n$4\r\n40-1\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n");
        assert!(junk.is_foreign(7), "an entry without a token");
    }

    #[test]
    fn a_stream_that_was_trimmed_empty_ends_where_it_ended() {
        for nothing in ["$-1\r\n", "*-1\r\n"] {
            let end = end(nothing);
            assert_eq!((end.offset, end.entry_offset(), end.is_foreign(7)), (42, None, false));
        }
    }

    #[test]
    fn no_stream_is_an_end_too_and_a_refusal_is_an_error() {
        assert_eq!(StreamEnd::decode(b"-ERR no such key\r\n").unwrap().offset, 0);
        let error = StreamEnd::decode(b"-WRONGTYPE no stream\r\n").unwrap_err();
        assert_eq!(error, DecodeError::Refused("WRONGTYPE no stream".to_owned()));
    }
}
