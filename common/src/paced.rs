//! A costly figure that many ask for: it is worked out once for all of them, and rarely if it takes long. Users: the totals of
//! the api, and the recount of the live page.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

/// Working figures out takes at most one part of so many parts of the time. So a figure that reads a whole table costs Postgres at
/// most a twentieth of a processor, however large the table is.
const PARTS: u32 = 20;

/// The time that can be saved up for figures. So a figure that is cheap, or seldom wanted, is always a new one.
const SAVED_S_MAX: f64 = 1.0;

/// How long [`Paced::latest`] waits for a new figure. After that an earlier one will do.
const LATEST_WAIT: Duration = Duration::from_millis(200);

/// The same for [`Paced::recent`].
const RECENT_WAIT: Duration = Duration::from_millis(500);

/// The pause after an error.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// Works out a figure.
pub trait Source: Send + 'static {
    /// The figure.
    type Value: Clone + Send + Sync + 'static;

    /// Why there is none.
    type Error: Clone + Send + Sync + 'static;

    /// Works the figure out again, within a time limit.
    ///
    /// # Errors
    /// It is tried again when the figure is wanted again.
    fn work_out(&mut self) -> impl Future<Output = Result<Self::Value, Self::Error>> + Send;
}

/// A figure, and when it was worked out.
#[derive(Debug, Clone)]
pub struct Figure<T, E> {
    /// The figure.
    pub result: Result<T, E>,
    began_at: Instant,
    took: Duration,
}

impl<T, E> Figure<T, E> {
    /// How old the figure is at most: the time since the work on it began.
    pub fn age(&self) -> Duration {
        self.began_at.elapsed()
    }

    /// Whether the next figure cannot be there yet, because of the pause and the time that it takes.
    fn is_recent(&self) -> bool {
        self.result.is_ok() && self.age() <= self.took * (PARTS + 2) + RECENT_WAIT
    }
}

/// The latest figure of a source. Clones share it.
#[derive(Debug, Clone)]
pub struct Paced<T, E> {
    last: watch::Receiver<Option<Figure<T, E>>>,
    wanted: Arc<Notify>,
}

impl<T, E> Paced<T, E>
where
    T: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static,
{
    /// Works figures out, one at a time and only if they are wanted, until all clones are dropped.
    pub fn start(mut source: impl Source<Value = T, Error = E>) -> Self {
        let (sender, last) = watch::channel(None);
        let wanted = Arc::new(Notify::new());
        let asked = Arc::clone(&wanted);
        tokio::spawn(async move {
            let mut budget = Budget { saved_s: SAVED_S_MAX, at: Instant::now() };
            loop {
                tokio::select! {
                    () = asked.notified() => {}
                    () = sender.closed() => break,
                }
                // Those who have asked meanwhile want this figure too, and no further one.
                tokio::select! {
                    biased;
                    () = asked.notified() => {}
                    () = std::future::ready(()) => {}
                }
                let began_at = Instant::now();
                let result = source.work_out().await;
                let took = began_at.elapsed();
                let pause = if result.is_ok() { budget.spend(took) } else { RETRY_WAIT };
                sender.send_replace(Some(Figure { result, began_at, took }));
                sleep(pause).await;
            }
        });
        Self { last, wanted }
    }

    /// A figure on which the work begins after this call, if it is there soon; else the latest one. `None`: there is none yet.
    pub async fn latest(&self) -> Option<Figure<T, E>> {
        let mut last = self.last.clone();
        // After the time-out the work goes on, and a later call gets its result.
        let _ = timeout(LATEST_WAIT, last.wait_for(self.new_one())).await;
        last.borrow().clone()
    }

    /// As [`latest`](Self::latest), but waits on if the latest figure is an error, or older than the pause explains. `None`: the
    /// source has panicked.
    pub async fn recent(&self) -> Option<Figure<T, E>> {
        let mut last = self.last.clone();
        let is_new = self.new_one();
        if let Ok(figure) = timeout(RECENT_WAIT, last.wait_for(&is_new)).await {
            return figure.ok()?.clone();
        }
        let will_do = |figure: &Option<Figure<T, E>>| is_new(figure) || figure.as_ref().is_some_and(Figure::is_recent);
        last.wait_for(will_do).await.ok()?.clone()
    }

    /// Asks for a figure. The result tells whether the work on a figure has begun after that.
    fn new_one(&self) -> impl Fn(&Option<Figure<T, E>>) -> bool + use<T, E> {
        let asked_at = Instant::now();
        self.wanted.notify_one();
        move |figure| figure.as_ref().is_some_and(|figure| figure.began_at >= asked_at)
    }
}

/// The time that may be spent on figures.
struct Budget {
    saved_s: f64,
    at: Instant,
}

impl Budget {
    /// Returns the pause until the next figure can be afforded.
    fn spend(&mut self, took: Duration) -> Duration {
        let parts = f64::from(PARTS);
        let saved_s = self.saved_s + self.at.elapsed().as_secs_f64() / parts;
        self.saved_s = saved_s.min(SAVED_S_MAX) - took.as_secs_f64();
        self.at = Instant::now();
        Duration::from_secs_f64((-self.saved_s * parts).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Counts how often it was asked.
    #[derive(Default, Clone)]
    struct Counter {
        count: Arc<AtomicU32>,
        takes: Duration,
        fails: bool,
    }

    impl Source for Counter {
        type Value = u32;
        type Error = u32;

        async fn work_out(&mut self) -> Result<u32, u32> {
            let count = self.count.fetch_add(1, Ordering::SeqCst) + 1;
            sleep(self.takes).await;
            if self.fails { Err(count) } else { Ok(count) }
        }
    }

    #[tokio::test]
    async fn a_hundred_who_ask_share_one_figure() {
        let counter = Counter { takes: Duration::from_millis(20), ..Counter::default() };
        let paced = Paced::start(counter.clone());
        let asking: Vec<_> = (0..100)
            .map(|_| {
                let paced = paced.clone();
                tokio::spawn(async move { paced.recent().await.unwrap().result })
            })
            .collect();
        for asked in asking {
            assert_eq!(asked.await.unwrap(), Ok(1));
        }
        assert_eq!(counter.count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_cheap_figure_is_new_for_each_who_asks() {
        let paced = Paced::start(Counter::default());
        for count in 1..5 {
            let figure = paced.recent().await.unwrap();
            assert_eq!(figure.result, Ok(count));
            assert!(figure.age() < Duration::from_secs(10));
        }
    }

    #[tokio::test]
    async fn a_costly_figure_is_given_again_and_tells_its_age() {
        let counter = Counter { takes: Duration::from_millis(1100), ..Counter::default() };
        let paced = Paced::start(counter.clone());
        assert!(paced.latest().await.is_none(), "it would take too long");
        assert_eq!(paced.recent().await.unwrap().result, Ok(1), "the first is waited for");
        let again = paced.recent().await.unwrap();
        assert_eq!(again.result, Ok(1));
        assert!(again.age() >= Duration::from_millis(1600), "{:?}", again.age());
        assert_eq!(counter.count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_error_is_given_to_those_who_asked_before_it_and_to_no_other() {
        let paced = Paced::start(Counter { fails: true, ..Counter::default() });
        for count in 1..4 {
            assert_eq!(paced.recent().await.unwrap().result, Err(count));
        }
    }
}
