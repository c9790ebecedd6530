//! What a check says.

use std::borrow::Cow;

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but something is lost, slow or unknown.
    Warn,
    /// A process cannot work, or what was confirmed may be lost.
    Fail,
}

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check, for example `redis.role`.
    pub check: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was seen.
    pub what: String,
    /// Why it hurts; empty if it does not.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub why: &'static str,
    /// What to do; empty if nothing.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub fix: Cow<'static, str>,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, what: what.into(), why: "", fix: "".into() }
    }

    /// It works, but.
    pub fn warn(
        check: &'static str,
        what: impl Into<String>,
        why: &'static str,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { check, verdict: Verdict::Warn, what: what.into(), why, fix: fix.into() }
    }

    /// It does not work.
    pub fn fail(
        check: &'static str,
        what: impl Into<String>,
        why: &'static str,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(check, what, why, fix) }
    }

    /// The check could not be made.
    pub fn unseen(check: &'static str, error: &anyhow::Error) -> Self {
        Self::warn(
            check,
            format!("cannot see: {error:#}"),
            "it may be well or not",
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
