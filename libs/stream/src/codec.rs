//! The format of a stream entry, which the streamer writes and every consumer reads. Users: streamer, consumer, reaper,
//! operator, tests.
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
//! `about` is `<token> <staged_at_us> <length of object> <object> <action>`. The token is the batch's (see `log_batches`).
//! `staged_at_us` is when the record was staged, in microseconds since 1970 on Postgres's clock. The object may be any text,
//! so its length in bytes stands before it. `libs/stream/vectors.json` has test vectors, for readers in any language.
//!
//! All of this is one field, because each field costs Redis time, both when it adds an entry and when it returns one. With
//! the five fields of version 0.1 (`object`, `action`, `data`, `staged_at_us`, `token`) adding an entry took half as long
//! again, and reading it took twice as long. Entries of version 0.1 are still read, so that a stream outlives an upgrade.
//!
//! `traceparent` is for people. Nothing is decided by it, so readers of earlier versions, which ignore it, stay correct.

use std::fmt::Write;

use pglog::Partition;

use crate::resp::{Commands, Element, Elements, parse_digits, parse_number};

/// The numbers between the braces of the streams' keys, which decide on which nodes of a Redis Cluster the streams are. The slot
/// of the number of partition `p` is in the middle quarter of the range `b * 256 … b * 256 + 255`, where `b` is `p` with its six
/// bits reversed. So however many of the nodes and of the first partitions there are, each node has about as many. (The numbers
/// of the partitions themselves would give three nodes 2, 2 and 4 of 8.) Of all such numbers it is the smallest.
const TAGS: [u16; 64] = [
    14, 712, 109, 13, 175, 203, 68, 172, 29, 133, 134, 242, 148, 52, 55, 753, 117, 261, 266, 110, 76, 770, 777, 71,
    736, 1, 6, 731, 227, 151, 156, 220, 270, 106, 101, 277, 761, 67, 60, 766, 21, 727, 720, 26, 140, 236, 231, 147,
    703, 269, 343, 118, 212, 164, 163, 79, 122, 9, 253, 125, 43, 159, 742, 44,
];

/// The streams of one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// The name that the processes are given.
    pub name: String,
    /// The id of the log; `None` if it was made without a number of partitions.
    pub log_id: Option<String>,
}

impl Stream {
    /// The key of a partition's stream. The function `stream_key` of the schema computes the same.
    ///
    /// ```
    /// # use pglog::Partition;
    /// # use stream::Stream;
    /// let three = Partition::new(3).unwrap();
    /// let plain = Stream { name: "rocket-rides-log".to_owned(), log_id: None };
    /// assert_eq!(plain.key(Partition::FIRST), "rocket-rides-log");
    /// assert_eq!(plain.key(three), "rocket-rides-log:{3}");
    /// let cut = Stream { name: "rocket-rides-log".to_owned(), log_id: Some("c0ffee".to_owned()) };
    /// assert_eq!(cut.key(three), "rocket-rides-log:c0ffee:{13}");
    /// ```
    pub fn key(&self, partition: Partition) -> String {
        let Self { name, log_id } = self;
        match (log_id, TAGS.get(partition.number() as usize)) {
            (Some(log_id), Some(tag)) => format!("{name}:{log_id}:{{{tag}}}"),
            _ if partition == Partition::FIRST => name.clone(),
            _ => format!("{name}:{{{partition}}}"),
        }
    }
}

/// The id of a stream entry: the record's offset, and the number of the copy (0 unless the record was sent twice).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    /// The record's offset, 1 or more.
    pub offset: i64,
    /// 0 for the first copy.
    pub copy: u64,
}

impl EntryId {
    /// Parses `42-0`. An offset too large for an `i64` becomes the largest `i64`, which no record will ever have.
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

/// The fields of an entry, borrowed from the page that was read or from the row that is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields<'a> {
    /// The kind of thing that the record is about, for example `ride`.
    pub object: &'a str,
    /// The event, for example `create`.
    pub action: &'a str,
    /// The payload as staged.
    pub data: &'a str,
    /// When the record was staged, in microseconds since 1970 on Postgres's clock.
    pub staged_at_us: i64,
    /// The token of the record's batch.
    pub token: i64,
    /// The trace in which the record was written, unparsed; `None` if there is none.
    pub traceparent: Option<&'a str>,
}

/// One entry as it was read. If the fields are no record of ours, the error says why. The id is valid all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The entry's id.
    pub id: EntryId,
    /// The entry's fields.
    pub fields: Result<Fields<'a>, DecodeError>,
}

/// Why a reply, or an entry in it, could not be decoded.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The id is not `<offset>-<copy>`.
    #[error("id {0:?} is not <offset>-<copy>")]
    Id(String),
    /// A field is missing.
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
    /// A writer for the stream under `key`.
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

/// Decodes the reply to `XREAD … STREAMS key id`. A nil reply, which means that no entry arrived in time, is an empty list.
/// Unknown fields are ignored, so that later versions can add some.
///
/// # Errors
/// Redis refused, or the reply has another shape. An entry with bad fields is no error.
pub fn decode_xread(reply: &[u8]) -> Result<Vec<Entry<'_>>, DecodeError> {
    let mut streams = decode_xreads(reply)?;
    match (streams.pop(), streams.is_empty()) {
        (None, _) => Ok(Vec::new()),
        (Some((_, entries)), true) => Ok(entries),
        (Some(_), false) => Err(DecodeError::Shape),
    }
}

/// Decodes the reply to `XREAD … STREAMS key key … id id …`: the key of each stream that has entries, and its entries.
///
/// # Errors
/// As [`decode_xread`].
pub fn decode_xreads(reply: &[u8]) -> Result<Vec<Stretch<'_>>, DecodeError> {
    // [[key, [[id, [name, value, …]], …]], …]
    let mut elements = Elements::of(reply);
    match elements.next() {
        Some(Element::Nil) => Ok(Vec::new()),
        Some(Element::Array(count)) => (0..count).map(|_| decode_stretch(&mut elements)).collect(),
        other => Err(unexpected(other)),
    }
}

/// The key of a stream, and entries of it that follow each other.
pub type Stretch<'a> = (&'a [u8], Vec<Entry<'a>>);

fn decode_stretch<'a>(elements: &mut Elements<'a>) -> Result<Stretch<'a>, DecodeError> {
    match (elements.next(), elements.next()) {
        (Some(Element::Array(2)), Some(Element::Bulk(key))) => Ok((key, decode_entries(elements)?)),
        _ => Err(DecodeError::Shape),
    }
}

/// Decodes the reply to `XRANGE key …`, as [`decode_xread`] does.
///
/// # Errors
/// As [`decode_xread`].
pub fn decode_xrange(reply: &[u8]) -> Result<Vec<Entry<'_>>, DecodeError> {
    decode_entries(&mut Elements::of(reply))
}

fn decode_entries<'a>(elements: &mut Elements<'a>) -> Result<Vec<Entry<'a>>, DecodeError> {
    match elements.next() {
        Some(Element::Array(count)) => (0..count).map(|_| decode_entry(elements)).collect(),
        other => Err(unexpected(other)),
    }
}

/// Decodes one entry: `[id, [name, value, …]]`.
pub(crate) fn decode_entry<'a>(elements: &mut Elements<'a>) -> Result<Entry<'a>, DecodeError> {
    let (Some(Element::Array(2)), Some(Element::Bulk(id))) = (elements.next(), elements.next()) else {
        return Err(DecodeError::Shape);
    };
    let id = EntryId::from_bytes(id).ok_or_else(|| DecodeError::Id(String::from_utf8_lossy(id).into_owned()))?;
    let Some(Element::Array(len)) = elements.next() else { return Err(DecodeError::Shape) };
    Ok(Entry { id, fields: decode_fields(elements, len)? })
}

/// Decodes the fields of one entry. The outer error means that the reply is no list of strings; the inner one, that the
/// fields are no record of ours.
fn decode_fields<'a>(elements: &mut Elements<'a>, len: usize) -> Result<Result<Fields<'a>, DecodeError>, DecodeError> {
    let mut found = Found::default();
    for _ in 0..len / 2 {
        let (Some(Element::Bulk(name)), Some(Element::Bulk(value))) = (elements.next(), elements.next()) else {
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

/// The known fields, of this version and of 0.1.
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
            // An unreadable traceparent is treated as absent.
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

pub(crate) fn unexpected(element: Option<Element<'_>>) -> DecodeError {
    match element {
        Some(Element::Error(line)) => DecodeError::Refused(String::from_utf8_lossy(line).into_owned()),
        _ => DecodeError::Shape,
    }
}

#[cfg(test)]
mod tests;
