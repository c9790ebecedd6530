//! Finds incidents: compares each sample with what was last known of every consumer, process, server and the stream.

use std::collections::BTreeMap;

use crate::incidents::{Incidents, Kind};
use crate::sample::{Consumer, LogState, Model, Process, Sample, StreamState};

/// A process or a server is lost after this many samples in a row without an answer. One may be a slow moment.
const MISSED_COUNT_MAX: u32 = 2;

/// A start time is a decimal number of seconds. A smaller difference is one of rounding.
const START_TOLERANCE_S: f64 = 0.01;

/// Names of the servers in the list.
const SERVERS: [&str; 2] = ["Postgres", "Redis"];

/// The last known figures. They begin empty, so the first sample has no incident.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    consumers: BTreeMap<String, Consumer>,
    processes: BTreeMap<String, Process>,
    /// By partition.
    streams: BTreeMap<i32, Stream>,
    /// The streamer that leads or led each partition.
    leaders: BTreeMap<i32, String>,
    /// The epoch of the wallets' read model.
    epoch: Option<String>,
    /// By name, of everything that has ever answered.
    answers: BTreeMap<String, Answer>,
}

/// The stream of a partition.
#[derive(Debug)]
struct Stream {
    last: StreamState,
    /// Where the stream ended before it was wiped, until it ends there again.
    wiped_at_offset: Option<i64>,
}

/// Whether a process or a server answers.
#[derive(Debug)]
struct Answer {
    last_at_ms: u64,
    /// Samples without an answer since then.
    missed_count: u32,
}

impl Differences {
    /// Adds to `incidents` what happened between the samples before and this one.
    pub fn find(&mut self, sample: &Sample, incidents: &mut Incidents) {
        for (name, server) in SERVERS.iter().zip([sample.postgres, sample.redis]) {
            self.watch(sample.at_ms, name, server.is_up, false, incidents);
        }
        for process in &sample.processes {
            self.compare_process(sample.at_ms, process, incidents);
        }
        let is_cut = sample.log.as_ref().is_some_and(|log| log.partitions.len() > 1);
        for process in &sample.processes {
            self.compare_leader(sample.at_ms, process, is_cut, incidents);
        }
        self.compare_streams(sample, incidents);
        if let Model::Marked { epoch, .. } = &sample.wallets.model
            && self.epoch.as_ref() != Some(epoch)
            && self.epoch.replace(epoch.clone()).is_some()
        {
            incidents.add(sample.at_ms, Kind::ModelBuilt, "", 1);
        }
        if let Some(log) = &sample.log {
            self.compare_consumers(sample.at_ms, log, incidents);
        }
    }

    /// Follows whether `name` answers. A restart is an incident of its own, so the return of a restarted process is none.
    fn watch(&mut self, at_ms: u64, name: &str, does_answer: bool, is_restarted: bool, incidents: &mut Incidents) {
        if !does_answer {
            if let Some(answer) = self.answers.get_mut(name) {
                answer.missed_count = answer.missed_count.saturating_add(1);
                if answer.missed_count == MISSED_COUNT_MAX {
                    incidents.add(at_ms, Kind::Lost, name, 1);
                }
            }
            return;
        }
        let before = self.answers.insert(name.to_owned(), Answer { last_at_ms: at_ms, missed_count: 0 });
        if let Some(answer) = before.filter(|answer| answer.missed_count >= MISSED_COUNT_MAX && !is_restarted) {
            let after_s = at_ms.saturating_sub(answer.last_at_ms).div_ceil(1000);
            incidents.add(at_ms, Kind::Back { after_s }, name, 1);
        }
    }

    fn compare_process(&mut self, at_ms: u64, process: &Process, incidents: &mut Incidents) {
        let name = &process.name;
        let does_answer = process.is_ready.is_some();
        let before = self.processes.get(name);
        let is_restarted = does_answer
            && match before.map(|before| (before.started_at_s, process.started_at_s)) {
                Some((Some(before_s), Some(now_s))) => (now_s - before_s).abs() > START_TOLERANCE_S,
                _ => false,
            };
        if is_restarted {
            let was = before.and_then(|before| before.pid);
            incidents.add(at_ms, Kind::Restarted { pid: process.pid, was }, name, 1);
        }
        // A new process counts from 0 again.
        let since = |count: fn(&Process) -> Option<f64>| match (before.and_then(count), count(process)) {
            (_, Some(now)) if is_restarted => now as u64,
            (Some(then), Some(now)) => (now - then).max(0.0) as u64,
            _ => 0,
        };
        incidents.add(at_ms, Kind::SentTwice, name, since(|process| process.sent_twice_count));
        incidents.add(at_ms, Kind::Refused, name, since(|process| process.refused_count));
        self.watch(at_ms, name, does_answer, is_restarted, incidents);
        if does_answer {
            self.processes.insert(name.clone(), process.clone());
        }
    }

    fn compare_leader(&mut self, at_ms: u64, process: &Process, is_cut: bool, incidents: &mut Incidents) {
        let mut taken_count = 0;
        for partition in &process.leads {
            let before = self.leaders.insert(*partition, process.name.clone());
            taken_count += u64::from(before.is_some_and(|before| before != process.name));
        }
        if is_cut {
            incidents.add(at_ms, Kind::TookOver, &process.name, taken_count);
        } else {
            incidents.add(at_ms, Kind::Leads, &process.name, taken_count.min(1));
        }
    }

    /// If the log has several partitions, incidents name the stream. A node that is away takes some of them with it.
    fn compare_streams(&mut self, sample: &Sample, incidents: &mut Incidents) {
        let are_several = sample.streams.len() > 1;
        for stream in &sample.streams {
            let name =
                if are_several { format!("the stream of partition {}", stream.partition) } else { String::new() };
            if are_several && sample.redis.is_up {
                self.watch(sample.at_ms, &name, stream.state.is_some(), false, incidents);
            }
            if let Some(state) = stream.state {
                self.compare_stream(sample.at_ms, stream.partition, state, &name, incidents);
            }
        }
    }

    /// The stream was wiped if it ends earlier than before, or if fewer entries were ever added to it: the streamer may have
    /// gone on with a new stream before the next sample was taken. Trimming changes neither figure.
    fn compare_stream(&mut self, at_ms: u64, partition: i32, now: StreamState, name: &str, incidents: &mut Incidents) {
        let stream = self.streams.entry(partition).or_insert(Stream { last: now, wiped_at_offset: None });
        let before = std::mem::replace(&mut stream.last, now);
        if now.last_offset < before.last_offset || now.added_count < before.added_count {
            incidents.add(at_ms, Kind::Wiped, name, 1);
            stream.wiped_at_offset = Some(before.last_offset.max(stream.wiped_at_offset.unwrap_or(0)));
        }
        if let Some(offset) = stream.wiped_at_offset.take_if(|offset| now.last_offset >= *offset) {
            let offset = now.last_offset.max(offset);
            incidents.add(at_ms, Kind::Rebuilt { offset }, name, 1);
        }
    }

    fn compare_consumers(&mut self, at_ms: u64, log: &LogState, incidents: &mut Incidents) {
        let (mut duplicate_count, mut healed_count) = (0, 0);
        for consumer in &log.consumers {
            let Some(before) = self.consumers.insert(consumer.name.clone(), consumer.clone()) else { continue };
            let since = |count: fn(&Consumer) -> i64| u64::try_from(count(consumer) - count(&before)).unwrap_or(0);
            incidents.add(at_ms, Kind::Crashed, &consumer.name, since(|consumer| consumer.crash_count));
            incidents.add(at_ms, Kind::DeadLetters, &consumer.name, since(|consumer| consumer.dead_letter_count));
            duplicate_count += since(|consumer| consumer.duplicate_count);
            healed_count += since(|consumer| consumer.healed_count);
        }
        incidents.add(at_ms, Kind::Duplicates, "", duplicate_count);
        incidents.add(at_ms, Kind::Healed, "", healed_count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Container, PartitionState, PartitionStream, Server, Verdict, Wallets};

    const UP: Server = Server { is_up: true, answer_ms: Some(1.0) };

    fn sample(at_ms: u64) -> Sample {
        Sample {
            at_ms,
            verdict: Verdict::Behind,
            postgres: UP,
            redis: UP,
            log: None,
            stream: None,
            streams: vec![],
            recount: None,
            rides_per_s: None,
            processes: vec![],
            wallets: Wallets::default(),
            container: Container::default(),
        }
    }

    fn with_consumer(at_ms: u64, change: impl FnOnce(&mut Consumer)) -> Sample {
        let mut consumer = Consumer {
            name: "consumer1".to_owned(),
            last_offset: 5,
            duplicate_count: 10,
            healed_count: 10,
            rejected_count: 10,
            crash_count: 10,
            dead_letter_count: 10,
            ..Consumer::default()
        };
        change(&mut consumer);
        let log = LogState { head: 5, is_led: true, consumers: vec![consumer], ..LogState::default() };
        Sample { log: Some(log), ..sample(at_ms) }
    }

    fn with_stream(at_ms: u64, last_offset: i64, added_count: i64) -> Sample {
        with_streams(at_ms, &[Some(StreamState { last_offset, entry_count: 3, added_count })])
    }

    fn with_streams(at_ms: u64, states: &[Option<StreamState>]) -> Sample {
        let streams = states.iter().zip(0..).map(|(state, partition)| PartitionStream { partition, state: *state });
        Sample { streams: streams.collect(), ..sample(at_ms) }
    }

    fn with_process(at_ms: u64, change: impl FnOnce(&mut Process)) -> Sample {
        let mut process = Process {
            name: "streamer".to_owned(),
            is_ready: Some(true),
            pid: Some(100),
            started_at_s: Some(7.5),
            is_leader: Some(true),
            leads: vec![0],
            refused_count: Some(20.0),
            sent_twice_count: Some(20.0),
            ..Process::default()
        };
        change(&mut process);
        Sample { processes: vec![process], ..sample(at_ms) }
    }

    /// A process that does not answer.
    fn away(process: &mut Process) {
        *process = Process { name: process.name.clone(), ..Process::default() };
    }

    fn found(samples: &[Sample]) -> Vec<String> {
        let (mut differences, mut incidents) = (Differences::default(), Incidents::default());
        for sample in samples {
            differences.find(sample, &mut incidents);
        }
        incidents.after(0).0.into_iter().map(|incident| incident.text).collect()
    }

    #[test]
    fn the_first_sample_has_no_incident() {
        let process = with_process(1, |_| {}).processes;
        let first = Sample { processes: process, streams: with_stream(1, 5, 5).streams, ..with_consumer(1, |_| {}) };
        assert_eq!(found(&[first.clone(), Sample { at_ms: 501, ..first }]), [""; 0]);
    }

    #[test]
    fn a_consumers_counts_that_grow_are_incidents_even_across_an_outage() {
        let after = with_consumer(60_000, |consumer| {
            consumer.crash_count += 1;
            consumer.dead_letter_count += 2;
            consumer.duplicate_count += 3;
            consumer.healed_count += 1;
        });
        let expected = [
            "consumer1 survived a crash",
            "consumer1 put 2 records aside as dead letters",
            "consumers skipped 3 entries that they had seen before",
            "consumers read 1 record from Postgres that the stream lacked",
        ];
        assert_eq!(found(&[with_consumer(1, |_| {}), sample(500), after]), expected);
        let fewer = with_consumer(500, |consumer| consumer.crash_count = 0);
        assert_eq!(found(&[with_consumer(1, |_| {}), fewer]), [""; 0], "the database was restored");
    }

    #[test]
    fn a_stream_that_ends_earlier_was_wiped_and_is_rebuilt_when_it_ends_there_again() {
        let samples = [
            with_stream(1, 500, 500),
            with_stream(2, 0, 0),
            sample(3),
            with_stream(4, 300, 300),
            with_stream(5, 600, 600),
            with_stream(6, 700, 700),
        ];
        assert_eq!(found(&samples), ["the stream was wiped", "the stream was rebuilt, up to offset 600"]);
    }

    #[test]
    fn each_stream_of_several_is_followed_by_itself() {
        let at = |last_offset| Some(StreamState { last_offset, entry_count: 3, added_count: last_offset });
        let away = |at_ms| with_streams(at_ms, &[at(500), None]);
        let samples = [
            with_streams(1, &[at(500), at(300)]),
            with_streams(500, &[at(0), at(300)]),
            with_streams(1000, &[at(500), at(300)]),
            away(1500),
            away(2000),
            with_streams(3001, &[at(500), at(301)]),
        ];
        let expected = [
            "the stream of partition 0 was wiped",
            "the stream of partition 0 was rebuilt, up to offset 500",
            "the stream of partition 1 stopped answering",
            "the stream of partition 1 answers again, after 3 s",
        ];
        assert_eq!(found(&samples), expected);
        let all_away = |at_ms| Sample { redis: Server::DOWN, ..with_streams(at_ms, &[None, None]) };
        let samples = [with_streams(1, &[at(5), at(3)]), all_away(500), all_away(1000)];
        assert_eq!(found(&samples), ["Redis stopped answering"], "one incident, and not one for each stream");
    }

    #[test]
    fn a_stream_that_was_replaced_between_two_samples_was_wiped_too() {
        let samples = [with_stream(1, 500, 500), with_stream(2, 510, 10)];
        assert_eq!(found(&samples), ["the stream was wiped", "the stream was rebuilt, up to offset 510"]);
        let trimmed = with_streams(2, &[Some(StreamState { last_offset: 500, entry_count: 0, added_count: 500 })]);
        assert_eq!(found(&[with_stream(1, 500, 500), trimmed]), [""; 0]);
    }

    #[test]
    fn a_new_start_time_is_a_restart_and_counts_begin_anew() {
        let restarted = with_process(1000, |process| {
            (process.pid, process.started_at_s) = (Some(200), Some(9.0));
            (process.refused_count, process.sent_twice_count) = (Some(0.0), Some(2.0));
        });
        let expected = ["streamer restarted: process 200 replaces 100", "streamer sent 2 batches twice"];
        assert_eq!(found(&[with_process(1, |_| {}), restarted.clone()]), expected);
        let away = [with_process(500, away), with_process(600, away)];
        let [first, second] = away;
        let lost = "streamer stopped answering";
        assert_eq!(
            found(&[with_process(1, |_| {}), first, second, restarted]),
            [lost, expected[0], expected[1]],
            "a restart explains why it answers again"
        );
    }

    #[test]
    fn what_the_streamer_sends_twice_is_an_incident() {
        let after = with_process(500, |process| {
            process.refused_count = Some(21.0);
            process.sent_twice_count = Some(21.0);
        });
        let expected = ["streamer sent a batch twice", "Redis refused 1 entry that it had already"];
        assert_eq!(found(&[with_process(1, |_| {}), after]), expected);
    }

    #[test]
    fn another_epoch_of_the_wallets_is_an_incident_and_a_missing_mark_is_none() {
        let marked = |at_ms, epoch: &str| {
            let model = Model::Marked { epoch: epoch.to_owned(), offset: 7 };
            Sample { wallets: Wallets { model, ..Wallets::default() }, ..sample(at_ms) }
        };
        let samples = [marked(1, "a"), sample(500), marked(1000, "a"), marked(1500, "b")];
        assert_eq!(found(&samples), ["the read model of the wallets was given up and is built anew"]);
    }

    #[test]
    fn a_single_missing_answer_is_no_outage() {
        let down = |at_ms| Sample { redis: Server::DOWN, ..sample(at_ms) };
        assert_eq!(found(&[sample(1), down(500), sample(1000)]), [""; 0]);
        let samples = [sample(1), down(500), down(1000), down(1500), sample(2001)];
        assert_eq!(found(&samples), ["Redis stopped answering", "Redis answers again, after 2 s"]);
        assert_eq!(found(&[down(1), down(2), sample(3)]), [""; 0], "it has never answered before");
    }

    #[test]
    fn another_streamer_that_leads_is_an_incident() {
        let second = |at_ms| with_process(at_ms, |process| process.name = "streamer2".to_owned());
        let samples = [with_process(1, |_| {}), with_process(500, away), second(600), second(1100)];
        assert_eq!(found(&samples), ["streamer2 leads now"]);
    }

    #[test]
    fn streamers_that_share_partitions_take_them_over() {
        let parts = vec![PartitionState::default(), PartitionState { partition: 1, ..PartitionState::default() }];
        let leading = |at_ms, led: [&[i32]; 2]| {
            let streamer = |name: &str, leads: &[i32]| {
                let process = with_process(at_ms, |process| process.name = name.to_owned()).processes.remove(0);
                Process { leads: leads.to_vec(), is_leader: Some(!leads.is_empty()), ..process }
            };
            let processes = vec![streamer("a", led[0]), streamer("b", led[1])];
            Sample { processes, log: Some(LogState::of(parts.clone(), true)), ..sample(at_ms) }
        };
        let samples = [leading(1, [&[0, 1], &[]]), leading(500, [&[0], &[1]]), leading(1000, [&[0], &[1]])];
        assert_eq!(found(&samples), ["b took over 1 partition"]);
    }
}
