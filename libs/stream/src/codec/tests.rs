//! Every version of the entry format is read, and the newest is written.

use serde_json::{Value, json};

use super::*;

/// Redis's reply to XREAD when the stream holds one entry.
fn reply(id: &str, fields: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let head = format!("*1\r\n*2\r\n$3\r\nkey\r\n*1\r\n*2\r\n${}\r\n{id}\r\n*{}\r\n", id.len(), fields.len());
    let mut reply = head.into_bytes();
    for field in fields.iter().map(AsRef::as_ref) {
        reply.extend(format!("${}\r\n", field.len()).bytes().chain(field.iter().copied()).chain(*b"\r\n"));
    }
    reply
}

/// The entry formats of all versions. They must stay readable: streams outlive the processes that write them.
const VERSION_0_1: [&str; 10] =
    ["object", "ride", "action", "create", "data", "{\"id\":7}", "staged_at_us", "1764000000000000", "token", "99"];
const VERSION_0_2: [&str; 4] = ["about", "99 1764000000000000 4 ride create", "data", "{\"id\":7}"];
/// The fields that an entry with a trace has beyond these.
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
    Elements::of(commands.bytes())
        .filter_map(|element| match element {
            Element::Bulk(word) => Some(String::from_utf8_lossy(word).into_owned()),
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
        (vec!["object", "ride", "action", "create", "data", "{}", "token", "1"], DecodeError::Missing("staged_at_us")),
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

/// The vectors are for readers in other languages, too: `examples/python/vectors.py` reads the same file.
#[test]
fn every_entry_of_the_test_vectors_is_read_as_they_say() {
    let vectors: Value = serde_json::from_str(include_str!("../../vectors.json")).unwrap();
    let bytes = |value: &Value| match value.as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => {
            let hex = value["hex"].as_str().unwrap();
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
        }
    };
    let entries = vectors["entries"].as_array().unwrap();
    for entry in entries {
        let fields = entry["fields"].as_object().unwrap();
        let fields: Vec<Vec<u8>> =
            fields.iter().flat_map(|(name, value)| [name.as_bytes().to_vec(), bytes(value)]).collect();
        let (id, wanted) = (entry["id"].as_str().unwrap(), &entry["reads_as"]);
        let reply = reply(id, &fields);
        let read = decode_xread(&reply).unwrap();
        assert_eq!((read.len(), read[0].id.to_string()), (1, id.to_owned()));
        let read = read[0].fields.as_ref().ok().map(|fields| {
            let Fields { object, action, data, staged_at_us, token, traceparent } = fields;
            json!({
                "object": object, "action": action, "data": data, "staged_at_us": staged_at_us, "token": token,
                "traceparent": traceparent
            })
        });
        assert_eq!(read.unwrap_or_default(), *wanted, "{id}: {}", entry["what"]);
    }
    assert!(entries.len() > 20);
}

#[test]
fn a_reply_with_several_streams_is_read_and_one_stream_is_asked_for_alone() {
    let one = reply("42-1", &VERSION_0_2);
    let two = [b"*2\r\n", &one[4..], &one[4..]].concat();
    let entry = Entry { id: EntryId { offset: 42, copy: 1 }, fields: Ok(FIELDS) };
    assert_eq!(decode_xreads(&two), Ok(vec![(&b"key"[..], vec![entry.clone()]), (&b"key"[..], vec![entry])]));
    assert_eq!(decode_xreads(b"*-1\r\n"), Ok(vec![]));
    assert_eq!(decode_xread(&two), Err(DecodeError::Shape));
}
