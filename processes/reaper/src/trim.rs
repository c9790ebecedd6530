//! Trimming the stream. The stream is a cache of the log: trimmed entries can be read from Postgres.

use anyhow::{Context, Result};
use redis::aio::MultiplexedConnection;
use stream::codec::EntryId;

/// Commands per cut. Each frees a hundred nodes of some hundred entries at most.
const TRIMS_LEN_MAX: usize = 1000;

/// The entries that one call removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Trimmed {
    /// How many they are.
    pub count: u64,
    /// Whether it ended before everything was removed.
    pub is_more_left: bool,
}

/// Removes the entries before `first_retained`, and the oldest entries beyond `len_max`.
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
) -> Result<Trimmed> {
    let oldest = EntryId { offset: first_retained, copy: 0 }.to_string();
    let mut trimmed = Trimmed::default();
    for (strategy, threshold) in [("MINID", oldest), ("MAXLEN", len_max.to_string())] {
        let mut is_done = false;
        for _ in 0..TRIMS_LEN_MAX {
            let mut trim = redis::cmd("XTRIM");
            trim.arg(key).arg(strategy).arg("~").arg(&threshold);
            let count: u64 = trim.query_async(stream).await.context("trimming the stream")?;
            trimmed.count += count;
            is_done = count == 0;
            if is_done {
                break;
            }
        }
        trimmed.is_more_left |= !is_done;
    }
    Ok(trimmed)
}
