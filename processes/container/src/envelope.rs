//! The format of a file in the spool: one request, with all that is needed to take it up again.
//!
//! ```text
//! {"version":1,"spool_id":…,"resource":"manifests",…}\n      the head: one line of JSON, at most HEAD_LEN_MAX
//! <content of the first part><content of the second>…        as it came, without the boundaries of multipart
//! [{"name":"manifest","at":180,"len":9120,"sha256":…},…]     the trailer: where each part is, at most TRAILER_LEN_MAX
//! <SHA-256 of head and trailer><length of the trailer, u32><"spool/1\n">       the end: END_LEN bytes
//! ```
//!
//! A reader starts at the end, so it reads a part without the parts before it. Lengths of head, parts, trailer and end add up to
//! the length of the file, so a file that was cut or extended is refused. Each part has its own hash, which is verified while
//! the part is read.

use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The longest head, in bytes.
pub const HEAD_LEN_MAX: usize = 8 * 1024;

/// The longest trailer, in bytes.
pub const TRAILER_LEN_MAX: usize = 64 * 1024;

/// The longest document, in bytes: destinations hold it in memory.
pub const DOCUMENT_LEN_MAX: u64 = 64 * 1024;

/// The length of the end, in bytes: a hash, a length and [`MARK`].
pub const END_LEN: usize = 32 + 4 + MARK.len();

/// The last bytes of each file.
const MARK: &[u8; 8] = b"spool/1\n";

/// The version of the format that this code writes, and the only one that it reads.
const VERSION: u32 = 1;

/// A request without its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The name of the resource, for example `manifests`.
    pub resource: String,
    /// The name of the part that is the document, for example `manifest`.
    pub document: String,
    /// The `Idempotency-Key` of the client.
    pub idempotency_key: Option<String>,
    /// The trace that the request belongs to.
    pub traceparent: Option<String>,
    /// When the request arrived.
    pub received_at: Timestamp,
}

/// A part of a body without its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartHead {
    /// Its name, for example `photo`.
    pub name: String,
    /// Its type, for example `image/jpeg`.
    pub content_type: String,
    /// The client's name of the file.
    pub file_name: Option<String>,
}

/// A part of a body, and where its content is in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Name and type.
    #[serde(flatten)]
    pub head: PartHead,
    /// The position of the first byte in the file.
    pub at: u64,
    /// The length of the content, in bytes.
    pub len: u64,
    /// SHA-256 of the content, in hexadecimal digits.
    pub sha256: String,
}

/// The head as it is written.
#[derive(Serialize, Deserialize)]
struct Line<H> {
    version: u32,
    spool_id: Uuid,
    #[serde(flatten)]
    head: H,
}

/// The version alone: a newer one may have other fields.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The first line of a file, with its line feed.
pub fn write_head(spool_id: Uuid, head: &Head) -> Bytes {
    let line = Line { version: VERSION, spool_id, head };
    let mut line = serde_json::to_vec(&line).expect("a head is JSON: its fields are text");
    line.push(b'\n');
    line.into()
}

/// The last bytes of a file: trailer and end.
pub fn write_trailer(head_line: &[u8], parts: &[Part]) -> Bytes {
    let trailer = serde_json::to_vec(parts).expect("a trailer is JSON: its fields are text and numbers");
    let mut bytes = BytesMut::with_capacity(trailer.len() + END_LEN);
    bytes.put_slice(&trailer);
    bytes.put_slice(&Sha256::new().chain_update(head_line).chain_update(&trailer).finalize());
    bytes.put_u32(u32::try_from(trailer.len()).unwrap_or(u32::MAX));
    bytes.put_slice(MARK);
    bytes.freeze()
}

/// The length of the trailer, from the last [`END_LEN`] bytes of a file.
///
/// # Errors
/// The reason why the file is refused.
pub fn trailer_len(end: &[u8]) -> Result<usize, String> {
    let Some(len) = end.strip_suffix(MARK).and_then(|rest| rest.last_chunk::<4>()) else {
        return Err("it does not end as a file of the spool: it is cut or foreign".to_owned());
    };
    let len = u32::from_be_bytes(*len) as usize;
    if len > TRAILER_LEN_MAX {
        return Err(format!("its trailer of {len} bytes is longer than any"));
    }
    Ok(len)
}

/// Reads head and trailer of a file of `file_len` bytes. `start` contains at least the head. `tail` is exactly trailer and end.
///
/// # Errors
/// The reason why the file is refused.
pub fn read(spool_id: Uuid, start: &[u8], tail: &[u8], file_len: u64) -> Result<(Head, Vec<Part>), String> {
    let line_len = start.iter().position(|byte| *byte == b'\n').ok_or("it has no head")? + 1;
    let line = &start[..line_len];
    let (trailer, end) = tail.split_at_checked(tail.len().saturating_sub(END_LEN)).ok_or("it has no trailer")?;
    let hash = Sha256::new().chain_update(line).chain_update(trailer).finalize();
    if !end.starts_with(&hash) {
        return Err("the hash of its head and its trailer differs".to_owned());
    }
    let Version { version } =
        serde_json::from_slice(line).map_err(|error| format!("its head is unreadable: {error}"))?;
    if version != VERSION {
        return Err(format!("it has version {version} of the format, and this program reads version {VERSION}"));
    }
    let line: Line<Head> = serde_json::from_slice(line).map_err(|error| format!("its head is unreadable: {error}"))?;
    if line.spool_id != spool_id {
        return Err(format!("it belongs to spool {}, and this is spool {spool_id}", line.spool_id));
    }
    let parts: Vec<Part> =
        serde_json::from_slice(trailer).map_err(|error| format!("its trailer is unreadable: {error}"))?;
    let mut at = line_len as u64;
    for part in &parts {
        if part.at != at {
            return Err(format!(
                "its part {} starts at {}, and the parts before it end at {at}",
                part.head.name, part.at
            ));
        }
        at = at.saturating_add(part.len);
    }
    if at.saturating_add(tail.len() as u64) != file_len {
        return Err(format!("its parts have another length than the file of {file_len} bytes"));
    }
    Ok((line.head, parts))
}

/// SHA-256 of the decoded parts: names, types and contents. Neither the boundary of multipart nor the order of the parts counts,
/// so a client that repeats a request gets the same hash.
pub fn content_hash(parts: &[Part]) -> [u8; 32] {
    let mut keys: Vec<[&str; 3]> =
        parts.iter().map(|part| [part.head.name.as_str(), &part.head.content_type, &part.sha256]).collect();
    keys.sort_unstable();
    let keys = serde_json::to_vec(&keys).expect("text is JSON");
    Sha256::digest(keys).into()
}

/// A hash in hexadecimal digits.
pub fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
