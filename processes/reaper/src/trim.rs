//! Trimming the stream. The stream is a cache of the log: trimmed entries can be read from Postgres.

use anyhow::{Context, Result};
use redis::aio::MultiplexedConnection;
use stream::codec::EntryId;

/// Removes the entries before `first_retained`, and the oldest entries beyond `len_max`. Returns how many were removed.
///
/// Both cuts are approximate (`~`): Redis frees whole nodes of some hundred entries, which is cheap. Each command frees a
/// hundred nodes at most, so that other clients do not wait for long. So the command is repeated until it removes nothing.
///
/// # Errors
/// Redis is away, or refuses.
pub(crate) async fn trim(
    stream: &mut MultiplexedConnection,
    key: &str,
    first_retained: i64,
    len_max: u64,
) -> Result<u64> {
    let oldest = EntryId { offset: first_retained, copy: 0 }.to_string();
    let mut trimmed_count = 0;
    for (strategy, threshold) in [("MINID", oldest), ("MAXLEN", len_max.to_string())] {
        loop {
            let mut trim = redis::cmd("XTRIM");
            trim.arg(key).arg(strategy).arg("~").arg(&threshold);
            let count: u64 = trim.query_async(stream).await.context("trimming the stream")?;
            if count == 0 {
                break;
            }
            trimmed_count += count;
        }
    }
    Ok(trimmed_count)
}
