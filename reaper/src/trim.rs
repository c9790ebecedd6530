//! Trimming the stream. It is a cache of the log: what is cut off can be read from Postgres.

use anyhow::{Context, Result};
use common::stream::EntryId;
use redis::aio::MultiplexedConnection;

/// Removes the entries before `first_retained`, and the oldest beyond `len_max`. Returns how many went.
///
/// Both cuts are approximate (`~`): Redis frees whole nodes of some hundred entries, which costs it almost nothing.
///
/// # Errors
/// Redis is away, or refuses.
pub(crate) async fn trim(
    stream: &mut MultiplexedConnection,
    key: &str,
    first_retained: i64,
    len_max: u64,
) -> Result<u64> {
    let oldest = EntryId { offset: first_retained, copy: 0 };
    let (by_offset, by_len): (u64, u64) = redis::pipe()
        .cmd("XTRIM")
        .arg(key)
        .arg("MINID")
        .arg("~")
        .arg(oldest.to_string())
        .cmd("XTRIM")
        .arg(key)
        .arg("MAXLEN")
        .arg("~")
        .arg(len_max)
        .query_async(stream)
        .await
        .context("trimming the stream")?;
    Ok(by_offset + by_len)
}
