//! The stream entry: what the streamer writes and every consumer reads. Users: streamer, consumer, reaper, operator, tests.
//!
//! A change here is a change of protocol. Entries look like this:
//!
//! ```text
//! 127.0.0.1:6379> XRANGE rocket-rides-log 42 42
//! 1) 1) "42-0"                                     <offset>-<copy>
//!    2) 1) "object"        2) "ride"
//!       3) "action"        4) "create"
//!       5) "data"          6) "{\"id\":42,\"distance_mm\":123000}"      the bytes as staged
//!       7) "staged_at_us"  8) "1764000000000000"   microseconds since 1970, on Postgres's clock
//!       9) "token"        10) "4611686018427387904"  the batch's token, see log_batches
//! ```

use redis::Value;

/// The key of a partition's stream. Partition 0 has the plain name; the others carry a hash tag, so that each lives on
/// one node of a Redis Cluster.
///
/// ```
/// assert_eq!(common::stream::stream_key("rocket-rides-log", 0), "rocket-rides-log");
/// assert_eq!(common::stream::stream_key("rocket-rides-log", 3), "rocket-rides-log:{3}");
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
        let bad = || DecodeError::Id(text.to_owned());
        let (offset, copy) = text.split_once('-').ok_or_else(bad)?;
        let offset: u64 = offset.parse().map_err(|_| bad())?;
        Ok(Self { offset: i64::try_from(offset).unwrap_or(i64::MAX), copy: copy.parse().map_err(|_| bad())? })
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.offset, self.copy)
    }
}

/// The fields of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    /// What the record is about.
    pub object: String,
    /// What happened to it.
    pub action: String,
    /// The payload as staged.
    pub data: String,
    /// When the record was staged, in microseconds since 1970 on Postgres's clock.
    pub staged_at_us: i64,
    /// The token of the record's batch.
    pub token: i64,
}

/// Why an entry is not one of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
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
    /// Redis's reply has another shape than XREAD's.
    #[error("the reply is not a list of entries")]
    Shape,
}

/// `XADD key <id> object … action … data … staged_at_us … token …`
pub fn xadd(key: &str, id: EntryId, fields: &FieldsRef<'_>) -> redis::Cmd {
    let mut cmd = redis::cmd("XADD");
    cmd.arg(key)
        .arg(id.to_string())
        .arg("object")
        .arg(fields.object)
        .arg("action")
        .arg(fields.action)
        .arg("data")
        .arg(fields.data)
        .arg("staged_at_us")
        .arg(fields.staged_at_us)
        .arg("token")
        .arg(fields.token);
    cmd
}

/// [`Fields`], borrowed by the writer.
#[derive(Debug, Clone, Copy)]
pub struct FieldsRef<'a> {
    /// See [`Fields::object`].
    pub object: &'a str,
    /// See [`Fields::action`].
    pub action: &'a str,
    /// See [`Fields::data`].
    pub data: &'a str,
    /// See [`Fields::staged_at_us`].
    pub staged_at_us: i64,
    /// See [`Fields::token`].
    pub token: i64,
}

/// One entry as it was read. The fields may be junk; then the error says why, and the id is still worth looking at.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub id: EntryId,
    /// What it says.
    pub fields: Result<Fields, DecodeError>,
}

/// Takes the reply of `XREAD … STREAMS key id` apart. A reply of nil (nothing arrived in time) is an empty list.
/// Fields that are not ours are passed over, so that later versions may add some.
///
/// # Errors
/// [`DecodeError::Shape`] or [`DecodeError::Id`] if this is no such reply; entries with bad fields are not an error.
pub fn decode_xread(reply: Value) -> Result<Vec<Entry>, DecodeError> {
    // [[key, [[id, [name, value, …]], …]]], with one key because one was asked for.
    let streams = match reply {
        Value::Nil => return Ok(Vec::new()),
        Value::Array(streams) => streams,
        _ => return Err(DecodeError::Shape),
    };
    let mut entries = Vec::new();
    for stream in streams {
        let Value::Array(key_and_entries) = stream else { return Err(DecodeError::Shape) };
        let Some(Value::Array(list)) = key_and_entries.into_iter().nth(1) else { return Err(DecodeError::Shape) };
        entries.reserve(list.len());
        for entry in list {
            entries.push(decode_entry(entry)?);
        }
    }
    Ok(entries)
}

/// Takes the reply of `XRANGE key …` apart, as [`decode_xread`] does.
///
/// # Errors
/// As [`decode_xread`].
pub fn decode_xrange(reply: Value) -> Result<Vec<Entry>, DecodeError> {
    let Value::Array(list) = reply else { return Err(DecodeError::Shape) };
    list.into_iter().map(decode_entry).collect()
}

/// Takes one entry apart, as XRANGE and XINFO STREAM give it: `[id, [name, value, …]]`.
///
/// # Errors
/// This is no entry; bad fields are not an error.
pub fn decode_entry(entry: Value) -> Result<Entry, DecodeError> {
    let Value::Array(id_and_fields) = entry else { return Err(DecodeError::Shape) };
    let mut parts = id_and_fields.into_iter();
    let id = match parts.next() {
        Some(Value::BulkString(id)) => EntryId::parse(&String::from_utf8_lossy(&id))?,
        _ => return Err(DecodeError::Shape),
    };
    let fields = match parts.next() {
        Some(Value::Array(fields)) => decode_fields(fields),
        _ => Err(DecodeError::Shape),
    };
    Ok(Entry { id, fields })
}

fn decode_fields(values: Vec<Value>) -> Result<Fields, DecodeError> {
    let (mut object, mut action, mut data, mut staged_at_us, mut token) = (None, None, None, None, None);
    let mut values = values.into_iter();
    while let (Some(Value::BulkString(name)), Some(Value::BulkString(value))) = (values.next(), values.next()) {
        match name.as_slice() {
            b"object" => object = Some(value),
            b"action" => action = Some(value),
            b"data" => data = Some(value),
            b"staged_at_us" => staged_at_us = Some(value),
            b"token" => token = Some(value),
            _ => {}
        }
    }
    Ok(Fields {
        object: text("object", object)?,
        action: text("action", action)?,
        data: text("data", data)?,
        staged_at_us: number("staged_at_us", staged_at_us)?,
        token: number("token", token)?,
    })
}

fn text(name: &'static str, value: Option<Vec<u8>>) -> Result<String, DecodeError> {
    let bytes = value.ok_or(DecodeError::Missing(name))?;
    String::from_utf8(bytes).map_err(|_| DecodeError::Unreadable(name))
}

fn number(name: &'static str, value: Option<Vec<u8>>) -> Result<i64, DecodeError> {
    text(name, value)?.parse().map_err(|_| DecodeError::Unreadable(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn reply(id: &str, fields: &[&str]) -> Value {
        let entry = Value::Array(vec![bulk(id), Value::Array(fields.iter().map(|field| bulk(field)).collect())]);
        Value::Array(vec![Value::Array(vec![bulk("rocket-rides-log"), Value::Array(vec![entry])])])
    }

    /// The entry format of version 0.1. It must stay readable: streams outlive the processes that write them.
    const VERSION_0_1: [&str; 10] =
        ["object", "ride", "action", "create", "data", "{\"id\":7}", "staged_at_us", "1764000000000000", "token", "99"];

    #[test]
    fn entry_written_by_version_0_1_is_read() {
        let entries = decode_xread(reply("42-1", &VERSION_0_1)).unwrap();
        let fields = Fields {
            object: "ride".into(),
            action: "create".into(),
            data: "{\"id\":7}".into(),
            staged_at_us: 1_764_000_000_000_000,
            token: 99,
        };
        assert_eq!(entries, [Entry { id: EntryId { offset: 42, copy: 1 }, fields: Ok(fields) }]);
    }

    #[test]
    fn fields_of_a_later_version_are_passed_over() {
        let mut fields = VERSION_0_1.to_vec();
        fields.extend(["traceparent", "00-1-2-00"]);
        assert!(decode_xread(reply("1-0", &fields)).unwrap()[0].fields.is_ok());
    }

    #[test]
    fn junk_fields_do_not_hide_the_id() {
        for (fields, error) in [
            (vec!["data", "x"], DecodeError::Missing("object")),
            (
                vec!["object", "ride", "action", "create", "data", "{}", "token", "1"],
                DecodeError::Missing("staged_at_us"),
            ),
            (
                vec!["object", "a", "action", "b", "data", "{}", "staged_at_us", "1", "token", "no"],
                DecodeError::Unreadable("token"),
            ),
        ] {
            let entries = decode_xread(reply("9-0", &fields)).unwrap();
            assert_eq!(entries, [Entry { id: EntryId { offset: 9, copy: 0 }, fields: Err(error) }]);
        }
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
