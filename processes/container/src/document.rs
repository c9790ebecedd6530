//! The document of a request: a JSON object that every destination reads in the same way.
//!
//! JSON allows a name twice in one object, and does not say which value counts. Postgres keeps the last, and another program may
//! keep the first, so such a document is refused before it is stored anywhere. So is a text with a NUL, which Postgres cannot hold.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// Reads one field of a document. `None`: the document has no such field, or is no object. The other fields are checked, and not
/// kept.
///
/// # Errors
/// The text is no JSON, is nested too deeply, has a name twice in one object, or has a text with a NUL.
pub(crate) fn read(text: &[u8], field: &str) -> Result<Option<Value>, serde_json::Error> {
    serde_json::from_slice::<Unambiguous>(text)?;
    let Ok(fields) = serde_json::from_slice::<HashMap<Cow<'_, str>, &RawValue>>(text) else { return Ok(None) };
    fields.get(field).map(|value| serde_json::from_str(value.get())).transpose()
}

/// A value in which no object has a name twice, and no text a NUL. It is not kept.
struct Unambiguous;

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Unambiguous {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self, E> {
        if text.contains('\0') {
            return Err(E::custom("a text has the character \\u0000, which cannot be stored"));
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self, A::Error> {
        while let Some(Self) = elements.next_element()? {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = entries.next_key::<Cow<'de, str>>()? {
            Self.visit_str::<A::Error>(&name)?;
            if names.contains(&name) {
                return Err(A::Error::custom(format_args!("an object has the name {name:?} twice")));
            }
            names.insert(name);
            entries.next_value::<Self>()?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::read;

    #[test]
    fn an_ambiguous_document_is_refused_with_the_place() {
        let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        for (text, fault) in [
            (r#"{"a":1,"a":1}"#, "an object has the name \"a\" twice at line 1 column"),
            (r#"{"a":1,"\u0061":1}"#, "an object has the name \"a\" twice"),
            (r#"[{"b":{"a":1,"a":2}}]"#, "an object has the name \"a\" twice"),
            (r#"{"a":"x\u0000"}"#, "a text has the character \\u0000"),
            (r#"{"a\u0000":1}"#, "a text has the character \\u0000"),
            (r#"["\ud800"]"#, "end of hex escape"),
            ("1e999", "number out of range"),
            (&deep(200), "recursion limit exceeded"),
            ("{} {}", "trailing characters"),
            ("", "EOF"),
        ] {
            let told = read(text.as_bytes(), "a").unwrap_err().to_string();
            assert!(told.contains(fault), "{text}: {told}");
        }
    }

    #[test]
    fn a_field_of_every_other_document_is_read() {
        for (text, field) in [
            (r#"{"a":[null,true,-1,18446744073709551615,1.5,"\\u0000","é"],"b":{"a":1},"c":{"a":1}}"#, None),
            (r#"{"\u0061":"é\n"}"#, Some(json!("é\n"))),
            (r#"{"b":{"a":1},"a":-1}"#, Some(json!(-1))),
            (r#"[{"a":1},{"a":1}]"#, None),
            ("\"a\"", None),
        ] {
            let field = field.or_else(|| serde_json::from_str::<Value>(text).unwrap().get("a").cloned());
            assert_eq!(read(text.as_bytes(), "a").unwrap(), field, "{text}");
        }
    }
}
