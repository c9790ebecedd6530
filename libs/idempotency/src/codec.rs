//! Payloads and results are bytes; these two make them out of values, as JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value as bytes; no value is no bytes.
///
/// # Errors
/// The value has no form in JSON, for example a map whose keys are no texts.
pub fn encode<T: Serialize>(value: Option<&T>) -> Result<Vec<u8>, serde_json::Error> {
    value.map_or_else(|| Ok(Vec::new()), serde_json::to_vec)
}

/// The value that [`encode`] was given.
///
/// # Errors
/// The bytes are no JSON, or that of something else.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<T>, serde_json::Error> {
    if bytes.is_empty() { Ok(None) } else { serde_json::from_slice(bytes).map(Some) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn an_serializer_nil_is_empty() {
        assert_eq!(encode::<String>(None).unwrap(), b"");
    }

    #[test]
    fn an_serializer_refuses_what_cannot_be_encoded() {
        encode(Some(&BTreeMap::from([((1, 2), 3)]))).unwrap_err();
    }

    #[test]
    fn an_serializer_round_trip() {
        let value = BTreeMap::from([("origin".to_owned(), vec![0.5, -1.25]), (String::new(), vec![])]);
        assert_eq!(decode(&encode(Some(&value)).unwrap()).unwrap(), Some(value));
        // A null is a value.
        assert_eq!(decode::<Option<i32>>(&encode(Some(&None::<i32>)).unwrap()).unwrap(), Some(None));
    }

    #[test]
    fn an_serializer_empty_is_nil() {
        assert_eq!(decode::<String>(b"").unwrap(), None);
    }

    #[test]
    fn an_serializer_refuses_garbage() {
        decode::<String>(b"\x00garbage").unwrap_err();
        decode::<String>(b"5").unwrap_err();
    }
}
