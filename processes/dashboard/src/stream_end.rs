//! Reads from Redis where the stream ends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use stream::StreamArgs;
use stream::end::StreamEnd;
use stream::wire::Wire;

use crate::sample::{Server, StreamState};

/// Redis, asked for every sample on a connection of its own.
pub(crate) struct Stream {
    args: StreamArgs,
    wire: Option<Wire>,
}

impl Stream {
    /// Connects with the first reading.
    pub fn new(args: &StreamArgs) -> Self {
        Self { args: args.clone(), wire: None }
    }

    /// Where the stream ends, and how long Redis took to answer.
    ///
    /// # Errors
    /// Redis does not answer, or refuses: ask again.
    pub async fn read(&mut self) -> Result<(Server, StreamState)> {
        // Taken out, so that the next reading connects anew after an error. A late reply to this reading would be taken for
        // the reply to the next.
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => Wire::connect(self.args.redis_url.first(), Duration::ZERO).await?,
        };
        let began_at = Instant::now();
        let end = StreamEnd::read(&mut wire, &self.args.key()).await.context("asking where the stream ends")?;
        let answer_ms = Some(began_at.elapsed().as_secs_f64() * 1e3);
        self.wire = Some(wire);
        let counts = end.counts.context("redis did not say how many entries the stream has")?;
        let stream = StreamState { last_offset: end.offset, entry_count: counts.held, added_count: counts.added };
        Ok((Server { is_up: true, answer_ms }, stream))
    }
}
