//! Reads from Redis where the stream ends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use stream::StreamArgs;
use stream::end::StreamEnd;
use stream::resp::{Commands, Element, Elements};
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
            None => Wire::connect(&self.args.redis_url, Duration::ZERO).await?,
        };
        let began_at = Instant::now();
        let end = StreamEnd::read(&mut wire, &self.args.key()).await.context("asking where the stream ends")?;
        let (entry_count, added_count) = read_counts(&mut wire, &self.args.key()).await?;
        let answer_ms = Some(began_at.elapsed().as_secs_f64() * 1e3);
        self.wire = Some(wire);
        let stream = StreamState { last_offset: end.offset, entry_count, added_count };
        Ok((Server { is_up: true, answer_ms }, stream))
    }
}

/// How many entries the stream has, and how many were ever added to it.
async fn read_counts(wire: &mut Wire, key: &str) -> Result<(i64, i64)> {
    let mut question = Commands::default();
    question.add(&["XINFO", "STREAM", key]);
    wire.send(&question).await?;
    decode_counts(&wire.read(1).await?)
}

fn decode_counts(reply: &[u8]) -> Result<(i64, i64)> {
    // [name, value, …], among them length and entries-added.
    let mut elements = Elements::of(reply);
    let len = match elements.next() {
        Some(Element::Array(len)) => len,
        Some(Element::Error(line)) if line.ends_with(b"no such key") => return Ok((0, 0)),
        Some(Element::Error(line)) => bail!("redis refuses: {}", String::from_utf8_lossy(line)),
        other => bail!("redis answered {other:?}"),
    };
    let (mut entry_count, mut added_count) = (None, None);
    for _ in 0..len / 2 {
        let slot = match elements.next() {
            Some(Element::Bulk(b"length")) => &mut entry_count,
            Some(Element::Bulk(b"entries-added")) => &mut added_count,
            _ => {
                elements.skip_value();
                continue;
            }
        };
        match elements.next() {
            Some(Element::Integer(number)) => *slot = Some(number),
            other => bail!("redis answered {other:?}"),
        }
    }
    entry_count.zip(added_count).context("redis did not say how many entries the stream has")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_among_what_redis_says_of_a_stream() {
        let (length, node) = ("$6\r\nlength\r\n:3\r\n", "$15\r\nradix-tree-keys\r\n:1\r\n");
        let added = "$13\r\nentries-added\r\n:9\r\n";
        let first = "$11\r\nfirst-entry\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n";
        let counts = |text: String| decode_counts(text.as_bytes()).unwrap();
        assert_eq!(counts(format!("*8\r\n{length}{node}{first}{added}")), (3, 9));
        assert_eq!(counts("-ERR no such key\r\n".to_owned()), (0, 0));
        assert!(decode_counts(format!("*4\r\n{length}{node}").as_bytes()).is_err(), "a count is missing");
        assert!(decode_counts(b"-NOPERM no\r\n").unwrap_err().to_string().contains("redis refuses: NOPERM no"));
    }
}
