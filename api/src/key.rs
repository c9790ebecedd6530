//! The header `Idempotency-Key`, of bookings and of wallets.

use axum::http::HeaderMap;

use crate::error::Error;

/// The name of the header.
pub(crate) const HEADER: &str = "idempotency-key";

/// The longest key, in characters.
pub(crate) const KEY_LEN_MAX: usize = 255;

/// The client's key, bare or as a quoted string. `None`: the client sent none.
///
/// # Errors
/// The header is empty, too long or malformed, or was sent twice.
pub(crate) fn read_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let value = value.to_str().map_err(|_| Error::KeyMalformed)?.trim();
    if values.next().is_some() {
        return Err(Error::KeyMalformed);
    }
    match idempotency::unquoted(value).ok_or(Error::KeyMalformed)? {
        key if key.is_empty() => Err(Error::KeyEmpty),
        key if key.len() > KEY_LEN_MAX => Err(Error::KeyTooLong { max: KEY_LEN_MAX }),
        key => Ok(Some(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&'static str]) -> Result<Option<String>, Error> {
        read_key(&values.iter().map(|value| (HEADER.parse().unwrap(), value.parse().unwrap())).collect())
    }

    #[test]
    fn a_key_is_one_to_255_characters_in_one_header() {
        assert_eq!(read(&[]), Ok(None));
        for (value, key) in [("a", "a"), (" \"a b\" ", "a b"), ("\"a\\\"b\"", "a\"b")] {
            assert_eq!(read(&[value]), Ok(Some(key.to_owned())), "{value}");
        }
        for value in ["", "\"\"", "  "] {
            assert_eq!(read(&[value]), Err(Error::KeyEmpty), "{value:?}");
        }
        for values in [&["\"a"][..], &["a\tb"], &["a", "a"]] {
            assert_eq!(read(values), Err(Error::KeyMalformed), "{values:?}");
        }
        let long: &'static str = "k".repeat(KEY_LEN_MAX + 1).leak();
        assert_eq!(read(&[long]), Err(Error::KeyTooLong { max: KEY_LEN_MAX }));
        assert!(read(&[&long[1..]]).is_ok());
    }
}
