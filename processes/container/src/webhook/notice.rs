//! The body of a request, which the webhook writes and the receiver of notices reads.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::destination::UnitRef;

/// The order to the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Store the part.
    Store,
    /// Take the part back.
    Undo,
}

impl Action {
    /// The last word of a notice's type and of its id.
    pub fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Undo => "undo",
        }
    }

    /// The action of a notice's type, for example `manifests.store`.
    pub fn of(kind: &str) -> Option<Self> {
        let (_, name) = kind.rsplit_once('.')?;
        [Self::Store, Self::Undo].into_iter().find(|action| action.name() == name)
    }
}

/// The body: `{"type":"manifests.store","data":{"unit":"…","attempt":1,"uow":17,…,"document":{…}}}`
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Notice<'a> {
    /// The resource and the action.
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    /// The attempt.
    #[serde(borrow)]
    pub data: Data<'a>,
}

/// The attempt that a notice is about.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Data<'a> {
    /// The random key of the unit. The key and the attempt are what a register is about.
    pub unit: Uuid,
    pub attempt: i32,
    pub uow: i64,
    #[serde(borrow)]
    pub resource: Cow<'a, str>,
    #[serde(borrow)]
    pub subject: Cow<'a, str>,
    /// Absent from an undo.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub document: Option<&'a RawValue>,
}

impl<'a> Notice<'a> {
    /// The notice of an action on an attempt.
    pub fn new(action: Action, unit: UnitRef<'a>, document: Option<&'a RawValue>) -> Self {
        let UnitRef { uow, key, attempt, resource, subject } = unit;
        let (resource, subject) = (Cow::from(resource), Cow::from(subject));
        let kind = format!("{resource}.{}", action.name()).into();
        Self { kind, data: Data { unit: key, attempt, uow, resource, subject, document } }
    }
}
