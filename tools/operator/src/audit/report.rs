//! The result of an audit: one line per consumer, partition and stream, and the differences as sentences.

use pglog::{Partition, PartitionCount};
use serde::Serialize;

use crate::plain::one_line;

/// Differences and notes that are kept as sentences. Further differences are only counted.
const LINES_LEN_MAX: usize = 100;

/// The result of an audit.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Every registered consumer of the audited partitions.
    pub consumers: Vec<ConsumerLine>,
    /// The consumers that are registered in all partitions: their sums over these. Empty if the log has one partition.
    pub sums: Vec<SumLine>,
    /// Every audited partition.
    pub partitions: Vec<PartitionLine>,
    /// The rides, if they could be compared.
    pub rides: Option<RidesLine>,
    /// The streams that were compared.
    pub streams: Vec<StreamLine>,
    /// The histories that were compared.
    pub histories: Vec<HistoryLine>,
    /// The wallets, if there are any.
    pub wallets: Option<WalletsLine>,
    /// The units of the container, if there are any.
    pub units: Option<UnitsLine>,
    /// The documents of wallets in Redis, if they were compared.
    pub documents: Option<DocumentsLine>,
    /// The charges, if they were compared.
    pub payments: Option<PaymentsLine>,
    /// The first 100 differences, as sentences.
    pub differences: Vec<String>,
    /// The number of all differences.
    pub difference_count: u64,
    /// Facts that an operator may want to know and that are no differences.
    pub notes: Vec<String>,
    /// The partition that is audited now, if the log has several.
    #[serde(skip)]
    place: Option<String>,
}

/// A consumer at its checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct ConsumerLine {
    /// Its name; the reaper's baseline is among them.
    pub name: String,
    /// The partition it folds.
    pub partition: i32,
    /// Whether it is the reaper's own.
    #[serde(skip)]
    pub is_baseline: bool,
    /// Its checkpoint.
    pub last_offset: i64,
    /// The fold that its registration names.
    pub fold: Option<String>,
    /// The version of the fold.
    pub fold_version: Option<i32>,
    /// The total distance in its state; absent if it has another fold.
    #[serde(flatten)]
    pub total: Option<TotalLine>,
    /// Whether it was not compared because it is behind the baseline.
    pub is_replaying: bool,
    /// `None` if it was not compared: the audit does not know its fold, it is replaying, or the log cannot be read up to its
    /// checkpoint.
    pub is_equal: Option<bool>,
}

/// The total distance in a consumer's state.
#[derive(Debug, Clone, Serialize)]
pub struct TotalLine {
    /// Rides in its state.
    pub ride_count: i64,
    /// Whole millimetres.
    pub total_distance_mm: i64,
    /// 16 hexadecimal digits.
    pub digest: String,
}

/// A consumer's total distance over all partitions.
#[derive(Debug, Clone, Serialize)]
pub struct SumLine {
    /// Its name.
    pub name: String,
    /// Rides in its states.
    pub ride_count: i64,
    /// Whole millimetres.
    pub total_distance_mm: i128,
    /// Whether it equals SQL's own sum. `None`: it has not passed every record, or has dead letters.
    pub is_equal: Option<bool>,
}

/// A partition's log.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionLine {
    /// Its number.
    pub partition: i32,
    /// The first offset that can be read.
    pub first_retained: i64,
    /// The highest offset.
    pub head: i64,
    /// The number of retained records that were read.
    pub record_count: u64,
    /// The number of staged records that have no offset yet.
    pub staged_count: i64,
}

/// The table of rides, compared with the records of rides.
#[derive(Debug, Clone, Serialize)]
pub struct RidesLine {
    /// `count(*)` of the table.
    pub ride_count: i64,
    /// `sum(distance_mm)` of the table.
    pub total_distance_mm: i128,
    /// Whether the records, staged ones included, have the same count and sum.
    pub is_equal: bool,
}

/// A stream, compared with its log.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StreamLine {
    /// Its key.
    pub key: String,
    /// Entries that are equal to their records. If a record was published twice, both entries count.
    pub equal_count: u64,
    /// Entries with the right token and another content.
    pub different_count: u64,
    /// Entries that were not written for this log. Consumers ignore them.
    pub stranger_count: u64,
    /// Records that the stream lacks. Consumers read them from Postgres.
    pub hole_count: u64,
    /// Entries before the first retained record. The reaper trims them.
    pub reaped_count: u64,
}

/// A history, compared with its log.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HistoryLine {
    /// The partition of the log.
    pub partition: i32,
    /// The number of archived records that were looked at.
    pub record_count: u64,
    /// The last of them; 0 if there is none.
    pub last_offset: i64,
    /// The number of holes among the reaped records.
    pub hole_count: u64,
}

/// The wallets, compared with what their events make.
#[derive(Debug, Clone, Default, Serialize)]
pub struct WalletsLine {
    /// Wallets that were ever used.
    pub wallet_count: i64,
    /// Accepted and rejected attempts.
    pub event_count: u64,
    /// The rejected ones among them.
    pub rejected_count: u64,
    /// The sum of all balances, in cents.
    pub balance_minor: i128,
    /// Records of wallets that the log has, and that were compared.
    pub record_count: u64,
    /// Whether everything about wallets is as it should be in Postgres.
    pub is_equal: bool,
}

/// The units of the container, compared with what Postgres shows of their destinations.
#[derive(Debug, Clone, Default, Serialize)]
pub struct UnitsLine {
    /// All units whose rows are there.
    pub unit_count: i64,
    /// The committed ones among them.
    pub committed_count: i64,
    /// Those that are not settled.
    pub open_count: i64,
    /// Rows in the tables of destinations. Rows of forgotten units stay.
    pub row_count: i64,
    /// Verdicts that the log has, and that were compared.
    pub record_count: i64,
    /// Whether everything about units is as it should be in Postgres.
    pub is_equal: bool,
}

/// The documents of wallets in Redis, compared with Postgres.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DocumentsLine {
    /// The epoch of the mark.
    pub epoch: String,
    /// The offset of the mark.
    pub offset: i64,
    /// Documents that are the newest states of their wallets.
    pub equal_count: u64,
    /// Documents that are not.
    pub different_count: u64,
    /// Documents that readers do not believe: they are of another epoch, or of another form.
    pub miss_count: u64,
}

/// The charges at the payment processor, compared with the bookings.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PaymentsLine {
    /// Charges of this installation.
    pub charge_count: u64,
    /// Paid charges that are equal to their bookings.
    pub equal_count: u64,
    /// Charges that are pending, or whose bookings are not finished yet.
    pub in_progress_count: u64,
    /// Charges that others made with the same account.
    pub foreign_count: u64,
    /// Charged bookings whose receipts are not written yet. The process receipts writes them.
    pub receipt_waiting_count: i64,
}

impl Report {
    /// Whether there is no difference.
    pub fn is_equal(&self) -> bool {
        self.difference_count == 0
    }

    /// From here on differences and notes are about this partition, and name it if the log has several.
    pub(super) fn enter(&mut self, partition: Partition, count: PartitionCount) {
        self.place = (count != PartitionCount::ONE).then(|| format!("partition {partition}"));
    }

    /// From here on differences and notes are about the whole log.
    pub(super) fn leave(&mut self) {
        self.place = None;
    }

    /// Adds a difference.
    pub(super) fn differ(&mut self, what: String) {
        self.difference_count += 1;
        if self.differences.len() < LINES_LEN_MAX {
            self.differences.push(self.placed(what));
        }
    }

    /// Adds a note.
    pub(super) fn note(&mut self, what: String) {
        if self.notes.len() < LINES_LEN_MAX {
            self.notes.push(self.placed(what));
        }
    }

    fn placed(&self, what: String) -> String {
        match &self.place {
            Some(place) if !what.contains(place.as_str()) => format!("{place}: {what}"),
            _ => what,
        }
    }

    /// Prints it as text, or as JSON.
    pub fn print(&self, json: bool) {
        if json {
            println!("{}", serde_json::to_string_pretty(self).expect("numbers and texts are always JSON"));
            return;
        }
        self.consumers.iter().for_each(ConsumerLine::print);
        self.sums.iter().for_each(SumLine::print);
        for PartitionLine { partition, first_retained, head, record_count, staged_count } in &self.partitions {
            println!(
                "log, partition {partition}: head {head}, {record_count} records from offset {first_retained} on, \
                 {staged_count} staged without an offset"
            );
        }
        for line in &self.streams {
            let StreamLine { key, equal_count, different_count, stranger_count, hole_count, reaped_count } = line;
            println!(
                "stream {key}: {equal_count} entries equal, {different_count} different, {stranger_count} strangers, \
                 {hole_count} records not in it, {reaped_count} entries of reaped records"
            );
        }
        for HistoryLine { partition, record_count, last_offset, hole_count } in &self.histories {
            println!(
                "history, partition {partition}: {record_count} records up to offset {last_offset}, {hole_count} holes"
            );
        }
        if let Some(RidesLine { ride_count, total_distance_mm, is_equal }) = &self.rides {
            let verdict = if *is_equal { "equal" } else { "DIFFERENT" };
            println!("rides: {ride_count}, {total_distance_mm} mm: {verdict}");
        }
        self.wallets.iter().for_each(WalletsLine::print);
        self.units.iter().for_each(UnitsLine::print);
        if let Some(line) = &self.documents {
            let DocumentsLine { epoch, offset, equal_count, different_count, miss_count } = line;
            println!(
                "wallets in Redis, epoch {epoch} up to offset {offset}: {equal_count} documents equal, {different_count} \
                 different, {miss_count} that readers do not believe"
            );
        }
        if let Some(line) = &self.payments {
            let PaymentsLine { charge_count, equal_count, in_progress_count, foreign_count, receipt_waiting_count } =
                line;
            println!(
                "payments: {charge_count} charges, {equal_count} paid and equal to their bookings, {in_progress_count} in \
                 progress, {foreign_count} of others; {receipt_waiting_count} receipts not written yet"
            );
        }
        self.notes.iter().for_each(|note| println!("note: {}", one_line(note)));
        self.differences.iter().for_each(|difference| println!("DIFFERENCE: {}", one_line(difference)));
        match self.difference_count {
            0 => println!("all is equal"),
            count => println!("{count} differences"),
        }
    }
}

impl SumLine {
    fn print(&self) {
        let Self { name, ride_count, total_distance_mm, is_equal } = self;
        let verdict = match is_equal {
            Some(true) => "equal",
            Some(false) => "DIFFERENT",
            None => "not compared",
        };
        let line = format!("consumer {name}, all partitions: {ride_count} rides, {total_distance_mm} mm: {verdict}");
        println!("{}", one_line(&line));
    }
}

impl WalletsLine {
    fn print(&self) {
        let Self { wallet_count, event_count, rejected_count, balance_minor, record_count, is_equal } = self;
        let verdict = if *is_equal { "equal" } else { "DIFFERENT" };
        println!(
            "wallets: {wallet_count}, with {balance_minor} cents; {event_count} events, {rejected_count} of them rejected, and \
             {record_count} records: {verdict}"
        );
    }
}

impl UnitsLine {
    fn print(&self) {
        let Self { unit_count, committed_count, open_count, row_count, record_count, is_equal } = self;
        let verdict = if *is_equal { "equal" } else { "DIFFERENT" };
        println!(
            "units: {unit_count}, {committed_count} of them committed and {open_count} not settled; {row_count} rows, and \
             {record_count} verdicts in the log: {verdict}"
        );
    }
}

impl ConsumerLine {
    fn print(&self) {
        let Self { name, partition, last_offset, .. } = self;
        let verdict = match self.is_equal {
            Some(true) => "equal",
            Some(false) => "DIFFERENT",
            None if self.is_replaying => "replaying, not compared",
            None => "not compared",
        };
        let content = match (&self.total, &self.fold) {
            (Some(TotalLine { ride_count, total_distance_mm, digest }), _) => {
                format!("{ride_count} rides, {total_distance_mm} mm, digest {digest}")
            }
            (None, Some(fold)) => format!("fold {fold} version {}", self.fold_version.unwrap_or_default()),
            (None, None) => "no fold".to_owned(),
        };
        let line = format!("consumer {name}, partition {partition}: offset {last_offset}, {content}: {verdict}");
        println!("{}", one_line(&line));
    }
}
