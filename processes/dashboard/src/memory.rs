//! The recent past, for pages that are opened later: the points of the plots, the incidents, and the last known figures of
//! a server that does not answer now.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde::Serialize;

use crate::differences::Differences;
use crate::incidents::{Incident, Incidents};
use crate::sample::{LogState, Point, Sample, StreamState};

/// The plots show ten minutes, at two samples per second.
const POINT_COUNT_MAX: usize = 1200;

/// The sampler writes; every viewer that connects reads.
pub(crate) type SharedMemory = Arc<Mutex<Memory>>;

/// Everything that is kept of past samples.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    points: VecDeque<Point>,
    differences: Differences,
    incidents: Incidents,
    last_with_log: Option<Arc<Sample>>,
    last_with_stream: Option<Arc<Sample>>,
}

/// The last known figures, each with the time of the sample that had them. `None`: never known.
#[derive(Debug, Serialize)]
pub(crate) struct Known<'a> {
    pub log_at_ms: Option<u64>,
    pub log: Option<&'a LogState>,
    pub stream_at_ms: Option<u64>,
    pub stream: Option<StreamState>,
}

impl Memory {
    /// Takes one more sample in.
    pub fn remember(&mut self, sample: &Arc<Sample>) {
        if self.points.len() == POINT_COUNT_MAX {
            self.points.pop_front();
        }
        self.points.push_back(sample.point());
        self.differences.find(sample, &mut self.incidents);
        if sample.log.is_some() {
            self.last_with_log = Some(Arc::clone(sample));
        }
        if sample.stream.is_some() {
            self.last_with_stream = Some(Arc::clone(sample));
        }
    }

    /// The points of the last minutes, the oldest first.
    pub fn points(&self) -> &VecDeque<Point> {
        &self.points
    }

    /// The figures that a page shows while a server does not answer.
    pub fn known(&self) -> Known<'_> {
        let (with_log, with_stream) = (self.last_with_log.as_deref(), self.last_with_stream.as_deref());
        Known {
            log_at_ms: with_log.map(|sample| sample.at_ms),
            log: with_log.and_then(|sample| sample.log.as_ref()),
            stream_at_ms: with_stream.map(|sample| sample.at_ms),
            stream: with_stream.and_then(|sample| sample.stream),
        }
    }

    /// As [`Incidents::after`].
    pub fn incidents_after(&self, change: u64) -> (Vec<Incident>, u64) {
        self.incidents.after(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Container, Server, Verdict, Wallets};

    fn sample(at_ms: u64, head: Option<i64>, last_offset: Option<i64>) -> Arc<Sample> {
        let log = |head| LogState { head, is_led: true, ..LogState::default() };
        Arc::new(Sample {
            at_ms,
            verdict: Verdict::Unknown,
            postgres: Server::DOWN,
            redis: Server::DOWN,
            log: head.map(log),
            stream: last_offset.map(|last_offset| StreamState { last_offset, entry_count: 1, added_count: 1 }),
            streams: vec![],
            recount: None,
            rides_per_s: None,
            processes: vec![],
            wallets: Wallets::default(),
            container: Container::default(),
        })
    }

    #[test]
    fn the_last_known_figures_of_each_server_stay_through_its_outage() {
        let mut memory = Memory::default();
        assert!(memory.known().log.is_none() && memory.known().stream.is_none());
        for sample in [sample(1, Some(7), Some(6)), sample(2, Some(8), None), sample(3, None, None)] {
            memory.remember(&sample);
        }
        let known = memory.known();
        assert_eq!((known.log_at_ms, known.log.map(|log| log.head)), (Some(2), Some(8)));
        assert_eq!((known.stream_at_ms, known.stream.map(|stream| stream.last_offset)), (Some(1), Some(6)));
    }

    #[test]
    fn points_are_kept_for_ten_minutes() {
        let mut memory = Memory::default();
        for at_ms in 0..1300 {
            memory.remember(&sample(at_ms, None, None));
        }
        assert_eq!((memory.points().len(), memory.points()[0].at_ms), (1200, 100));
    }
}
