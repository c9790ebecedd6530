//! The input of both benches of small parts: a thousand records, and the reply of Redis with the same records.
//!
//! They are a package of their own because their libraries turn on features of other crates, which `bin/test` would then compile
//! anew.

use pglog::{Partition, Record};
use stream::codec::{EntryId, EntryWriter, Fields};
use stream::resp::Commands;

/// Records per batch.
pub const LEN: i64 = 1000;

/// The payloads of a batch.
pub fn payloads() -> Vec<String> {
    (1..=LEN).map(|offset| format!("{{\"id\":{offset},\"distance_mm\":{}}}", 5000 + offset * 7919 % 995_000)).collect()
}

/// A batch of records with these payloads.
pub fn records(payloads: &[String]) -> Vec<Record<'_>> {
    (1..)
        .zip(payloads)
        .map(|(offset, data)| Record {
            partition: Partition::FIRST,
            offset,
            token: 4_611_686_018_427_387_904,
            object: "ride",
            action: "create",
            data,
            staged_at_us: 1_764_000_000_000_000 + offset,
            traceparent: None,
        })
        .collect()
}

/// The commands that append a batch to the stream.
pub fn encode(records: &[Record<'_>]) -> Commands {
    let (mut commands, mut writer) = (Commands::default(), EntryWriter::new("rocket-rides-log"));
    for &Record { offset, token, object, action, data, staged_at_us, traceparent, .. } in records {
        let fields = Fields { object, action, data, staged_at_us, token, traceparent };
        writer.add(&mut commands, EntryId { offset, copy: 0 }, &fields);
    }
    commands
}

/// The reply of XREAD with a batch.
pub fn reply(records: &[Record<'_>]) -> Vec<u8> {
    let mut reply = format!("*1\r\n*2\r\n$16\r\nrocket-rides-log\r\n*{}\r\n", records.len());
    for record in records {
        let about = format!(
            "{} {} {} {} {}",
            record.token,
            record.staged_at_us,
            record.object.len(),
            record.object,
            record.action
        );
        let id = format!("{}-0", record.offset);
        reply += &format!("*2\r\n${}\r\n{id}\r\n*4\r\n", id.len());
        for text in ["about", &about, "data", record.data] {
            reply += &format!("${}\r\n{text}\r\n", text.len());
        }
    }
    reply.into_bytes()
}
