//! The partitions of the log, and the partition of a key.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use bytes::BytesMut;
use md5::{Digest, Md5};
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
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of partitions of a log: 1 to 64. It is fixed when the log is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionCount(i32);

impl PartitionCount {
    /// A log that is not cut.
    pub const ONE: Self = Self(1);

    /// The most partitions that a log can have.
    pub const MAX: Self = Self(64);

    /// So many partitions; `None` if a log cannot have so many.
    pub const fn new(number: i32) -> Option<Self> {
        if number >= 1 && number <= Self::MAX.0 { Some(Self(number)) } else { None }
    }

    /// The number.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// All partitions, the first one first.
    pub fn partitions(self) -> impl DoubleEndedIterator<Item = Partition> + ExactSizeIterator {
        (0..self.0).map(Partition)
    }

    /// Whether the log has this partition.
    pub fn has(self, partition: Partition) -> bool {
        partition.0 < self.0
    }

    /// The argument that names a partition in a command that a message tells a person to run, with a space before it; empty if the
    /// log has only one.
    ///
    /// ```
    /// # use pglog::{Partition, PartitionCount};
    /// let command = |count: PartitionCount| format!("dead-letters list{}", count.argument_for(Partition::FIRST));
    /// assert_eq!(command(PartitionCount::ONE), "dead-letters list");
    /// assert_eq!(command(PartitionCount::new(8).unwrap()), "dead-letters list --partitions 0");
    /// ```
    pub fn argument_for(self, partition: Partition) -> String {
        if self == Self::ONE { String::new() } else { format!(" --partitions {partition}") }
    }

    /// The partition of a key: the first 32 bits of its MD5, modulo the number of partitions. The function `partition_of` of the
    /// schema computes the same, and `libs/stream/vectors.json` has test vectors.
    ///
    /// ```
    /// # use pglog::{Partition, PartitionCount};
    /// assert_eq!(PartitionCount::new(8).unwrap().partition_of("42"), Partition::FIRST);
    /// assert_eq!(PartitionCount::new(8).unwrap().partition_of("43"), Partition::new(6).unwrap());
    /// assert_eq!(PartitionCount::ONE.partition_of("42"), Partition::FIRST);
    /// ```
    pub fn partition_of(self, key: &str) -> Partition {
        let digest = Md5::digest(key);
        let first = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        Partition((i64::from(first) % i64::from(self.0)) as i32)
    }
}

impl fmt::Display for PartitionCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The partitions that a process works on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Partitions {
    /// All that the log has.
    #[default]
    All,
    /// These, in order and without repetition; at least one.
    Only(Vec<Partition>),
}

impl Partitions {
    /// The argument that names them in a command that a message tells a person to run, with a space before it; empty for all.
    ///
    /// ```
    /// # use pglog::Partitions;
    /// assert_eq!(Partitions::All.argument(), "");
    /// assert_eq!("3,0".parse::<Partitions>().unwrap().argument(), " --partitions 0,3");
    /// ```
    pub fn argument(&self) -> String {
        match self {
            Self::All => String::new(),
            some => format!(" --partitions {some}"),
        }
    }

    /// These partitions of a log that has `count`.
    ///
    /// # Errors
    /// The log does not have one of them.
    pub fn of(&self, count: PartitionCount) -> Result<Vec<Partition>, UnknownPartition> {
        match self {
            Self::All => Ok(count.partitions().collect()),
            Self::Only(some) => match some.iter().find(|partition| !count.has(**partition)) {
                Some(partition) => Err(UnknownPartition { partition: *partition, count }),
                None => Ok(some.clone()),
            },
        }
    }
}

/// The log does not have a partition that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log has {count} partition(s), and partition {partition} is not one of them: give numbers from 0 to {}", count.number() - 1)]
pub struct UnknownPartition {
    /// The partition.
    pub partition: Partition,
    /// The number of partitions that the log has.
    pub count: PartitionCount,
}

/// `all`, or numbers with commas between them.
impl FromStr for Partitions {
    type Err = NoPartitions;

    fn from_str(text: &str) -> Result<Self, NoPartitions> {
        if text == "all" {
            return Ok(Self::All);
        }
        let parsed: Result<Vec<Partition>, NoPartition> = text.split(',').map(|part| part.trim().parse()).collect();
        let mut some = parsed.map_err(|NoPartition| NoPartitions)?;
        some.sort_unstable();
        some.dedup();
        Ok(Self::Only(some))
    }
}

impl fmt::Display for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Only(some) => {
                let numbers: Vec<String> = some.iter().map(Partition::to_string).collect();
                f.write_str(&numbers.join(","))
            }
        }
    }
}

/// The text names no partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give all, or numbers of partitions such as 0,3")]
pub struct NoPartitions;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_named_by_their_numbers() {
        let read = |text: &str| text.parse::<Partitions>();
        assert_eq!(read("all"), Ok(Partitions::All));
        assert_eq!(read("3, 0,3"), Ok(Partitions::Only(vec![Partition(0), Partition(3)])));
        assert_eq!(read("3, 0,3").unwrap().to_string(), "0,3");
        for bad in ["", "none", "0,", "-1", "1-3"] {
            assert_eq!(read(bad), Err(NoPartitions), "{bad:?}");
        }
    }

    #[test]
    fn a_partition_that_the_log_lacks_is_refused() {
        let three = PartitionCount::new(3).unwrap();
        assert_eq!(Partitions::All.of(three).unwrap().len(), 3);
        let error = Partitions::Only(vec![Partition(0), Partition(3)]).of(three).unwrap_err().to_string();
        assert!(error.contains("partition 3 is not one of them: give numbers from 0 to 2"), "{error}");
        assert_eq!([0, 65, -1].map(PartitionCount::new), [None, None, None]);
    }
}
