//! The errors that Redis answers: which of them pass, which stay, and which mean that an entry is in the stream already.

use anyhow::Error;
use stream::refusal::{is_passing, moved_to};

/// Redis refuses for a reason that does not pass by itself: another type under the key, no permission, a bad password.
#[derive(Debug, thiserror::Error)]
#[error("redis refuses to append to the stream; look at its configuration and at the key")]
pub struct Refused(#[source] ErrorReply);

impl Refused {
    /// Whether it is about what is under one key, and not about the user or the server.
    pub(crate) fn is_of_the_key(&self) -> bool {
        self.0.0.starts_with("WRONGTYPE ")
    }
}

/// An error reply of Redis. Its first word is a code for programs: `OOM command not allowed …`.
#[derive(Debug, thiserror::Error)]
#[error("redis answers {0}")]
struct ErrorReply(String);

/// Turns an error reply into an error: [`Refused`] if waiting does not help, a plain error otherwise.
pub(crate) fn classify_refusal(line: &str) -> anyhow::Error {
    let reply = ErrorReply(line.to_owned());
    if is_passing(line) { reply.into() } else { Refused(reply).into() }
}

/// An error reply to a question about one stream, sorted by what it means for the other streams of the same server.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Another node of the cluster has the stream.
    Moved(Error),
    /// The server is not the right one, or not ready.
    OfTheServer(Error),
    /// It concerns this stream.
    OfTheStream(Error),
}

impl Refusal {
    /// Sorts an error reply. `attempt` says what was tried.
    pub fn of(line: &str, attempt: &'static str) -> Self {
        let error = classify_refusal(line).context(attempt);
        if moved_to(line).is_some() {
            Self::Moved(error)
        } else if is_of_the_server(line) {
            Self::OfTheServer(error)
        } else {
            Self::OfTheStream(error)
        }
    }
}

/// Whether the whole server is not the one to write to: it is a replica now, or not ready. A new connection may lead to another
/// server.
fn is_of_the_server(line: &str) -> bool {
    ["READONLY", "LOADING", "MASTERDOWN"].contains(&line.split(' ').next().unwrap_or_default())
}

/// Whether XADD was refused because its id is not greater than the stream's last one, or than the highest possible one.
/// These replies have no code of their own, only these texts (Redis 5 to 8, Valkey 7 to 9).
pub(crate) fn is_already_there(line: &str) -> bool {
    const TEXTS: [&str; 2] = ["equal or smaller than the target stream top item", "exhausted the last possible ID"];
    TEXTS.iter().any(|text| line.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_id_is_known_by_its_text() {
        let refused = "ERR The ID specified in XADD is equal or smaller than the target stream top item";
        assert!(is_already_there(refused));
        let exhausted = "ERR The stream has exhausted the last possible ID, unable to add more items";
        assert!(is_already_there(exhausted));
        assert!(!is_already_there("ERR unknown command"));
    }

    #[test]
    fn an_error_of_the_server_concerns_all_its_streams() {
        let sorted = |line: &str| match Refusal::of(line, "trying") {
            Refusal::Moved(_) => "moved",
            Refusal::OfTheServer(_) => "server",
            Refusal::OfTheStream(_) => "stream",
        };
        let lines =
            ["MOVED 1 host:1", "READONLY replica", "LOADING dataset", "MASTERDOWN link", "TRYAGAIN slot", "OOM"];
        assert_eq!(lines.map(sorted), ["moved", "server", "server", "server", "stream", "stream"]);
    }

    #[test]
    fn errors_that_pass_are_retried_and_others_stop() {
        for line in
            ["READONLY replica", "MOVED 1 host:1", "LOADING dataset", "OOM memory", "MISCONF disk", "CLUSTERDOWN slot"]
        {
            assert!(classify_refusal(line).downcast_ref::<Refused>().is_none(), "{line}");
        }
        for line in ["WRONGTYPE no stream", "NOAUTH please", "NOPERM never", "ERR unknown command"] {
            assert!(classify_refusal(line).downcast_ref::<Refused>().is_some(), "{line}");
        }
    }
}
