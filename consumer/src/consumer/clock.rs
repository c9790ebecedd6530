//! When Postgres is asked for the heads. This runs on its own clock: a busy stream, or one that cannot be read, must not keep the
//! records of another from being found. It also says when the log is to be told of states that are elsewhere.

use std::time::{Duration, Instant};

/// The pause between two looks while all streams can be read. A partition that lags at two looks in a row, and whose stream offers
/// nothing, is read from Postgres: its records are folded within twice this time.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The pause while a stream cannot be read, and is given time to come back.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How often the log is told how far a consumer is whose state is elsewhere. The reaper waits for it.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// The clock of the looks.
#[derive(Debug, Default)]
pub(super) struct Clock {
    looked_at: Option<Instant>,
    is_urgent: bool,
    /// What the log was told, and when: an offset and a token for each partition.
    told: Option<(Vec<(i64, i64)>, Instant)>,
}

impl Clock {
    /// The next look is due at once: a stream has just failed, or a gap is not healed yet.
    pub fn hurry(&mut self) {
        self.is_urgent = true;
    }

    /// A look begins.
    pub fn note_look(&mut self) {
        (self.looked_at, self.is_urgent) = (Some(Instant::now()), false);
    }

    /// Whether the log is to be told of these places: it was told of others, and that was some time ago, or there is nothing to do.
    pub fn is_time_to_tell(&self, places: &[(i64, i64)], is_idle: bool) -> bool {
        self.told.as_ref().is_none_or(|(told, at)| told != places && (is_idle || at.elapsed() >= TELL_INTERVAL))
    }

    /// The states were loaded again. If the log had crashed, it may have forgotten this, too.
    pub fn forget_told(&mut self) {
        self.told = None;
    }

    /// The log was told.
    pub fn note_told(&mut self, places: Vec<(i64, i64)>) {
        self.told = Some((places, Instant::now()));
    }

    /// When the next look is due. `None`: there is one stream, and it can be read. Then the reader tells when it is silent.
    pub fn due_at(&mut self, stream_count: usize, is_readable: bool) -> Option<Instant> {
        let now = Instant::now();
        let looked_at = *self.looked_at.get_or_insert(now);
        match (self.is_urgent, is_readable, stream_count) {
            (true, _, _) => Some(now),
            (false, false, _) => Some(looked_at + POLL_INTERVAL),
            (false, true, 0 | 1) => None,
            (false, true, _) => Some(looked_at + LOOK_INTERVAL),
        }
    }
}
