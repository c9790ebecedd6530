//! The outcome of a check, and how it is printed.

use std::borrow::Cow;

use serde::Serialize;

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The check found nothing wrong.
    Ok,
    /// The system works, but something is slow, unknown, or at risk.
    Warn,
    /// A process cannot work, or confirmed rides may be lost.
    Fail,
}

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check, for example `redis.role`.
    pub check: &'static str,
    /// Its severity.
    pub verdict: Verdict,
    /// The state that the check found.
    pub what: String,
    /// The harm that this state does; empty if it does none.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub why: &'static str,
    /// The remedy; empty if none is needed.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub fix: Cow<'static, str>,
}

impl Finding {
    /// A finding with nothing wrong.
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, what: what.into(), why: "", fix: "".into() }
    }

    /// A warning.
    pub fn warn(
        check: &'static str,
        what: impl Into<String>,
        why: &'static str,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { check, verdict: Verdict::Warn, what: what.into(), why, fix: fix.into() }
    }

    /// A failure.
    pub fn fail(
        check: &'static str,
        what: impl Into<String>,
        why: &'static str,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(check, what, why, fix) }
    }

    /// The same, about this place: `partition 3`, for example.
    pub(super) fn at(self, place: &str) -> Self {
        Self { what: format!("{place}: {}", self.what), ..self }
    }

    /// A warning: the check could not be made.
    pub fn unseen(check: &'static str, error: &anyhow::Error) -> Self {
        Self::warn(
            check,
            format!("cannot see: {error:#}"),
            "the state is unknown",
            "let this role look, or look yourself",
        )
    }
}

/// `FAIL redis.role: it is a replica. Why: it refuses writes. Fix: point REDIS_URL at the primary`
impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        write!(f, "{verdict} {}: {}", self.check, self.what)?;
        if !self.why.is_empty() {
            write!(f, ". Why: {}", self.why)?;
        }
        if !self.fix.is_empty() {
            write!(f, ". Fix: {}", self.fix)?;
        }
        Ok(())
    }
}
