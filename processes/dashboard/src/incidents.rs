//! The list of recent events: crashes that were survived, batches sent twice, a wiped stream, restarts, outages.
//!
//! Each incident is a difference between two samples, so the list needs nothing but the samples. An outage hides no
//! incident: a sample is compared with the last one that knew the figure. Incidents of one kind that follow each other
//! closely share one entry with a count. Otherwise a fault rate of 10 % would push everything else out of the list.

use std::collections::VecDeque;
use std::mem::discriminant;

use serde::Serialize;

/// The list keeps this many entries and drops the oldest.
const INCIDENT_COUNT_MAX: usize = 50;

/// An incident joins an entry of its kind that began at most this many milliseconds ago.
const JOINED_OVER_MS: u64 = 60_000;

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Incident {
    /// When the first of them was seen, in milliseconds since 1970.
    pub first_at_ms: u64,
    /// When the last of them was seen.
    pub at_ms: u64,
    /// The same for all versions of an entry: the page replaces an older version by it.
    pub id: String,
    pub text: String,
    #[serde(skip)]
    entry: Entry,
    /// Counts the changes of the list. A viewer is sent the entries that changed after the last change it saw.
    #[serde(skip)]
    change: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: Kind,
    /// A consumer, a process, a server or a stream; empty if the text names the actor by itself.
    subject: String,
    count: u64,
}

/// The kinds of incidents. The fields of an entry's kind are those of its latest incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A consumer crashed after folding and before COMMIT, and went on.
    Crashed,
    /// A consumer put records aside.
    DeadLetters,
    /// The streamer sent a batch twice on purpose.
    SentTwice,
    /// Redis had entries already that the streamer sent again.
    Refused,
    /// Consumers met entries that they had seen before.
    Duplicates,
    /// Consumers read records from Postgres because the stream lacked them.
    Healed,
    /// Redis lost the stream.
    Wiped,
    /// After that the stream ends again where it ended before, or later.
    Rebuilt { offset: i64 },
    /// The wallets' read model has another epoch.
    ModelBuilt,
    /// A process or a server stopped answering.
    Lost,
    /// It answers again.
    Back { after_s: u64 },
    /// A process started again.
    Restarted { pid: Option<u32>, was: Option<u32> },
    /// Another streamer leads.
    Leads,
    /// A streamer leads partitions that another one led before.
    TookOver,
}

impl Entry {
    fn text(&self) -> String {
        let Self { kind, subject, count } = self;
        let count_text = grouped(*count);
        let times = if *count == 1 { String::new() } else { format!(" {count_text} times") };
        let stream = if subject.is_empty() { "the stream" } else { subject };
        match kind {
            Kind::Crashed if *count == 1 => format!("{subject} survived a crash"),
            Kind::Crashed => format!("{subject} survived {count_text} crashes"),
            Kind::DeadLetters => format!("{subject} put {} aside as dead letters", counted(*count, "record")),
            Kind::SentTwice if *count == 1 => format!("{subject} sent a batch twice"),
            Kind::SentTwice => format!("{subject} sent {count_text} batches twice"),
            Kind::Refused => format!("Redis refused {} that it had already", counted_entries(*count)),
            Kind::Duplicates => format!("consumers skipped {} that they had seen before", counted_entries(*count)),
            Kind::Healed => {
                format!("consumers read {} from Postgres that the stream lacked", counted(*count, "record"))
            }
            Kind::Wiped => format!("{stream} was wiped{times}"),
            Kind::Rebuilt { offset } => {
                format!("{stream} was rebuilt{times}, up to offset {}", grouped(offset.unsigned_abs()))
            }
            Kind::ModelBuilt => format!("the read model of the wallets was given up and is built anew{times}"),
            Kind::Lost => format!("{subject} stopped answering{times}"),
            Kind::Back { after_s } if *count == 1 => format!("{subject} answers again, after {after_s} s"),
            Kind::Back { .. } => format!("{subject} answered again{times}"),
            Kind::Restarted { pid: Some(pid), was: Some(was) } => {
                format!("{subject} restarted{times}: process {pid} replaces {was}")
            }
            Kind::Restarted { pid: Some(pid), .. } => format!("{subject} restarted{times}: process {pid}"),
            Kind::Restarted { .. } => format!("{subject} restarted{times}"),
            Kind::TookOver => format!("{subject} took over {}", counted(*count, "partition")),
            Kind::Leads => format!("{subject} leads now{}", if *count == 1 { "" } else { ", again" }),
        }
    }
}

/// "1 record", "1,200 records".
fn counted(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(count), if count == 1 { "" } else { "s" })
}

fn counted_entries(count: u64) -> String {
    if count == 1 { "1 entry".to_owned() } else { format!("{} entries", grouped(count)) }
}

/// 1234567 → "1,234,567".
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The entries, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Incidents {
    entries: VecDeque<Incident>,
    change: u64,
}

impl Incidents {
    /// Adds `count` incidents to the list: as a new entry, or to a recent entry of the same kind and subject.
    pub fn add(&mut self, at_ms: u64, kind: Kind, subject: &str, count: u64) {
        if count == 0 {
            return;
        }
        self.change += 1;
        let is_same = |other: &Incident| {
            discriminant(&other.entry.kind) == discriminant(&kind)
                && other.entry.subject == subject
                && at_ms.saturating_sub(other.first_at_ms) <= JOINED_OVER_MS
        };
        let earlier = self.entries.iter().rposition(is_same).and_then(|index| self.entries.remove(index));
        let (first_at_ms, id, earlier_count) = match earlier {
            Some(earlier) => (earlier.first_at_ms, earlier.id, earlier.entry.count),
            None => (at_ms, format!("{at_ms}-{}", self.change), 0),
        };
        let entry = Entry { kind, subject: subject.to_owned(), count: earlier_count + count };
        if self.entries.len() == INCIDENT_COUNT_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(Incident { first_at_ms, at_ms, id, text: entry.text(), entry, change: self.change });
    }

    /// The entries that changed after `change`, the oldest first, and the number of the last change.
    pub fn after(&self, change: u64) -> (Vec<Incident>, u64) {
        let changed = self.entries.iter().filter(|incident| incident.change > change);
        (changed.cloned().collect(), self.change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(incidents: &Incidents) -> Vec<String> {
        incidents.after(0).0.into_iter().map(|incident| incident.text).collect()
    }

    #[test]
    fn incidents_of_a_kind_that_follow_each_other_closely_share_an_entry() {
        let mut incidents = Incidents::default();
        incidents.add(1000, Kind::Crashed, "consumer0", 1);
        incidents.add(2000, Kind::Crashed, "consumer1", 1);
        assert_eq!(texts(&incidents), ["consumer0 survived a crash", "consumer1 survived a crash"]);
        incidents.add(61_000, Kind::Crashed, "consumer0", 1234);
        assert_eq!(texts(&incidents), ["consumer1 survived a crash", "consumer0 survived 1,235 crashes"]);
        let last = incidents.after(0).0.pop().unwrap();
        assert_eq!((last.first_at_ms, last.at_ms), (1000, 61_000));
        incidents.add(61_001, Kind::Crashed, "consumer0", 1);
        assert_eq!(texts(&incidents).len(), 3, "the entry is older than a minute");
    }

    #[test]
    fn a_viewer_is_sent_what_changed_since_its_last_look() {
        let mut incidents = Incidents::default();
        incidents.add(1000, Kind::Wiped, "", 1);
        let (all, change) = incidents.after(0);
        assert_eq!((all.len(), change), (1, 1));
        assert_eq!(incidents.after(change), (vec![], 1));
        incidents.add(1500, Kind::Rebuilt { offset: 1_234_567 }, "", 1);
        incidents.add(2000, Kind::Wiped, "", 1);
        let (changed, _) = incidents.after(change);
        let changed: Vec<_> = changed.into_iter().map(|incident| (incident.id == all[0].id, incident.text)).collect();
        let rebuilt = "the stream was rebuilt, up to offset 1,234,567".to_owned();
        assert_eq!(changed, [(false, rebuilt), (true, "the stream was wiped 2 times".to_owned())]);
    }

    #[test]
    fn the_list_drops_its_oldest_entries() {
        let mut incidents = Incidents::default();
        for index in 0..60 {
            incidents.add(index, Kind::Leads, &format!("streamer{index}"), 1);
        }
        let texts = texts(&incidents);
        assert_eq!((texts.len(), texts[0].as_str()), (50, "streamer10 leads now"));
    }

    #[test]
    fn nothing_is_added_for_no_incident() {
        let mut incidents = Incidents::default();
        incidents.add(1, Kind::Healed, "", 0);
        assert_eq!(incidents.after(0), (vec![], 0));
    }
}
