//! The sum of the log at each offset, compared with the state of each consumer. It reads no database: the caller feeds it
//! records and dead letters in offset order.
//!
//! All figures are sums, so records can be added and subtracted in any order. The log's sum is that of all records which
//! the fold accepts today. A consumer's state should be this sum minus the sum of its dead letters.

use consumer::{DistanceFold, StateFold};
use pglog::Record;

use super::letters::Letter;
use crate::audit::report::{ConsumerLine, Report, TotalLine};

/// Dead letters of a consumer that are kept one by one. Further ones are only added up.
const LETTERS_LEN_MAX: usize = 1000;

/// A consumer, and the figures to compare it with.
pub(super) struct Audited {
    name: String,
    is_baseline: bool,
    last_offset: i64,
    state: DistanceFold,
    /// Its line in the report, without its total and the result.
    line: ConsumerLine,
    /// The log's sum at its checkpoint. `None`: the ledger has not reached it.
    expected: Option<DistanceFold>,
    /// The sum of its dead letters that the fold accepts today.
    lacks: DistanceFold,
    /// The same dead letters one by one: offset, weight, and whether it is dropped.
    acceptable: Vec<(i64, DistanceFold, bool)>,
}

impl Audited {
    pub fn new(line: ConsumerLine, is_baseline: bool, state: DistanceFold) -> Self {
        let (name, last_offset) = (line.name.clone(), line.last_offset);
        let (expected, lacks, acceptable) = (None, DistanceFold::default(), Vec::new());
        Self { name, is_baseline, last_offset, state, line, expected, lacks, acceptable }
    }

    fn lack(&mut self, letter: &Letter, weight: DistanceFold) {
        self.lacks = plus(self.lacks, weight);
        if self.acceptable.len() < LETTERS_LEN_MAX {
            self.acceptable.push((letter.offset, weight, letter.is_dropped));
        }
    }

    /// Whether its state must reflect the record at `offset`, or a dead letter stand for it.
    fn has_passed(&self, offset: i64) -> bool {
        self.last_offset >= offset
    }
}

/// The effect of a record on the fold.
enum Weight {
    /// None: the fold does not take records of this kind.
    Passed,
    /// It adds this to the state.
    Accepted(DistanceFold),
    /// The fold cannot apply it, for this reason.
    Rejected(String),
}

/// The log's sum up to an offset, and the consumers of this fold in the order of their checkpoints.
pub(super) struct Ledger {
    offset: i64,
    log: DistanceFold,
    /// The distance of `log`, which wraps around beyond 64 bits as all figures of the ledger do, and this one does not.
    log_distance_mm: i128,
    consumers: Vec<Audited>,
    reached_count: usize,
}

impl Ledger {
    /// Starts with the state at `base_offset`. `consumers` are in the order of their checkpoints. Those behind `base_offset`
    /// cannot be compared.
    pub fn new(base_offset: i64, base: DistanceFold, consumers: Vec<Audited>) -> Self {
        let log_distance_mm = base.total_distance_mm.into();
        Self { offset: base_offset, log: base, log_distance_mm, consumers, reached_count: 0 }
    }

    /// The number of rides up to the last record, and their distance in mm.
    pub fn log(&self) -> (i64, i128) {
        (self.log.ride_count, self.log_distance_mm)
    }

    fn add(&mut self, weight: DistanceFold) {
        self.log = plus(self.log, weight);
        self.log_distance_mm += i128::from(weight.total_distance_mm);
    }

    /// Takes all dead letters at an offset that the baseline has passed. The record may have been deleted, but the dead
    /// letters contain it.
    pub fn letters_in_baseline(&mut self, letters: &[Letter], report: &mut Report) {
        let of_baseline =
            letters.iter().find(|letter| self.consumers.iter().any(|c| c.is_baseline && c.name == letter.name));
        if let Some(letter) = of_baseline {
            match weigh(&letter.record()) {
                Weight::Accepted(weight) => self.add(weight),
                Weight::Rejected(reason) => self.miss(&letter.record(), &reason, letters, report),
                Weight::Passed => {}
            }
        }
        for letter in letters {
            let offset = letter.offset;
            let Some(consumer) = self.consumers.iter_mut().find(|c| c.name == letter.name) else {
                continue;
            };
            if offset > consumer.last_offset {
                report.differ(beyond_checkpoint(&consumer.name, offset, consumer.last_offset));
                continue;
            }
            match (of_baseline, weigh(&letter.record())) {
                (Some(other), _) if !is_same(&other.record(), &letter.record()) => report.differ(format!(
                    "{}: its dead letter at offset {offset} is not the record of the baseline's dead letter there",
                    consumer.name
                )),
                (_, Weight::Accepted(weight)) => consumer.lack(letter, weight),
                (None, Weight::Rejected(_)) => report.differ(format!(
                    "{}: its dead letter at offset {offset} is not among the baseline's: the baseline rejected no record there",
                    consumer.name
                )),
                (Some(_), Weight::Rejected(_)) => {}
                (_, Weight::Passed) => report.differ(not_taken(&consumer.name, offset)),
            }
        }
    }

    /// Ends the dead letters of the baseline: the consumers at its offset can be compared.
    pub fn begin(&mut self) {
        self.reach();
    }

    /// Takes the next record, and all dead letters at its offset.
    pub fn record(&mut self, record: &Record<'_>, letters: &[Letter], report: &mut Report) {
        assert_eq!(record.offset, self.offset + 1, "records are audited without a gap");
        self.offset = record.offset;
        let weight = weigh(record);
        match &weight {
            Weight::Passed => {}
            Weight::Accepted(weight) => self.add(*weight),
            Weight::Rejected(reason) => self.miss(record, reason, letters, report),
        }
        for letter in letters {
            let Some(consumer) = self.consumers.iter_mut().find(|c| c.name == letter.name) else {
                continue;
            };
            let (name, offset) = (&consumer.name, record.offset);
            if offset > consumer.last_offset {
                report.differ(beyond_checkpoint(name, offset, consumer.last_offset));
                continue;
            }
            if !is_same(record, &letter.record()) {
                report.differ(format!("{name}: its dead letter at offset {offset} is not the record at that offset"));
            }
            match weight {
                Weight::Passed => report.differ(not_taken(name, offset)),
                Weight::Accepted(weight) => consumer.lack(letter, weight),
                Weight::Rejected(_) => {}
            }
        }
        self.reach();
    }

    /// Takes dead letters beyond the head: each is a difference.
    pub fn letters_beyond_head(&mut self, letters: &[Letter], report: &mut Report) {
        for letter in letters {
            if let Some(consumer) = self.consumers.iter().find(|c| c.name == letter.name) {
                report.differ(beyond_checkpoint(&consumer.name, letter.offset, consumer.last_offset));
            }
        }
    }

    /// Reports the consumers that have passed a rejected record and have no dead letter for it.
    fn miss(&self, record: &Record<'_>, reason: &str, letters: &[Letter], report: &mut Report) {
        for consumer in self.consumers.iter().filter(|consumer| consumer.has_passed(record.offset)) {
            if !letters.iter().any(|letter| letter.name == consumer.name) {
                report.differ(format!(
                    "{}: the fold rejects the record at offset {} ({reason}), and it is not among its dead letters",
                    consumer.name, record.offset
                ));
            }
        }
    }

    /// Notes the log's sum for the consumers whose checkpoints are at this offset.
    fn reach(&mut self) {
        while let Some(consumer) = self.consumers.get_mut(self.reached_count) {
            if consumer.last_offset > self.offset {
                break;
            }
            consumer.expected = (consumer.last_offset == self.offset).then_some(self.log);
            self.reached_count += 1;
        }
    }

    /// Compares every consumer with the log's sum at its checkpoint. `partition` is the argument of commands about this partition.
    pub fn compare(self, partition: &str, report: &mut Report) {
        for consumer in self.consumers {
            let state = consumer.state;
            let is_equal = consumer.expected.map(|log| {
                let expected = minus(log, consumer.lacks);
                if state != expected {
                    report.differ(explain(&consumer, state, expected));
                }
                state == expected
            });
            let fits = |weight: DistanceFold| state.total_distance_mm.checked_add(weight.total_distance_mm).is_some();
            let acceptable = consumer.acceptable.iter().filter(|(_, weight, is_dropped)| !is_dropped && fits(*weight));
            let replayable: Vec<String> = acceptable.take(10).map(|letter| letter.0.to_string()).collect();
            if !replayable.is_empty() && is_equal == Some(true) {
                report.note(format!(
                    "{0}: the fold accepts today what it rejected at offset {1}: replay it with \
                     `dead-letters replay {2} --all{3}`",
                    consumer.name,
                    replayable.join(", "),
                    process::quoted(&consumer.name),
                    partition
                ));
            }
            report.consumers.push(ConsumerLine { total: Some(total(state)), is_equal, ..consumer.line });
        }
    }
}

/// The state as the report shows it.
pub(super) fn total(state: DistanceFold) -> TotalLine {
    let DistanceFold { total_distance_mm, ride_count, digest } = state;
    TotalLine { ride_count, total_distance_mm, digest: format!("{digest:016x}") }
}

/// The difference of a state, and its reason if a single dead letter explains it.
fn explain(consumer: &Audited, state: DistanceFold, expected: DistanceFold) -> String {
    let Audited { name, last_offset, .. } = consumer;
    let more = minus(state, expected);
    let mut text = if (more.ride_count, more.total_distance_mm) == (0, 0) {
        format!(
            "{name}: at offset {last_offset} count and sum are right, but the digest is {:016x} and should be {:016x}: \
             these are other rides with the same sum",
            state.digest, expected.digest
        )
    } else {
        format!(
            "{name}: at offset {last_offset} its state is {} rides and {} mm, and its records make {} rides and {} mm: \
             {:+} rides, {:+} mm",
            state.ride_count,
            state.total_distance_mm,
            expected.ride_count,
            expected.total_distance_mm,
            more.ride_count,
            more.total_distance_mm
        )
    };
    if let Some((offset, ..)) = consumer.acceptable.iter().find(|(_, weight, _)| *weight == more) {
        text += &format!("; the record at offset {offset} is in the state, and among its dead letters all the same");
    }
    text
}

fn beyond_checkpoint(name: &str, offset: i64, last_offset: i64) -> String {
    format!("{name}: its dead letter at offset {offset} lies beyond its checkpoint, {last_offset}")
}

fn not_taken(name: &str, offset: i64) -> String {
    format!("{name}: the fold does not take the record at offset {offset}, but it is among its dead letters")
}

fn weigh(record: &Record<'_>) -> Weight {
    let mut fold = DistanceFold::default();
    if !fold.takes(record.object, record.action) {
        return Weight::Passed;
    }
    match fold.apply(record) {
        Ok(()) => Weight::Accepted(fold),
        Err(rejection) => Weight::Rejected(rejection.0),
    }
}

/// Whether two records have the same content. Token, time and trace are not compared: a dead letter has none.
fn is_same(a: &Record<'_>, b: &Record<'_>) -> bool {
    (a.object, a.action, a.data) == (b.object, b.action, b.data)
}

fn plus(a: DistanceFold, b: DistanceFold) -> DistanceFold {
    DistanceFold {
        total_distance_mm: a.total_distance_mm.wrapping_add(b.total_distance_mm),
        ride_count: a.ride_count.wrapping_add(b.ride_count),
        digest: a.digest.wrapping_add(b.digest),
    }
}

fn minus(a: DistanceFold, b: DistanceFold) -> DistanceFold {
    DistanceFold {
        total_distance_mm: a.total_distance_mm.wrapping_sub(b.total_distance_mm),
        ride_count: a.ride_count.wrapping_sub(b.ride_count),
        digest: a.digest.wrapping_sub(b.digest),
    }
}
