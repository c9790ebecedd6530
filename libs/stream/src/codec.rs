//! The stream entry: what the streamer writes and every consumer reads. Users: streamer, consumer, reaper, operator, tests.
//!
//! A change here is a change of protocol. Entries look like this:
//!
//! ```text
//! 127.0.0.1:6379> XRANGE rocket-rides-log 42 42
//! 1) 1) "42-0"                                                   <offset>-<copy>
//!    2) 1) "about"  2) "4611686018427387904 1764000000000000 4 ride create"
//!       3) "data"   4) "{\"id\":42,\"distance_mm\":123000}"         the bytes as staged
//!       5) "traceparent"  6) "00-4bf9…4736-00f0…02b7-01"       only if the record is part of a trace
//! ```
//!
//! `about` is `<token> <staged_at_us> <length of object> <object> <action>`: the batch's token (see log_batches), when
//! the record was staged in microseconds since 1970 on Postgres's clock, and what the record is about. The length tells
//! where the object ends, which may be any text.
//! It is one field, because Redis works for every field, when it takes an entry and each time it hands it out: with the
//! five fields of version 0.1 (`object`, `action`, `data`, `staged_at_us`, `token`) it took half as much again for an
//! entry to be added, and twice as long to be read. Such entries are read as well, so that a stream outlives an upgrade.
//!
//! `traceparent` is for people. Nothing is decided by it, so a reader may pass it over: those from before it do.

use std::fmt::Write;

use crate::resp::{Commands, Piece, Pieces, parse_digits, parse_number};

/// The key of a partition's stream. Partition 0 has the plain name; the others carry a hash tag, so that each lives on
/// one node of a Redis Cluster.
///
/// ```
/// assert_eq!(stream::codec::stream_key("rocket-rides-log", 0), "rocket-rides-log");
/// assert_eq!(stream::codec::stream_key("rocket-rides-log", 3), "rocket-rides-log:{3}");
/// ```
pub fn stream_key(stream_name: &str, partition: i32) -> String {
    if partition == 0 { stream_name.to_owned() } else { format!("{stream_name}:{{{partition}}}") }
}

/// The id of a stream entry: the record's offset, and which copy of the record this is (0 unless it was sent twice).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    /// The record's offset, 1 or more.
    pub offset: i64,
    /// 0 for the first copy.
    pub copy: u64,
}

impl EntryId {
    /// Parses `42-0`. An offset too large for an i64 becomes the largest i64, which no record will ever have.
    ///
    /// # Errors
    /// The text is no entry id.
    pub fn parse(text: &str) -> Result<Self, DecodeError> {
        Self::from_bytes(text.as_bytes()).ok_or_else(|| DecodeError::Id(text.to_owned()))
    }

    fn from_bytes(text: &[u8]) -> Option<Self> {
        let dash = text.iter().position(|byte| *byte == b'-')?;
        let (offset, copy) = (parse_digits(&text[..dash])?, parse_digits(&text[dash + 1..])?);
        Some(Self { offset: i64::try_from(offset).unwrap_or(i64::MAX), copy })
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.offset, self.copy)
    }
}

/// The fields of an entry, where they lie: in the page that was read, or in the row that is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields<'a> {
    /// What the record is about.
    pub object: &'a str,
    /// What happened to it.
    pub action: &'a str,
    /// The payload as staged.
    pub data: &'a str,
    /// When the record was staged, in microseconds since 1970 on Postgres's clock.
    pub staged_at_us: i64,
    /// The token of the record's batch.
    pub token: i64,
    /// The trace in which the record was written, as it stands; `None` if there is none.
    pub traceparent: Option<&'a str>,
}

/// One entry as it was read. The fields may be junk; then the error says why, and the id is still worth looking at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where it stands.
    pub id: EntryId,
    /// What it says.
    pub fields: Result<Fields<'a>, DecodeError>,
}

/// Why a reply, or an entry in it, is not one of ours.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The id is not `<offset>-<copy>`.
    #[error("id {0:?} is not <offset>-<copy>")]
    Id(String),
    /// A field is not there.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// A field is not UTF-8, or not a number where one belongs.
    #[error("field {0} is unreadable")]
    Unreadable(&'static str),
    /// Redis answered with an error.
    #[error("redis answers {0}")]
    Refused(String),
    /// The reply has another shape than the command's.
    #[error("the reply is not a list of entries")]
    Shape,
}

/// Writes entries of one stream as `XADD key <offset>-<copy> about … data …`, and `traceparent …` where there is one.
#[derive(Debug)]
pub struct EntryWriter<'a> {
    key: &'a str,
    id: String,
    about: String,
}

impl<'a> EntryWriter<'a> {
    /// For the stream under `key`.
    pub fn new(key: &'a str) -> Self {
        Self { key, id: String::new(), about: String::new() }
    }

    /// Adds an entry to `commands`.
    pub fn add(&mut self, commands: &mut Commands, id: EntryId, fields: &Fields<'_>) {
        let Fields { object, action, data, staged_at_us, token, traceparent } = *fields;
        self.id.clear();
        self.about.clear();
        // Writing to a string cannot fail.
        let _ = write!(self.id, "{id}");
        let _ = write!(self.about, "{token} {staged_at_us} {} {object} {action}", object.len());
        commands.begin(if traceparent.is_some() { 9 } else { 7 }).arg("XADD").arg(self.key).arg(&self.id);
        commands.arg("about").arg(&self.about).arg("data").arg(data);
        if let Some(traceparent) = traceparent {
            commands.arg("traceparent").arg(traceparent);
        }
    }
}

/// Takes the reply of `XREAD … STREAMS key id` apart. A reply of nil (nothing arrived in time) is an empty list.
/// Fields that are not ours are passed over, so that later versions may add some.
///
/// # Errors
/// Redis refused, or this is no such reply; entries with bad fields are not an error.
pub fn decode_xread(reply: &[u8]) -> Result<Vec<Entry<'_>>, DecodeError> {
    // [[key, [[id, [name, value, …]], …]]], with one key because one was asked for.
    let mut pieces = Pieces::of(reply);
    match pieces.next() {
        Some(Piece::Nil) => return Ok(Vec::new()),
        Some(Piece::Array(1)) => {}
        other => return Err(unexpected(other)),
    }
    let (Some(Piece::Array(2)), Some(Piece::Bulk(_))) = (pieces.next(), pieces.next()) else {
        return Err(DecodeError::Shape);
    };
    decode_entries(&mut pieces)
}

/// Takes the reply of `XRANGE key …` apart, as [`decode_xread`] does.
///
/// # Errors
/// As [`decode_xread`].
pub fn decode_xrange(reply: &[u8]) -> Result<Vec<Entry<'_>>, DecodeError> {
    decode_entries(&mut Pieces::of(reply))
}

fn decode_entries<'a>(pieces: &mut Pieces<'a>) -> Result<Vec<Entry<'a>>, DecodeError> {
    match pieces.next() {
        Some(Piece::Array(count)) => (0..count).map(|_| decode_entry(pieces)).collect(),
        other => Err(unexpected(other)),
    }
}

/// Takes one entry apart: `[id, [name, value, …]]`.
pub(crate) fn decode_entry<'a>(pieces: &mut Pieces<'a>) -> Result<Entry<'a>, DecodeError> {
    let (Some(Piece::Array(2)), Some(Piece::Bulk(id))) = (pieces.next(), pieces.next()) else {
        return Err(DecodeError::Shape);
    };
    let id = EntryId::from_bytes(id).ok_or_else(|| DecodeError::Id(String::from_utf8_lossy(id).into_owned()))?;
    let Some(Piece::Array(len)) = pieces.next() else { return Err(DecodeError::Shape) };
    Ok(Entry { id, fields: decode_fields(pieces, len)? })
}

/// The outer error: this is no list of strings.
fn decode_fields<'a>(pieces: &mut Pieces<'a>, len: usize) -> Result<Result<Fields<'a>, DecodeError>, DecodeError> {
    let mut found = Found::default();
    for _ in 0..len / 2 {
        let (Some(Piece::Bulk(name)), Some(Piece::Bulk(value))) = (pieces.next(), pieces.next()) else {
            return Err(DecodeError::Shape);
        };
        match name {
            b"about" => found.about = Some(value),
            b"data" => found.data = Some(value),
            b"traceparent" => found.traceparent = Some(value),
            b"object" => found.object = Some(value),
            b"action" => found.action = Some(value),
            b"staged_at_us" => found.staged_at_us = Some(value),
            b"token" => found.token = Some(value),
            _ => {}
        }
    }
    Ok(found.into_fields())
}

/// The fields that we know, of this version or of 0.1.
#[derive(Default)]
struct Found<'a> {
    about: Option<&'a [u8]>,
    data: Option<&'a [u8]>,
    traceparent: Option<&'a [u8]>,
    object: Option<&'a [u8]>,
    action: Option<&'a [u8]>,
    staged_at_us: Option<&'a [u8]>,
    token: Option<&'a [u8]>,
}

impl<'a> Found<'a> {
    fn into_fields(self) -> Result<Fields<'a>, DecodeError> {
        if let Some(about) = self.about {
            let (token, staged_at_us, object, action) = split_about(about).ok_or(DecodeError::Unreadable("about"))?;
            let data = text("data", self.data)?;
            // One that cannot be read is none: the record is as good without.
            let traceparent = self.traceparent.and_then(|value| std::str::from_utf8(value).ok());
            return Ok(Fields { object, action, data, staged_at_us, token, traceparent });
        }
        if self.object.is_none() {
            return Err(DecodeError::Missing("about"));
        }
        Ok(Fields {
            object: text("object", self.object)?,
            action: text("action", self.action)?,
            data: text("data", self.data)?,
            staged_at_us: number("staged_at_us", self.staged_at_us)?,
            token: number("token", self.token)?,
            traceparent: None,
        })
    }
}

/// Token, time, object and action.
fn split_about(about: &[u8]) -> Option<(i64, i64, &str, &str)> {
    let mut rest = std::str::from_utf8(about).ok()?;
    let mut next_number = || {
        let (number, after) = rest.split_once(' ')?;
        rest = after;
        parse_number(number.as_bytes())
    };
    let (token, staged_at_us, object_len) = (next_number()?, next_number()?, next_number()?);
    let object = rest.get(..usize::try_from(object_len).ok()?)?;
    let action = rest[object.len()..].strip_prefix(' ')?;
    Some((token, staged_at_us, object, action))
}

fn text<'a>(name: &'static str, value: Option<&'a [u8]>) -> Result<&'a str, DecodeError> {
    std::str::from_utf8(value.ok_or(DecodeError::Missing(name))?).map_err(|_| DecodeError::Unreadable(name))
}

fn number(name: &'static str, value: Option<&[u8]>) -> Result<i64, DecodeError> {
    parse_number(value.ok_or(DecodeError::Missing(name))?).ok_or(DecodeError::Unreadable(name))
}

pub(crate) fn unexpected(piece: Option<Piece<'_>>) -> DecodeError {
    match piece {
        Some(Piece::Error(line)) => DecodeError::Refused(String::from_utf8_lossy(line).into_owned()),
        _ => DecodeError::Shape,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Redis answers to XREAD when the stream holds one entry.
    fn reply(id: &str, fields: &[&str]) -> Vec<u8> {
        let mut text = format!("*1\r\n*2\r\n$3\r\nkey\r\n*1\r\n*2\r\n${}\r\n{id}\r\n*{}\r\n", id.len(), fields.len());
        for field in fields {
            let _ = write!(text, "${}\r\n{field}\r\n", field.len());
        }
        text.into_bytes()
    }

    /// The entry formats of all versions. They must stay readable: streams outlive the processes that write them.
    const VERSION_0_1: [&str; 10] =
        ["object", "ride", "action", "create", "data", "{\"id\":7}", "staged_at_us", "1764000000000000", "token", "99"];
    const VERSION_0_2: [&str; 4] = ["about", "99 1764000000000000 4 ride create", "data", "{\"id\":7}"];
    /// What one with a trace has beyond that.
    const TRACED: [&str; 2] = ["traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"];
    const FIELDS: Fields = Fields {
        object: "ride",
        action: "create",
        data: "{\"id\":7}",
        staged_at_us: 1_764_000_000_000_000,
        token: 99,
        traceparent: None,
    };

    #[test]
    fn entries_written_by_all_versions_are_read() {
        for written in [&VERSION_0_1[..], &VERSION_0_2[..]] {
            let reply = reply("42-1", written);
            let entry = Entry { id: EntryId { offset: 42, copy: 1 }, fields: Ok(FIELDS) };
            assert_eq!(decode_xread(&reply), Ok(vec![entry]));
        }
    }

    fn words_of(fields: &Fields<'_>) -> Vec<String> {
        let mut commands = Commands::default();
        EntryWriter::new("log").add(&mut commands, EntryId { offset: 42, copy: 1 }, fields);
        Pieces::of(commands.bytes())
            .filter_map(|piece| match piece {
                Piece::Bulk(word) => Some(String::from_utf8_lossy(word).into_owned()),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn an_entry_is_written_as_version_0_2_wrote_it() {
        let wanted: Vec<&str> = ["XADD", "log", "42-1"].into_iter().chain(VERSION_0_2).collect();
        assert_eq!(words_of(&FIELDS), wanted);
    }

    #[test]
    fn an_entry_of_a_trace_has_one_field_more() {
        let traced = Fields { traceparent: Some(TRACED[1]), ..FIELDS };
        let entry: Vec<&str> = VERSION_0_2.into_iter().chain(TRACED).collect();
        assert_eq!(words_of(&traced)[3..], entry);
        assert_eq!(decode_xread(&reply("42-0", &entry)).unwrap()[0].fields, Ok(traced));
    }

    #[test]
    fn any_object_and_any_action_are_read_as_they_were_written() {
        for (object, action) in [("a b", "c d "), (" ", " "), ("4 ride", "99"), ("é\r\n", "ü\0"), ("%20", "-1 -1")] {
            let fields = Fields { object, action, token: i64::MAX, staged_at_us: -5, ..FIELDS };
            let words = words_of(&fields);
            let written: Vec<&str> = words[3..].iter().map(String::as_str).collect();
            let reply = reply("42-1", &written);
            assert_eq!(decode_xread(&reply).unwrap()[0].fields, Ok(fields));
        }
    }

    #[test]
    fn fields_of_a_later_version_are_passed_over() {
        let mut fields = VERSION_0_2.to_vec();
        fields.extend(["tracestate", "congo=t61rcWkgMzE"]);
        assert_eq!(decode_xread(&reply("1-0", &fields)).unwrap()[0].fields, Ok(FIELDS));
    }

    #[test]
    fn junk_fields_do_not_hide_the_id() {
        for (fields, error) in [
            (vec!["data", "x"], DecodeError::Missing("about")),
            (vec!["about", "1 2 4 ride create"], DecodeError::Missing("data")),
            (vec!["about", "1 2 5 ride", "data", "{}"], DecodeError::Unreadable("about")),
            (vec!["about", "1 2 4 ridecreate", "data", "{}"], DecodeError::Unreadable("about")),
            (vec!["about", "1 2 -4 ride create", "data", "{}"], DecodeError::Unreadable("about")),
            (vec!["about", "no 2 4 ride create", "data", "{}"], DecodeError::Unreadable("about")),
            (
                vec!["object", "ride", "action", "create", "data", "{}", "token", "1"],
                DecodeError::Missing("staged_at_us"),
            ),
            (
                vec!["object", "a", "action", "b", "data", "{}", "staged_at_us", "1", "token", "no"],
                DecodeError::Unreadable("token"),
            ),
        ] {
            let reply = reply("9-0", &fields);
            let entry = Entry { id: EntryId { offset: 9, copy: 0 }, fields: Err(error) };
            assert_eq!(decode_xread(&reply), Ok(vec![entry]));
        }
    }

    #[test]
    fn a_reply_that_is_no_list_of_entries_is_an_error_and_nil_is_an_empty_list() {
        assert_eq!(decode_xread(b"*-1\r\n"), Ok(vec![]));
        assert_eq!(decode_xrange(b"*0\r\n"), Ok(vec![]));
        assert_eq!(decode_xread(b"-LOADING wait\r\n"), Err(DecodeError::Refused("LOADING wait".to_owned())));
        for bad in
            [&b"+OK\r\n"[..], b"*1\r\n*1\r\n$3\r\nkey\r\n", b"*1\r\n*2\r\n$1\r\nk\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*-1\r\n"]
        {
            assert_eq!(decode_xread(bad), Err(DecodeError::Shape));
        }
        assert_eq!(decode_xread(&reply("junk", &VERSION_0_1)), Err(DecodeError::Id("junk".to_owned())));
    }

    #[test]
    fn entry_id_is_offset_and_copy_or_nothing() {
        assert_eq!(EntryId::parse("42-1"), Ok(EntryId { offset: 42, copy: 1 }));
        assert_eq!(EntryId { offset: 42, copy: 1 }.to_string(), "42-1");
        assert_eq!(EntryId::parse("18446744073709551615-0"), Ok(EntryId { offset: i64::MAX, copy: 0 }));
        for bad in ["", "42", "-", "a-0", "1-b", "-1-0"] {
            assert_eq!(EntryId::parse(bad), Err(DecodeError::Id(bad.to_owned())), "{bad:?}");
        }
    }
}
