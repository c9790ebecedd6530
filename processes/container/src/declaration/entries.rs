//! The shape of the file. serde refuses unknown keys and wrong types. The other modules check the values.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::complaint::Span;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) resource: Vec<ResourceEntry>,
    #[serde(default)]
    pub(super) destination: BTreeMap<Spanned<String>, Spanned<DestinationEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResourceEntry {
    pub(super) name: Spanned<String>,
    pub(super) subject: Spanned<String>,
    pub(super) document: Spanned<String>,
    pub(super) reader: Option<Spanned<String>>,
    pub(super) body_max: Option<Spanned<String>>,
    pub(super) destinations: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    pub(super) attachment: Vec<AttachmentEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AttachmentEntry {
    pub(super) name: Spanned<String>,
    pub(super) content_types: Spanned<Vec<Spanned<String>>>,
}

/// The keys of every kind. [`DestinationEntry::foreign_to`] finds those that the kind does not have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DestinationEntry {
    pub(super) kind: Spanned<KindName>,
    pub(super) takes: Option<Spanned<String>>,
    pub(super) time_out: Option<Spanned<String>>,
    pub(super) concurrency: Option<Spanned<i64>>,
    #[serde(default)]
    pub(super) retired: bool,
    pub(super) table: Option<Spanned<String>>,
    pub(super) folder: Option<Spanned<String>>,
    pub(super) redis: Option<Spanned<String>>,
    pub(super) prefix: Option<Spanned<String>>,
    pub(super) url: Option<Spanned<String>>,
    pub(super) secret: Option<Spanned<String>>,
    pub(super) allow_private: Option<Spanned<bool>>,
}

/// The word of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub(super) enum KindName {
    Rows,
    Files,
    Board,
    Webhook,
    /// A kind that the program has added, or none.
    Other(String),
}

impl KindName {
    /// The words of the kinds that every container has.
    pub(super) const NAMES: [&str; 4] = ["rows", "files", "board", "webhook"];

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Rows => "rows",
            Self::Files => "files",
            Self::Board => "board",
            Self::Webhook => "webhook",
            Self::Other(name) => name,
        }
    }
}

impl From<String> for KindName {
    fn from(name: String) -> Self {
        let known = [Self::Rows, Self::Files, Self::Board, Self::Webhook];
        known.into_iter().find(|kind| kind.name() == name).unwrap_or(Self::Other(name))
    }
}

impl DestinationEntry {
    /// The keys that belong to other kinds, with their places.
    pub(super) fn foreign_to(&self, kind: &KindName) -> impl Iterator<Item = (&'static str, Span)> {
        let texts = [
            ("table", KindName::Rows, &self.table),
            ("folder", KindName::Files, &self.folder),
            ("redis", KindName::Board, &self.redis),
            ("prefix", KindName::Board, &self.prefix),
            ("url", KindName::Webhook, &self.url),
            ("secret", KindName::Webhook, &self.secret),
        ];
        let texts = texts.map(|(key, owner, value)| (key, owner, value.as_ref().map(Spanned::span)));
        let flag = ("allow_private", KindName::Webhook, self.allow_private.as_ref().map(Spanned::span));
        let keys = texts.into_iter().chain([flag]);
        keys.filter_map(move |(key, owner, span)| (owner != *kind).then_some((key, span?)))
    }
}
