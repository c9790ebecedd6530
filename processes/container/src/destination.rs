//! Destinations: where the parts of a unit are stored. The contract that each kind keeps:
//!
//! - `store` and `undo` may be repeated, and may overtake each other (C4). A worker that was stopped while it stored may go on
//!   after another worker has undone the attempt.
//! - A destination keeps a register per unit and attempt, which only grows: nothing, stored, undone. A store of an undone
//!   attempt is refused. An undo of attempt 1 does not touch attempt 2.
//! - A destination stores under the unit's key, which is random. The number of a unit comes again after Postgres was put back.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use uuid::Uuid;

/// One attempt of a unit, as a destination sees it.
pub struct Unit {
    /// The number of the unit. The highest committed number of a subject is the current one.
    pub uow: i64,
    /// The random key of the unit.
    pub key: Uuid,
    /// From 1 on.
    pub attempt: i32,
    /// The name of the resource, for example `manifests`.
    pub resource: String,
    /// The thing that the unit is about, for example the id of a ride.
    pub subject: String,
    /// The document, as JSON.
    pub document: Bytes,
    /// The other parts of the body.
    pub attachments: Box<dyn Attachments>,
}

impl Unit {
    /// The attempt without its contents.
    pub fn reference(&self) -> UnitRef<'_> {
        UnitRef {
            uow: self.uow,
            key: self.key,
            attempt: self.attempt,
            resource: &self.resource,
            subject: &self.subject,
        }
    }
}

/// One attempt of a unit, without its contents.
#[derive(Debug, Clone, Copy)]
pub struct UnitRef<'a> {
    /// As [`Unit::uow`].
    pub uow: i64,
    /// As [`Unit::key`].
    pub key: Uuid,
    /// As [`Unit::attempt`].
    pub attempt: i32,
    /// As [`Unit::resource`].
    pub resource: &'a str,
    /// As [`Unit::subject`].
    pub subject: &'a str,
}

/// The parts of a body beside the document.
pub trait Attachments: Send + Sync {
    /// The part of this name, from its first byte on. `None`: the body has none.
    fn find(&self, name: &str) -> Option<Attachment>;
}

/// One part of a body.
pub struct Attachment {
    /// Its type, for example `image/jpeg`.
    pub content_type: String,
    /// Its content. It is streamed, because a body may be larger than the memory.
    pub bytes: BoxStream<'static, Result<Bytes>>,
}

/// The outcome of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The part is stored and durable, as far as the destination keeps anything.
    Stored,
    /// The destination has no use for this unit. That is a success, and nothing is stored.
    Declined,
    /// The part is not stored, or it is unknown whether it is.
    Failed(Refusal),
}

impl Outcome {
    /// The state of a part after it. A time-out counts as stored until it is undone.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Declined => "declined",
            Self::Failed(refusal) if refusal.status == 504 => "timed_out",
            Self::Failed(refusal) if refusal.is_passing() => "failed_5xx",
            Self::Failed(_) => "failed_4xx",
        }
    }
}

/// Why a destination did not store or undo a part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (status {status})")]
pub struct Refusal {
    /// A status of HTTP: 400 to 599.
    pub status: u16,
    /// For people. It contains no secret and no control character, and has at most [`REASON_LEN_MAX`] bytes.
    pub reason: String,
    /// How long the destination wants to be left alone.
    pub retry_after: Option<Duration>,
    /// Nothing was stored, and nothing will be: there is nothing to undo.
    pub is_clear: bool,
}

/// The longest reason, in bytes.
pub const REASON_LEN_MAX: usize = 1000;

impl Refusal {
    /// A refusal. The reason is cut to [`REASON_LEN_MAX`]. Control characters become spaces: a server may send any, and Postgres
    /// takes no text with a NUL.
    pub fn new(status: u16, reason: impl AsRef<str>) -> Self {
        let reason = reason.as_ref();
        let kept = &reason[..reason.floor_char_boundary(REASON_LEN_MAX)];
        Self { status, reason: kept.replace(char::is_control, " "), retry_after: None, is_clear: false }
    }

    /// The same, and it is certain that nothing was stored and nothing will be.
    #[must_use]
    pub fn clear(self) -> Self {
        Self { is_clear: true, ..self }
    }

    /// 409: the attempt has been undone, so a late store of it is refused.
    pub fn undone() -> Self {
        Self::new(409, "this attempt has been undone")
    }

    /// Whether another attempt may succeed: 5xx, and those 4xx that are about the time and not about the request.
    pub fn is_passing(&self) -> bool {
        self.status >= 500 || matches!(self.status, 408 | 425 | 429)
    }
}

/// A place that stores parts of units.
pub trait Destination: Send + Sync {
    /// Stores the part of one attempt. If the future is dropped, the part may be stored all the same, and later: the caller then
    /// undoes the attempt.
    fn store<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Outcome>;

    /// Takes back whatever `store` of this attempt did or will do, also if it did nothing. Other attempts are not touched.
    ///
    /// # Errors
    /// The attempt may still be stored: undo it again later.
    fn undo<'a>(&'a self, unit: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>>;

    /// Forgets the register of a unit whose row goes: of all attempts up to this one. A committed part stays.
    ///
    /// # Errors
    /// Something is left: forget it again later.
    fn forget<'a>(&'a self, unit: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>>;
}

#[cfg(test)]
mod tests {
    use super::{REASON_LEN_MAX, Refusal};

    #[test]
    fn a_refusal_is_passing_if_it_is_about_the_time() {
        for (status, is_passing) in [(400, false), (408, true), (409, false), (425, true), (429, true), (500, true)] {
            assert_eq!(Refusal::new(status, "").is_passing(), is_passing, "{status}");
        }
    }

    #[test]
    fn a_reason_is_bounded_and_fits_into_postgres() {
        let refusal = Refusal::new(500, format!("a\0b\n{}", "é".repeat(REASON_LEN_MAX)));
        assert!(refusal.reason.starts_with("a b é"), "{}", refusal.reason);
        assert_eq!(refusal.reason.len(), REASON_LEN_MAX);
    }
}
