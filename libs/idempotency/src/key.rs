//! The key of an operation, as a header states it.
//!
//! Source: draft-ietf-httpapi-idempotency-key-header-07, and RFC 9651 for the quotes.

/// The key in a header value, with or without quotes around it. `None` if it is malformed, or has characters that are not
/// printable ASCII.
///
/// ```
/// assert_eq!(idempotency::unquoted("abc"), idempotency::unquoted("\"abc\""));
/// assert_eq!(idempotency::unquoted("\"abc"), None);
/// ```
pub fn unquoted(text: &str) -> Option<String> {
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return None;
    }
    let Some(quoted) = text.strip_prefix('"') else { return Some(text.to_owned()) };
    let mut key = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    loop {
        match chars.next()? {
            '"' => break,
            '\\' => key.push(chars.next().filter(|char| matches!(char, '"' | '\\'))?),
            char => key.push(char),
        }
    }
    // Only parameters could follow here, and the draft defines none.
    chars.as_str().is_empty().then_some(key)
}
