//! The errors that Redis answers: which of them pass, which stay, and which mean that an entry is in the stream already.

/// Redis refuses for a reason that does not pass by itself: another type under the key, no permission, a bad password.
#[derive(Debug, thiserror::Error)]
#[error("redis refuses to append to the stream; look at its configuration and at the key")]
pub struct Refused(#[source] ErrorReply);

/// An error reply of Redis. Its first word is a code for programs: `OOM command not allowed …`.
#[derive(Debug, thiserror::Error)]
#[error("redis answers {0}")]
struct ErrorReply(String);

/// Failing over, moved to another node, loading, out of memory, out of disk, not enough replicas, running a long script.
const PASSING_CODES: [&str; 12] = [
    "READONLY",
    "MOVED",
    "ASK",
    "LOADING",
    "OOM",
    "MISCONF",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MASTERDOWN",
    "NOREPLICAS",
    "BUSY",
    "UNBLOCKED",
];

/// Turns an error reply into an error: [`Refused`] if waiting does not help, a plain error otherwise.
pub(crate) fn classify_refusal(line: &str) -> anyhow::Error {
    let reply = ErrorReply(line.to_owned());
    match line.split(' ').next() {
        Some(code) if PASSING_CODES.contains(&code) => reply.into(),
        _ => Refused(reply).into(),
    }
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
