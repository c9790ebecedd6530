//! The headers in which a request describes its operation.
//!
//! Source: draft-ietf-httpapi-idempotency-key-header-07 for `Idempotency-Key`. The `X-` headers are those of the Go library
//! that this one follows.

use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;

use crate::go_duration::parse_go_duration;
use crate::key::unquoted;

/// A request that is refused with status 400 and this sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid(pub String);

/// The key of a request: `Idempotency-Key`, or `X-Idempotency-Key`. Most clients send it without quotes, and the draft wants
/// quotes; `abc` and `"abc"` are the same key. `None`: there is no key.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<String>, Invalid> {
    let mut found: Option<String> = None;
    for name in ["Idempotency-Key", "X-Idempotency-Key"] {
        let Some(text) = single(headers, name)? else { continue };
        let key = unquoted(text).filter(|key| (1..=255).contains(&key.len())).ok_or_else(|| invalid(name))?;
        // Two headers with different keys are refused, as one header that is sent twice.
        if found.as_ref().is_some_and(|found| *found != key) {
            return Err(invalid(name));
        }
        found = Some(key);
    }
    Ok(found)
}

/// The time from which the expiration counts: `X-Idempotency-Reference-Time`, as in RFC 3339.
pub(crate) fn reference_time(headers: &HeaderMap) -> Result<Option<Timestamp>, Invalid> {
    const NAME: &str = "X-Idempotency-Reference-Time";
    let Some(text) = single(headers, NAME)? else { return Ok(None) };
    // RFC 3339 has years of four digits. Others would begin with a sign.
    let is_plain = text.starts_with(|char: char| char.is_ascii_digit()) && !text.contains('[');
    text.parse().ok().filter(|_| is_plain).map(Some).ok_or_else(|| invalid(NAME))
}

/// How long a claim shall hold: `X-Idempotency-Timeout`, for example `90s`; `0`: for ever. `None`: there is no header. The
/// settings bound it.
pub(crate) fn timeout(headers: &HeaderMap) -> Result<Option<Option<Duration>>, Invalid> {
    duration(headers, "X-Idempotency-Timeout")
}

/// How long after the reference time the operation may be done: `X-Idempotency-Expiration`; `0`: for ever. The settings bound
/// it.
pub(crate) fn expiration(headers: &HeaderMap) -> Result<Option<Option<Duration>>, Invalid> {
    duration(headers, "X-Idempotency-Expiration")
}

fn duration(headers: &HeaderMap, name: &str) -> Result<Option<Option<Duration>>, Invalid> {
    let Some(text) = single(headers, name)? else { return Ok(None) };
    // A duration may be negative; a time-out and an expiration may not.
    let duration = parse_go_duration(text).and_then(|duration| Duration::try_from(duration).ok());
    let duration = duration.ok_or_else(|| invalid(name))?;
    Ok(Some(Some(duration).filter(|duration| !duration.is_zero())))
}

fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Invalid> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid(name));
    }
    str::from_utf8(value.as_bytes()).map(Some).map_err(|_| invalid(name))
}

fn invalid(name: &str) -> Invalid {
    Invalid(format!("Invalid {name}"))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use jiff::SignedDuration;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_key_is_bare_or_quoted() {
        for (value, expected) in [
            ("8e03978e-40d5-43dd", "8e03978e-40d5-43dd"),
            (r#""8e03978e-40d5-43dd""#, "8e03978e-40d5-43dd"),
            (r#""a \"b\" \\ c""#, r#"a "b" \ c"#),
            (r#"a"b\c"#, r#"a"b\c"#),
            ("a b;c=1", "a b;c=1"),
        ] {
            for name in ["idempotency-key", "x-idempotency-key"] {
                assert_eq!(key(&headers(&[(name, value)])).unwrap().as_deref(), Some(expected), "{value}");
            }
        }
        assert_eq!(key(&headers(&[])).unwrap(), None);
    }

    #[test]
    fn a_bad_key_is_refused() {
        let long = "x".repeat(256);
        for value in ["", r#""""#, r#"""#, r#""a"#, r#""a\"#, r#""a\b""#, r#""a"b"#, r#""a";b=1"#, "ü", "a\tb", &long]
        {
            assert_eq!(key(&headers(&[("idempotency-key", value)])), Err(invalid("Idempotency-Key")), "{value}");
        }
        let twice = headers(&[("idempotency-key", "a"), ("idempotency-key", "a")]);
        assert_eq!(key(&twice), Err(invalid("Idempotency-Key")));
        let same = headers(&[("idempotency-key", "a"), ("x-idempotency-key", "\"a\"")]);
        assert_eq!(key(&same).unwrap().as_deref(), Some("a"));
        let differ = headers(&[("idempotency-key", "a"), ("x-idempotency-key", "b")]);
        assert_eq!(key(&differ), Err(invalid("X-Idempotency-Key")));
    }

    #[test]
    fn a_reference_time_is_that_of_rfc_3339() {
        let read = |value| reference_time(&headers(&[("x-idempotency-reference-time", value)]));
        let expected: Timestamp = "2026-11-21T17:00:00.5Z".parse().unwrap();
        for value in ["2026-11-21T17:00:00.5Z", "2026-11-21T18:00:00.5+01:00", "2026-11-21t17:00:00.5z"] {
            assert_eq!(read(value), Ok(Some(expected)), "{value}");
        }
        for value in ["", "now", "2026-11-21", "1763744400", "-009000-01-01T00:00:00Z", "2026-11-21T17:00:00"] {
            assert_eq!(read(value), Err(invalid("X-Idempotency-Reference-Time")), "{value}");
        }
    }

    #[test]
    fn a_duration_is_that_of_go_and_zero_is_for_ever() {
        let read = |value| timeout(&headers(&[("x-idempotency-timeout", value)]));
        let of = |duration: SignedDuration| Some(Some(Duration::try_from(duration).unwrap()));
        assert_eq!(read("2h45m"), Ok(of(SignedDuration::from_mins(165))));
        assert_eq!(read("1.5µs"), Ok(of(SignedDuration::from_nanos(1500))));
        assert_eq!(read("0"), Ok(Some(None)));
        assert_eq!(timeout(&headers(&[])), Ok(None));
        for value in ["", "10", "-1s", "1 s"] {
            assert_eq!(read(value), Err(invalid("X-Idempotency-Timeout")), "{value}");
            let headers = headers(&[("x-idempotency-expiration", value)]);
            assert_eq!(expiration(&headers), Err(invalid("X-Idempotency-Expiration")), "{value}");
        }
    }
}
