//! The errors that Redis answers: which of them pass by themselves. Users: servers in this crate, streamer, consumer.

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

/// Whether an error reply, such as `MOVED 3999 127.0.0.1:7001`, passes by itself: back off, connect anew and try again.
/// Otherwise waiting does not help: another type of value is under the key, a permission is missing, the password is wrong.
pub fn is_passing(line: &str) -> bool {
    line.split(' ').next().is_some_and(|code| PASSING_CODES.contains(&code))
}

/// The address in an error reply `MOVED 3999 127.0.0.1:7001`; `None` for other errors.
pub fn moved_to(line: &str) -> Option<&str> {
    line.strip_prefix("MOVED ")?.split(' ').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_cluster_that_changes_pass_and_others_stay() {
        for line in [
            "READONLY You can't write against a read only replica.",
            "MOVED 1 host:1",
            "ASK 1 host:1",
            "LOADING Redis is loading the dataset in memory",
            "CLUSTERDOWN Hash slot not served",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "MASTERDOWN Link with MASTER is down",
            "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
            "OOM command not allowed",
        ] {
            assert!(is_passing(line), "{line}");
        }
        for line in ["WRONGTYPE no stream", "NOAUTH please", "NOPERM never", "CROSSSLOT keys", "ERR MOVED 1 h:1", ""] {
            assert!(!is_passing(line), "{line}");
        }
    }

    #[test]
    fn a_redirection_names_a_node() {
        assert_eq!(moved_to("MOVED 3999 127.0.0.1:7001"), Some("127.0.0.1:7001"));
        assert_eq!(moved_to("MOVED 3999 :7001"), Some(":7001"));
        assert_eq!(moved_to("ASK 3999 127.0.0.1:7001"), None);
        assert_eq!(moved_to("MOVED 3999"), None);
    }
}
