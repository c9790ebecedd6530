//! The first fold: the total distance of all rides, in whole millimetres. The sum is exact, and equals SQL's
//! `SUM(distance_mm)` (I9).

use pglog::Record;
use serde::{Deserialize, Serialize};

use crate::fold::{FoldId, Rejection, StateFold, read_object};

/// The longest ride that counts, in mm: the same bound as in table `rides`.
const DISTANCE_MM_MAX: i64 = 1_000_000_000_000;

/// Count, sum and digest of all rides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DistanceFold {
    /// Sum of all distances, in mm.
    pub total_distance_mm: i64,
    /// How many rides.
    pub ride_count: i64,
    /// Wrapping sum, over the rides, of a 64-bit mix of partition, offset, id and distance. Equal digests mean the same rides at
    /// the same places, in whatever order they were folded: the place is inside, so one ride missing, doubled or different
    /// shows; and a dead letter that is replayed later leads to the same digest as a record folded in its place.
    #[serde(with = "as_text")]
    pub digest: i64,
}

/// The fields that the payload of `ride create` must have.
#[derive(Deserialize)]
struct Ride {
    id: i64,
    distance_mm: i64,
}

impl StateFold for DistanceFold {
    const ID: FoldId = FoldId { name: "distance", version: 1 };

    fn takes(&self, object: &str, action: &str) -> bool {
        object == "ride" && action == "create"
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        let ride: Ride = read_object(record, r#"{"id":…,"distance_mm":…}"#)?;
        if !(1..=DISTANCE_MM_MAX).contains(&ride.distance_mm) {
            return Err(Rejection(format!("distance_mm {} is not between 1 and {DISTANCE_MM_MAX}", ride.distance_mm)));
        }
        self.total_distance_mm = self
            .total_distance_mm
            .checked_add(ride.distance_mm)
            .ok_or_else(|| Rejection("the total would not fit into 64 bits".to_owned()))?;
        self.ride_count += 1;
        self.digest = self.digest.wrapping_add(mix([place(record), ride.id, ride.distance_mm]));
        Ok(())
    }

    fn summary(&self) -> String {
        let decimetres = self.total_distance_mm.saturating_add(50) / 100;
        format!("total_distance={}.{}m rides={}", decimetres / 10, decimetres % 10, self.ride_count)
    }
}

/// Partition and offset in one number: no offset needs the highest byte. In the first partition it is the offset.
fn place(record: &Record<'_>) -> i64 {
    record.offset ^ (i64::from(record.partition.number()) << 56)
}

/// Mixes three numbers into one: every bit of each reaches every bit of the result, and their order matters.
///
/// Source: the finaliser of MurmurHash3 (Austin Appleby), one round after each number.
fn mix(numbers: [i64; 3]) -> i64 {
    // Any odd constant will do. This one is derived from the golden ratio, as in SplitMix64.
    let mut mixed: u64 = 0x9e37_79b9_7f4a_7c15;
    for number in numbers {
        mixed = mixed.rotate_left(23) ^ number as u64;
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^= mixed >> 33;
    }
    mixed as i64
}

/// A number as a JSON string: many readers of JSON round numbers of 64 bits.
mod as_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(number: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use pglog::Partition;

    use super::*;

    fn record(offset: i64, data: &str) -> Record<'_> {
        let partition = Partition::FIRST;
        Record {
            partition,
            offset,
            token: 1,
            object: "ride",
            action: "create",
            data,
            staged_at_us: 0,
            traceparent: None,
        }
    }

    #[test]
    fn rides_add_up_to_the_millimetre() {
        let mut fold = DistanceFold::default();
        fold.apply(&record(1, r#"{"id":123,"distance_mm":2000}"#)).unwrap();
        fold.apply(&record(2, r#"{"id":124,"distance_mm":3049}"#)).unwrap();
        assert_eq!((fold.total_distance_mm, fold.ride_count), (5049, 2));
        assert_eq!(fold.summary(), "total_distance=5.0m rides=2");
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        for (total_distance_mm, ride_count, digest) in [(0, 0, 0), (i64::MAX, i64::MAX, i64::MIN)] {
            let fold = DistanceFold { total_distance_mm, ride_count, digest };
            let json = serde_json::to_string(&fold).unwrap();
            assert_eq!(serde_json::from_str::<DistanceFold>(&json).unwrap(), fold, "{json}");
        }
        let upgraded = r#"{"total_distance_mm" : 5, "ride_count" : 1, "digest" : "-7"}"#;
        let fold = DistanceFold { total_distance_mm: 5, ride_count: 1, digest: -7 };
        assert_eq!(serde_json::from_str::<DistanceFold>(upgraded).unwrap(), fold);
    }

    #[test]
    fn a_record_that_can_never_apply_is_rejected_and_changes_nothing() {
        let mut fold = DistanceFold { total_distance_mm: 7, ride_count: 1, digest: 5 };
        let before = fold;
        for bad in [
            "{",
            "[]",
            "[1,5]",
            r#"{"id":1}"#,
            r#"{"distance_mm":5}"#,
            r#"{"id":1,"distance_mm":"5"}"#,
            r#"{"id":1,"distance_mm":5.5}"#,
            r#"{"id":1,"distance_mm":-5}"#,
            r#"{"id":1,"distance_mm":0}"#,
            r#"{"id":1,"distance_mm":1000000000001}"#,
        ] {
            assert!(fold.apply(&record(1, bad)).is_err(), "{bad}");
            assert_eq!(fold, before, "{bad}");
        }
    }

    #[test]
    fn a_total_that_would_overflow_is_rejected() {
        let mut fold = DistanceFold { total_distance_mm: i64::MAX - 1, ride_count: 1, digest: 5 };
        assert!(fold.apply(&record(1, r#"{"id":1,"distance_mm":2}"#)).is_err());
    }

    #[test]
    fn digest_tells_offset_and_content_apart_and_no_order_of_folding() {
        let digest = |data: &[(i64, &str)]| {
            let mut fold = DistanceFold::default();
            data.iter().for_each(|(offset, data)| fold.apply(&record(*offset, data)).unwrap());
            fold.digest
        };
        let (a, b) = (r#"{"id":1,"distance_mm":5}"#, r#"{"id":2,"distance_mm":6}"#);
        assert_ne!(digest(&[(1, a), (2, b)]), digest(&[(1, b), (2, a)]), "exchanged");
        assert_ne!(digest(&[(1, a)]), digest(&[(2, a)]), "moved");
        assert_ne!(digest(&[(1, a), (1, a)]), digest(&[(1, a)]), "doubled");
        assert_ne!(digest(&[(1, a), (2, b)]), digest(&[(1, a)]), "missing");
        assert_ne!(digest(&[(1, r#"{"id":2,"distance_mm":1}"#)]), digest(&[(1, r#"{"id":1,"distance_mm":2}"#)]));
        assert_eq!(digest(&[(1, a), (2, b)]), digest(&[(2, b), (1, a)]), "a record that was folded later");
    }

    #[test]
    fn digest_tells_partitions_apart() {
        let digest = |partitions: [i32; 2]| {
            let mut fold = DistanceFold::default();
            let data = [r#"{"id":1,"distance_mm":5}"#, r#"{"id":2,"distance_mm":6}"#];
            for (number, data) in partitions.into_iter().zip(data) {
                fold.apply(&Record { partition: Partition::new(number).unwrap(), ..record(7, data) }).unwrap();
            }
            fold.digest
        };
        assert_ne!(digest([0, 1]), digest([1, 0]), "exchanged between two partitions");
        assert_ne!(digest([0, 0]), digest([0, 1]), "moved to another partition");
        let mut first = DistanceFold::default();
        first.apply(&record(7, r#"{"id":1,"distance_mm":5}"#)).unwrap();
        assert_eq!(first.digest, mix([7, 1, 5]), "that of the first partition is as it always was");
    }

    #[test]
    fn digest_spreads_small_differences_over_all_bits() {
        let mut flipped_count = 0;
        for bit in 0..32 {
            for number in 0..3 {
                let (a, mut b) = ([5, 6, 7], [5, 6, 7]);
                b[number] ^= 1 << bit;
                let differing = (mix(a) ^ mix(b)).count_ones();
                assert!((12..=52).contains(&differing), "{differing} bits differ between {a:?} and {b:?}");
                flipped_count += differing;
            }
        }
        assert!((29..=35).contains(&(flipped_count / 96)), "half of the bits on average: {}", flipped_count / 96);
    }
}
