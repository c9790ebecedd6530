//! Payloads and results are bytes. These functions convert values to bytes and back, as JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value as bytes. No value is encoded as no bytes.
///
/// # Errors
/// The value cannot be written as JSON, for example a map whose keys are not strings.
pub fn encode<T: Serialize>(value: Option<&T>) -> Result<Vec<u8>, serde_json::Error> {
    value.map_or_else(|| Ok(Vec::new()), serde_json::to_vec)
}

/// The value that [`encode`] was given.
///
/// # Errors
/// The bytes are not JSON, or are the JSON of another type.
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
