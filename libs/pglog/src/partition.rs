//! A partition of the log.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use bytes::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type};

/// The number of a partition: 0 or more. The log is cut into partitions, each with its own offsets and its own stream.
///
/// ```
/// use pglog::Partition;
/// assert_eq!("3".parse(), Ok(Partition::new(3).unwrap()));
/// assert!("-1".parse::<Partition>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Partition(i32);

impl Partition {
    /// The partition of a log that is not cut.
    pub const FIRST: Self = Self(0);

    /// The partition of this number; `None` if it is negative.
    pub const fn new(number: i32) -> Option<Self> {
        if number >= 0 { Some(Self(number)) } else { None }
    }

    /// Its number.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// Its argument in a command that a message tells a person to run, with a space before it; empty for the default.
    ///
    /// ```
    /// # use pglog::Partition;
    /// let command = |partition: Partition| format!("dead-letters list{}", partition.argument());
    /// assert_eq!(command(Partition::FIRST), "dead-letters list");
    /// assert_eq!(command(Partition::new(3).unwrap()), "dead-letters list --partition 3");
    /// ```
    pub fn argument(self) -> String {
        if self == Self::FIRST { String::new() } else { format!(" --partition {self}") }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not the number of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give the number of a partition, 0 or more")]
pub struct NoPartition;

impl FromStr for Partition {
    type Err = NoPartition;

    fn from_str(text: &str) -> Result<Self, NoPartition> {
        text.parse().ok().and_then(Self::new).ok_or(NoPartition)
    }
}

/// As an INT.
impl ToSql for Partition {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.0.to_sql(ty, out)
    }

    fn accepts(ty: &Type) -> bool {
        <i32 as ToSql>::accepts(ty)
    }

    tokio_postgres::types::to_sql_checked!();
}

/// From an INT. A negative number is an error: a staged record cannot have one.
impl<'a> FromSql<'a> for Partition {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self::new(i32::from_sql(ty, raw)?).ok_or(NoPartition)?)
    }

    fn accepts(ty: &Type) -> bool {
        <i32 as FromSql>::accepts(ty)
    }
}
