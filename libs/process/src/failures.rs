//! The same failure is told once. Users: `logs`, for every process.
//!
//! A failure is a line of the level `WARN` or `ERROR`. Two lines are the same failure if they come from the same place of
//! the code and have the same text, ids and numbers apart. Its first line is logged. Further lines are counted instead.
//!
//! ```text
//! first line ──the same again──▶ repeating ──after 10 s, 20 s, … 5 min──▶ "a failure goes on", with the count
//!     │                              └───20 s without it───▶ "a failure has ended", with the count
//!     └───20 s without it───▶ forgotten: the next line is a first one
//! ```
//!
//! A failure that is not among the first [`FAILURE_COUNT_MAX`] is logged each time: no failure is ever hidden by another.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, error, warn};
use tracing_subscriber::layer::{Context, Layer};

/// A failure has ended when it did not happen for so long. Most pauses between two attempts are shorter.
const QUIET_WAIT: Duration = Duration::from_secs(20);

/// The time to the first reminder that a failure goes on. Each further one takes twice as long, up to the second value.
const REMIND_WAIT: Duration = Duration::from_secs(10);
const REMIND_WAIT_MAX: Duration = Duration::from_secs(300);

/// How often reminders and ends are looked for while a failure repeats.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Failures that are remembered at one time, and the length of the text that is kept of each.
const FAILURE_COUNT_MAX: usize = 1000;
const TEXT_LEN_MAX: usize = 400;

/// The filter must not hide the lines of this file when it shows only some crates.
pub(crate) const OWN_LEVEL: &str = "process::failures=warn";

/// The fields whose text varies by ids and numbers. In every other field each text is a failure of its own.
const PROSE: [&str; 5] = ["message", "error", "reason", "why", "body"];

/// The failures of this process.
static FAILURES: LazyLock<Mutex<Failures>> = LazyLock::new(Mutex::default);

/// Lets the first line of each failure pass.
pub(crate) struct ToldOnce;

impl<S: Subscriber> Layer<S> for ToldOnce {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::WARN || metadata.target() == module_path!() {
            return true;
        }
        let mut said = Said::default();
        metadata.callsite().hash(&mut said.digest);
        event.record(&mut said);
        let mut failures = failures();
        let is_first = failures.note(said, *metadata.level(), Instant::now());
        if !is_first && !failures.is_watched {
            // Without a thread it is tried again with the next line.
            failures.is_watched = std::thread::Builder::new().name("failures".into()).spawn(watch).is_ok();
        }
        is_first
    }
}

/// Logs how often each failure has repeated, before the process exits.
pub(crate) fn tell_at_exit() {
    let ended = failures().end_all(Instant::now());
    ended.iter().for_each(Told::log);
}

fn failures() -> MutexGuard<'static, Failures> {
    FAILURES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Logs reminders and ends until no failure repeats any more.
fn watch() {
    loop {
        std::thread::sleep(LOOK_INTERVAL);
        // The lock is released before a line is logged, because a slow log must not hold up every failure.
        let (told, is_watched) = {
            let mut failures = failures();
            let told = failures.due(Instant::now());
            failures.is_watched = failures.is_repeating();
            (told, failures.is_watched)
        };
        told.iter().for_each(Told::log);
        if !is_watched {
            return;
        }
    }
}

#[derive(Default)]
struct Failures {
    /// By the digests of their lines.
    known: HashMap<u64, Failure>,
    /// Whether [`watch`] runs.
    is_watched: bool,
}

#[derive(Debug)]
struct Failure {
    level: Level,
    text: String,
    count: u64,
    began_at: Instant,
    last_at: Instant,
    remind_at: Instant,
    remind_wait: Duration,
    /// It has happened again since `remind_at`.
    is_due: bool,
}

/// A line about a failure that repeats.
#[derive(Debug)]
struct Told {
    level: Level,
    text: String,
    count: u64,
    lasted: Duration,
    has_ended: bool,
}

impl Failures {
    /// Notes a line. Returns whether it is to be logged.
    fn note(&mut self, said: Said, level: Level, now: Instant) -> bool {
        let (key, text) = (said.digest.finish(), said.text);
        if let Some(failure) = self.known.get_mut(&key)
            && (failure.count > 1 || !failure.is_over(now))
        {
            failure.count += 1;
            failure.last_at = now;
            failure.is_due |= now >= failure.remind_at;
            return false;
        }
        if self.known.len() >= FAILURE_COUNT_MAX {
            self.known.retain(|_, failure| failure.count > 1 || !failure.is_over(now));
        }
        if self.known.len() < FAILURE_COUNT_MAX {
            let failure = Failure {
                level,
                text,
                count: 1,
                began_at: now,
                last_at: now,
                remind_at: now + REMIND_WAIT,
                remind_wait: REMIND_WAIT,
                is_due: false,
            };
            self.known.insert(key, failure);
        }
        true
    }

    /// The lines that are to be logged now. Forgets failures that are over.
    fn due(&mut self, now: Instant) -> Vec<Told> {
        let reminders = self.known.values_mut().filter_map(|failure| failure.remind(now));
        let mut told: Vec<Told> = reminders.collect();
        let over = self.known.extract_if(|_, failure| failure.is_over(now));
        told.extend(over.filter(|(_, failure)| failure.count > 1).map(|(_, failure)| failure.ended(failure.last_at)));
        told
    }

    fn end_all(&mut self, now: Instant) -> Vec<Told> {
        let all = self.known.drain().filter(|(_, failure)| failure.count > 1);
        all.map(|(_, failure)| failure.ended(now)).collect()
    }

    fn is_repeating(&self) -> bool {
        self.known.values().any(|failure| failure.count > 1)
    }
}

impl Failure {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_at) >= QUIET_WAIT
    }

    fn remind(&mut self, now: Instant) -> Option<Told> {
        if !self.is_due {
            return None;
        }
        self.is_due = false;
        self.remind_wait = (self.remind_wait * 2).min(REMIND_WAIT_MAX);
        self.remind_at = now + self.remind_wait;
        Some(self.told(now, false))
    }

    fn ended(&self, at: Instant) -> Told {
        self.told(at, true)
    }

    fn told(&self, at: Instant, has_ended: bool) -> Told {
        let lasted = at.saturating_duration_since(self.began_at);
        Told { level: self.level, text: self.text.clone(), count: self.count, lasted, has_ended }
    }
}

impl Told {
    fn log(&self) {
        let Self { text: failure, count, lasted, .. } = self;
        let lasted_s = lasted.as_secs();
        if self.has_ended {
            warn!(failure, count, lasted_s, "a failure has ended");
        } else if self.level == Level::ERROR {
            error!(failure, count, lasted_s, "a failure goes on");
        } else {
            warn!(failure, count, lasted_s, "a failure goes on");
        }
    }
}

/// The text of a line, and the digest of its place and of its text without ids and numbers.
#[derive(Default)]
struct Said {
    text: String,
    digest: DefaultHasher,
}

impl Said {
    fn add(&mut self, name: &str, value: &str) {
        if name == "id" || name.ends_with("_id") || name.ends_with(".id") {
            return;
        }
        name.hash(&mut self.digest);
        if PROSE.contains(&name) {
            let ends_word = |c: char| c.is_whitespace() || "\"'()[]{},;".contains(c);
            let words = value.split(ends_word).filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
            words.for_each(|word| word.hash(&mut self.digest));
        } else {
            value.hash(&mut self.digest);
        }
        let separator = if self.text.is_empty() { "" } else { " " };
        let label = if name == "message" { String::new() } else { format!("{name}=") };
        let room = TEXT_LEN_MAX.saturating_sub(self.text.chars().count());
        self.text.extend(separator.chars().chain(label.chars()).chain(value.chars()).take(room));
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.add(field.name(), &format!("{value:?}"));
    }

    fn record_i64(&mut self, _: &Field, _: i64) {}

    fn record_u64(&mut self, _: &Field, _: u64) {}

    fn record_i128(&mut self, _: &Field, _: i128) {}

    fn record_u128(&mut self, _: &Field, _: u128) {}

    fn record_f64(&mut self, _: &Field, _: f64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE_S: Duration = Duration::from_secs(1);

    fn said(fields: &[(&str, &str)]) -> Said {
        let mut said = Said::default();
        fields.iter().for_each(|(name, value)| said.add(name, value));
        said
    }

    fn note(failures: &mut Failures, message: &str, now: Instant) -> bool {
        failures.note(said(&[("message", message)]), Level::WARN, now)
    }

    /// Count, seconds and whether it has ended.
    fn figures(told: Vec<Told>) -> Vec<(u64, u64, bool)> {
        told.iter().map(|told| (told.count, told.lasted.as_secs(), told.has_ended)).collect()
    }

    #[test]
    fn a_failure_is_told_when_it_begins_now_and_then_and_when_it_ends() {
        let (mut failures, start, mut reminders) = (Failures::default(), Instant::now(), Vec::new());
        for second in 0..60 {
            let now = start + second * ONE_S;
            assert_eq!(note(&mut failures, "redis is away", now), second == 0);
            reminders.extend(figures(failures.due(now)));
        }
        assert_eq!(reminders, [(11, 10, false), (31, 30, false)]);
        assert_eq!(figures(failures.due(start + 78 * ONE_S)), []);
        assert!(failures.is_repeating());
        assert_eq!(figures(failures.due(start + 79 * ONE_S)), [(60, 59, true)]);
        assert!(!failures.is_repeating());
        assert!(note(&mut failures, "redis is away", start + 80 * ONE_S), "it begins anew");
    }

    #[test]
    fn a_failure_that_happens_now_and_then_is_told_each_time_and_never_ends() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        for n in 0..10 {
            let now = start + n * QUIET_WAIT;
            assert!(note(&mut failures, "the disk is full", now));
            assert_eq!(figures(failures.due(now + ONE_S)), []);
        }
        assert_eq!(figures(failures.end_all(start)), []);
    }

    #[test]
    fn no_failure_hides_another_even_if_there_are_too_many_to_remember() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let text = |n: usize| "x".repeat(n + 1);
        for n in 0..2 * FAILURE_COUNT_MAX {
            assert!(note(&mut failures, &text(n), now));
        }
        assert_eq!(failures.known.len(), FAILURE_COUNT_MAX);
        assert!(!note(&mut failures, &text(0), now));
        assert!(note(&mut failures, &text(2 * FAILURE_COUNT_MAX), now), "one that is not remembered passes each time");
        assert!(note(&mut failures, &text(2 * FAILURE_COUNT_MAX), now));
        // The repeated one waits for its end; the others are over.
        assert!(note(&mut failures, "another", now + QUIET_WAIT));
        assert_eq!(failures.known.len(), 2);
    }

    #[test]
    fn ids_and_numbers_make_no_difference_and_words_do() {
        let digest = |fields: &[(&str, &str)]| said(fields).digest.finish();
        let full = |file: &str| digest(&[("error", file), ("request_id", file), ("claim.id", file), ("id", file)]);
        let first = full("could not extend file \"base/5/16385\": No space left on device");
        assert_eq!(first, full("could not extend file \"base/5/2608_fsm\": No space left on device"));
        assert_ne!(first, full("could not extend file \"base/5/16385\": Permission denied"));
        assert_ne!(digest(&[("consumer", "consumer1")]), digest(&[("consumer", "consumer2")]));
        assert_ne!(digest(&[("error", "away")]), digest(&[("reason", "away")]));
    }

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        let said = said(&[("message", "away"), ("error", &"é".repeat(1_000))]);
        assert!(said.text.starts_with("away error=éé"), "{}", said.text);
        assert_eq!(said.text.chars().count(), TEXT_LEN_MAX);
    }
}
