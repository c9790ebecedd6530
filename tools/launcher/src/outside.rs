//! The variables by which a demo or a test would reach what the launcher has not started: a server, an account, a proxy. A
//! shell often has some of them for other work. They are passed over, unless `--use` names them.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};

use crate::find::given;

/// Servers and accounts.
const ELSEWHERE: [&str; 9] = [
    "DATABASE_URL",
    "STANDBY_DATABASE_URL",
    "STATE_DATABASE_URL",
    "REDIS_URL",
    "WALLETS_REDIS_URL",
    "STRIPE_API_KEY",
    "STRIPE_API_BASE",
    "RECEIPTS_SMTP_URL",
    // It may be a bucket.
    "CONTAINER_SPOOL",
];

/// Every setting of the programs.
const EXAMPLE: &str = include_str!("../../../.env.example");

/// The settings that choose the servers and the seed of tests.
const KEPT: [&str; 3] = ["PG_BIN", "REDIS_BIN", "FAULT_SEED"];

/// Whether a variable leads to something that the launcher has not started.
pub(crate) fn leads_outside(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let is_libpqs = name.starts_with("PG") && name != "PG_BIN";
    let is_proxy = name.to_lowercase().ends_with("_proxy");
    is_told(&name) || is_libpqs || is_proxy || name == "NOTIFY_SOCKET"
}

/// Whether a person is told that the variable is set and passed over.
fn is_told(name: &str) -> bool {
    ELSEWHERE.contains(&name) || name.starts_with("OTEL_EXPORTER_")
}

/// A name in `--use`: a variable that leads outside and is set.
pub(crate) fn parse_used(name: &str) -> Result<String, String> {
    if !leads_outside(OsStr::new(name)) {
        return Err(
            "give variables that lead to servers or accounts, for example DATABASE_URL,REDIS_URL; other variables \
                    are used without it"
                .to_owned(),
        );
    }
    match given(name) {
        Some(_) => Ok(name.to_owned()),
        None => Err("this variable is not set: give it a value, or leave it out of --use".to_owned()),
    }
}

/// The variables that `--use` names.
#[derive(Debug, Clone)]
pub(crate) struct Outside {
    used: BTreeSet<String>,
}

impl Outside {
    /// The variables that [`parse_used`] has accepted.
    pub fn new(names: &[String]) -> Self {
        Self { used: names.iter().cloned().collect() }
    }

    /// The value of a variable that `--use` names.
    pub fn value(&self, name: &str) -> Option<String> {
        self.used.contains(name).then(|| given(name)).flatten()
    }

    /// The names of the servers' and accounts' variables that are set and passed over.
    pub fn passed_over(&self) -> Vec<String> {
        let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        let passed_over = names.filter(|name| is_told(name) && !self.used.contains(name) && given(name).is_some());
        passed_over.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The environment of the launcher without the variables that lead outside, for its children.
    pub fn environment(&self) -> HashMap<OsString, OsString> {
        let is_used = |name: &OsStr| self.used.contains(&*name.to_string_lossy());
        std::env::vars_os().filter(|(name, _)| !leads_outside(name) || is_used(name)).collect()
    }
}

/// The environment of this program without variables that lead outside, and with every setting at its default: for the processes
/// of tests, of chaos and of benchmarks.
pub fn clean_environment() -> HashMap<OsString, OsString> {
    let lines = EXAMPLE.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
    let settings: BTreeSet<&str> = lines.map(|(name, _)| name).filter(|name| !KEPT.contains(name)).collect();
    let is_kept = |name: &OsStr| !leads_outside(name) && !settings.contains(&*name.to_string_lossy());
    std::env::vars_os().filter(|(name, _)| is_kept(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_leads_outside_is_known_by_its_name() {
        for name in [
            "DATABASE_URL",
            "STRIPE_API_KEY",
            "RECEIPTS_SMTP_URL",
            "CONTAINER_SPOOL",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "PGHOST",
            "PGPORT",
            "https_proxy",
            "ALL_PROXY",
            "NOTIFY_SOCKET",
        ] {
            assert!(leads_outside(OsStr::new(name)), "{name}");
        }
        // A new setting that leads to a server or an account has to be known too.
        let ends = ["_URL", "_KEY", "_BASE", "_ENDPOINT"];
        let settings = EXAMPLE.lines().filter_map(|line| Some(line.strip_prefix('#')?.split_once('=')?.0));
        for name in settings.filter(|name| ends.iter().any(|end| name.ends_with(end))) {
            assert!(leads_outside(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "PG_BIN", "API_PORT", "FAULT_RATE", "SSL_CERT_FILE", "OTEL_SERVICE_NAME"] {
            assert!(!leads_outside(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn only_a_variable_that_is_set_and_leads_outside_can_be_used() {
        assert!(parse_used("PATH").unwrap_err().contains("other variables are used without it"));
        assert!(parse_used("OTEL_EXPORTER_THAT_IS_NOT_SET").unwrap_err().contains("this variable is not set"));
    }
}
