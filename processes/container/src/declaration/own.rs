//! Kinds of destinations that a program adds to those of the container. The common keys of a destination are checked as for every
//! kind. The program reads the other keys into a type of its own, so serde refuses unknown keys and wrong types with their lines.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::complaint::Span;
use super::entries::KindName;
use super::kind::Kind;
use super::values::Variables;
use crate::destination::Destination;

/// The keys that every destination has, whatever its kind.
const COMMON: [&str; 5] = ["kind", "takes", "time_out", "concurrency", "retired"];

/// A kind of destination that a program adds to those of the container. `docs/CONTAINER.md` shows how.
#[derive(Debug, Clone, Copy)]
pub struct OwnKind {
    /// The word in the declaration, for example `ledger`. It is another word than the container's own kinds have.
    pub name: &'static str,
    /// Makes a destination from its settings. It connects to no server and changes no file, because `--check` makes it too.
    pub make: fn(Settings<'_>) -> Result<Own, SettingsError>,
}

/// A destination of an own kind.
pub struct Own {
    /// Where it stores, without secrets. It is shown to people, and its hash is the fingerprint: two destinations at one place
    /// would undo each other's units, and a destination whose place changes has moved.
    pub place: String,
    /// The destination. It keeps the contract of [`crate::destination`], which [`crate::contract::check`] checks.
    pub destination: Arc<dyn Destination>,
}

/// The settings of a destination of an own kind. In its texts, the value of the variable stands in place of each `${NAME}`.
pub struct Settings<'a> {
    /// The attachment that it takes.
    pub takes: Option<String>,
    /// As it stands in the file.
    written: Spanned<DeTable<'a>>,
    filled: Spanned<DeTable<'a>>,
}

impl<'a> Settings<'a> {
    /// The keys that only this kind has. Let `T` refuse unknown keys, with `#[serde(deny_unknown_fields)]`.
    ///
    /// # Errors
    /// A key is missing, unknown or of another type. Pass the error on: it knows the line.
    pub fn read<T: Deserialize<'a>>(self) -> Result<T, SettingsError> {
        let Self { written, filled, .. } = self;
        T::deserialize(toml::Deserializer::from(filled)).map_err(|error| {
            // The message may quote a text. The value of a variable is not shown, because it may be a secret.
            let shown = T::deserialize(toml::Deserializer::from(written)).err();
            let fault = match &shown {
                Some(shown) => super::advised(shown.message()),
                None => "the value of a variable does not fit here: set another one in the environment".to_owned(),
            };
            SettingsError { span: error.span(), fault }
        })
    }
}

/// A fault in the settings of a destination: a sentence that says what to change.
#[derive(Debug)]
pub struct SettingsError {
    /// `None`: the line of the destination is shown.
    span: Option<Span>,
    fault: String,
}

impl SettingsError {
    /// A fault of the destination as a whole.
    pub fn new(fault: impl Into<String>) -> Self {
        Self { span: None, fault: fault.into() }
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fault)
    }
}

impl std::error::Error for SettingsError {}

/// The settings of the destinations of own kinds, by the name of the destination.
pub(super) type OwnTables<'a> = BTreeMap<String, (OwnKind, Spanned<DeTable<'a>>)>;

/// Takes the keys that only own kinds have out of the file, so that the rest has the shape of [`super::entries::File`].
pub(super) fn take_out<'a>(file: &mut DeTable<'a>, kinds: &[OwnKind]) -> OwnTables<'a> {
    let mut found = OwnTables::new();
    let Some(DeValue::Table(destinations)) = file.get_mut("destination").map(Spanned::get_mut) else { return found };
    for (name, entry) in destinations.iter_mut() {
        let span = entry.span();
        let DeValue::Table(entry) = entry.get_mut() else { continue };
        let named = entry.get("kind").and_then(|kind| kind.get_ref().as_str());
        let Some(named) = named.filter(|named| !KindName::NAMES.contains(named)) else { continue };
        let kind = kinds.iter().find(|kind| kind.name == named);
        let (common, own) = std::mem::take(entry).into_iter().partition(|(key, _)| COMMON.contains(&&**key.get_ref()));
        *entry = common;
        // Only the kind is refused if it is unknown: the keys may be right.
        found.extend(kind.map(|kind| (name.get_ref().to_string(), (*kind, Spanned::new(span, own)))));
    }
    found
}

/// Makes a destination of an own kind. `at` is where the destination stands.
pub(super) fn make(
    (kind, written): (OwnKind, Spanned<DeTable<'_>>),
    takes: Option<String>,
    at: Span,
    values: &mut Variables<'_, '_>,
) -> Option<Kind> {
    let mut filled = written.clone();
    if !fill_all(filled.get_mut(), values) {
        return None;
    }
    match (kind.make)(Settings { takes, written, filled }) {
        Ok(Own { place, destination }) => Some(Kind::Own { name: kind.name, place, destination }),
        Err(SettingsError { span, fault }) => values.refuse(span.unwrap_or(at), fault),
    }
}

/// Fills the variables into all texts of a table. `false`: one has a fault. Each fault is told, so every text is looked at.
fn fill_all(table: &mut DeTable<'_>, values: &mut Variables<'_, '_>) -> bool {
    table.iter_mut().map(|(_, value)| usize::from(!fill(value, values))).sum::<usize>() == 0
}

fn fill(value: &mut Spanned<DeValue<'_>>, values: &mut Variables<'_, '_>) -> bool {
    let span = value.span();
    match value.get_mut() {
        DeValue::String(text) => {
            let filled = values.filled(&Spanned::new(span, text.to_string()));
            filled.map(|filled| *text = filled.into()).is_some()
        }
        DeValue::Array(array) => array.iter_mut().map(|value| usize::from(!fill(value, values))).sum::<usize>() == 0,
        DeValue::Table(table) => fill_all(table, values),
        _ => true,
    }
}
