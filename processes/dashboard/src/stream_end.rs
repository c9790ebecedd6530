//! What Redis says: where the stream ends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use stream::StreamArgs;
use stream::end::StreamEnd;
use stream::resp::{Commands, Element, Elements};
use stream::wire::Wire;

use crate::sample::{Server, StreamState};

/// Redis, asked again and again on a connection of its own.
pub(crate) struct Stream {
    args: StreamArgs,
    wire: Option<Wire>,
}

impl Stream {
    /// Connects when first asked.
    pub fn new(args: &StreamArgs) -> Self {
        Self { args: args.clone(), wire: None }
    }

    /// Where the stream ends, and how long it took to find out.
    ///
    /// # Errors
    /// Redis is away, or refuses: ask again.
    pub async fn read(&mut self) -> Result<(Server, StreamState)> {
        // Taken, so that after an error the next reading connects anew: a reply may still be on its way.
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => Wire::connect(&self.args.redis_url, Duration::ZERO).await?,
        };
        let began_at = Instant::now();
        let end = StreamEnd::read(&mut wire, &self.args.key()).await.context("asking where the stream ends")?;
        let entry_count = ask_for_number(&mut wire, &["XLEN", &self.args.key()]).await?;
        let answer_ms = Some(began_at.elapsed().as_secs_f64() * 1e3);
        self.wire = Some(wire);
        let stream = StreamState { last_offset: end.offset, entry_count: usize::try_from(entry_count)? };
        Ok((Server { is_up: true, answer_ms }, stream))
    }
}

async fn ask_for_number(wire: &mut Wire, command: &[&str]) -> Result<i64> {
    let mut question = Commands::default();
    question.add(command);
    wire.send(&question).await?;
    let reply = wire.read(1).await?;
    match Elements::of(&reply).next() {
        Some(Element::Integer(number)) => Ok(number),
        Some(Element::Error(line)) => bail!("redis refuses: {}", String::from_utf8_lossy(line)),
        other => bail!("redis answered {other:?}"),
    }
}
