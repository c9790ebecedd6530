//! The rules of a group writer, with a destination in memory.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use monitor::Health;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::timeout;

use crate::{Destination, Limits, Queue, Refusal};

/// Longer than any step of these tests takes.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Error {
    Refused(Refusal),
    /// The request is bad.
    Bad(i64),
    Broken,
    NoConnection,
    Late,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    /// One of several requests is bad.
    Bad(i64),
    Broken,
}

/// Remembers each attempt to write. Requests below zero are bad; [`BROKEN`], [`STUCK`] and [`PANIC`] do what their names say.
#[derive(Clone)]
struct Memory(Arc<State>);

const BROKEN: i64 = 1_000;
const STUCK: i64 = 2_000;
const PANIC: i64 = 3_000;

struct State {
    attempts: Mutex<Vec<Vec<i64>>>,
    /// One permit per write that may end.
    gate: Semaphore,
    connections: Semaphore,
    abandoned_count: Mutex<usize>,
}

impl Memory {
    /// Every write waits for a permit of the gate.
    fn gated() -> Self {
        Self(Arc::new(State {
            attempts: Mutex::default(),
            gate: Semaphore::new(0),
            connections: Semaphore::new(1),
            abandoned_count: Mutex::default(),
        }))
    }

    fn open() -> Self {
        let memory = Self::gated();
        memory.0.gate.add_permits(1_000);
        memory
    }

    fn attempts(&self) -> Vec<Vec<i64>> {
        self.0.attempts.lock().unwrap().clone()
    }

    async fn wait_for_attempts(&self, count: usize) {
        let waiting = async {
            while self.attempts().len() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, waiting).await.expect("the write begins");
    }
}

impl Destination for Memory {
    type Request = i64;
    type Response = String;
    type Error = Error;
    type Connection = ();
    type Failure = Failure;

    async fn connect(&self) -> Result<(), Error> {
        if self.0.connections.available_permits() > 0 { Ok(()) } else { Err(Error::NoConnection) }
    }

    async fn write(&self, (): &(), requests: &[i64]) -> Result<Vec<String>, Failure> {
        self.0.attempts.lock().unwrap().push(requests.to_vec());
        self.0.gate.acquire().await.unwrap().forget();
        assert!(!requests.contains(&PANIC), "asked to");
        if requests.contains(&STUCK) {
            std::future::pending::<()>().await;
        }
        match requests.iter().find(|request| **request < 0 || **request == BROKEN) {
            Some(&BROKEN) => Err(Failure::Broken),
            Some(bad) => Err(Failure::Bad(*bad)),
            None => Ok(requests.iter().map(|request| format!("wrote {request}")).collect()),
        }
    }

    fn concerns_one_request(&self, failure: &Failure) -> bool {
        matches!(failure, Failure::Bad(_))
    }

    fn error_of(&self, failure: Failure) -> Error {
        match failure {
            Failure::Bad(request) => Error::Bad(request),
            Failure::Broken => Error::Broken,
        }
    }

    fn error_of_refusal(refusal: Refusal) -> Error {
        Error::Refused(refusal)
    }

    fn abandon(&self, (): ()) -> Error {
        *self.0.abandoned_count.lock().unwrap() += 1;
        Error::Late
    }
}

/// Limits that no test reaches.
const LIMITS: Limits = Limits { queue_len_max: 100, group_len_max: 100, write_wait: PATIENCE };

fn start(memory: &Memory, limits: Limits) -> (Queue<Memory>, JoinHandle<()>) {
    Queue::start(memory.clone(), limits, Health::default().pulse("writes", PATIENCE))
}

type Writing = JoinHandle<Result<String, Error>>;

/// Sends these requests, and returns when all of them wait in the queue.
async fn send(queue: &Queue<Memory>, requests: impl IntoIterator<Item = i64>) -> Vec<Writing> {
    let mut writing = Vec::new();
    for request in requests {
        let queue = queue.clone();
        writing.push(tokio::spawn(async move { queue.write(request).await }));
        yield_now().await;
    }
    writing
}

async fn outcomes(writing: Vec<Writing>) -> Vec<Result<String, Error>> {
    let mut outcomes = Vec::new();
    for one in writing {
        outcomes.push(timeout(PATIENCE, one).await.expect("it has an outcome").unwrap());
    }
    outcomes
}

fn wrote(request: i64) -> Result<String, Error> {
    Ok(format!("wrote {request}"))
}

/// Sends the requests while another one is written, so that they are one group. Returns the outcomes, and the attempts to write
/// that group.
async fn write_together(requests: &[i64]) -> (Vec<Result<String, Error>>, Vec<Vec<i64>>) {
    let memory = Memory::gated();
    let (queue, _task) = start(&memory, LIMITS);
    let first = send(&queue, [0]).await;
    memory.wait_for_attempts(1).await;
    let writing = send(&queue, requests.iter().copied()).await;
    memory.0.gate.add_permits(1_000);
    assert_eq!(outcomes(first).await, [wrote(0)]);
    (outcomes(writing).await, memory.attempts().split_off(1))
}

#[tokio::test]
async fn requests_that_wait_are_written_together_in_their_order() {
    let (outcomes, attempts) = write_together(&[1, 2, 3]).await;
    assert_eq!(outcomes, [wrote(1), wrote(2), wrote(3)]);
    assert_eq!(attempts, [[1, 2, 3]]);
}

#[tokio::test]
async fn a_group_has_its_longest_length() {
    let memory = Memory::gated();
    let (queue, _task) = start(&memory, Limits { group_len_max: 2, ..LIMITS });
    let mut writing = send(&queue, [1]).await;
    memory.wait_for_attempts(1).await;
    writing.extend(send(&queue, 2..=6).await);
    memory.0.gate.add_permits(1_000);
    assert!(outcomes(writing).await.iter().all(Result::is_ok));
    assert_eq!(memory.attempts(), [vec![1], vec![2, 3], vec![4, 5], vec![6]]);
}

#[tokio::test]
async fn a_bad_request_is_found_by_halves_and_harms_no_neighbour() {
    let (outcomes, attempts) = write_together(&[1, 2, 3, 4, 5, -6, 7, 8]).await;
    assert_eq!(outcomes, [wrote(1), wrote(2), wrote(3), wrote(4), wrote(5), Err(Error::Bad(-6)), wrote(7), wrote(8)]);
    let expected: [&[i64]; 9] =
        [&[1, 2, 3, 4, 5, -6, 7, 8], &[1, 2, 3, 4], &[5, -6, 7, 8], &[5, -6], &[5], &[-6, 7], &[-6], &[7], &[8]];
    assert_eq!(attempts, expected);
}

#[tokio::test]
async fn many_bad_requests_cost_hardly_more_than_one_transaction_each() {
    let requests: Vec<i64> = (1..=64).map(|request| -request).collect();
    let (outcomes, attempts) = write_together(&requests).await;
    assert_eq!(outcomes, requests.iter().map(|request| Err(Error::Bad(*request))).collect::<Vec<_>>());
    // 64, 32, 16, 8, 4 and 2 are tried once each.
    assert_eq!(attempts.len(), 64 + 6);
}

#[tokio::test]
async fn a_failure_of_the_whole_group_leaves_what_was_written_before() {
    let (outcomes, attempts) = write_together(&[1, 2, -3, BROKEN, 5]).await;
    assert_eq!(outcomes, [wrote(1), wrote(2), Err(Error::Bad(-3)), Err(Error::Broken), Err(Error::Broken)]);
    let expected: [&[i64]; 5] = [&[1, 2, -3, BROKEN, 5], &[1, 2], &[-3, BROKEN, 5], &[-3], &[BROKEN]];
    assert_eq!(attempts, expected);
}

/// The outcomes of both.
async fn outcomes_of(mut first: Vec<Writing>, then: Vec<Writing>) -> Vec<Result<String, Error>> {
    first.extend(then);
    outcomes(first).await
}

#[tokio::test]
async fn a_response_is_sent_while_the_next_group_is_written() {
    let memory = Memory::gated();
    let (queue, _task) = start(&memory, LIMITS);
    let first = send(&queue, [1]).await;
    memory.wait_for_attempts(1).await;
    let second = send(&queue, [2]).await;
    memory.0.gate.add_permits(1);
    memory.wait_for_attempts(2).await;
    assert_eq!(outcomes(first).await, [wrote(1)]);
    assert!(!second[0].is_finished(), "its write has not ended");
    memory.0.gate.add_permits(1);
    assert_eq!(outcomes(second).await, [wrote(2)]);
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let memory = Memory::gated();
    let (queue, _task) = start(&memory, Limits { queue_len_max: 2, ..LIMITS });
    let mut writing = send(&queue, [1]).await;
    memory.wait_for_attempts(1).await;
    writing.extend(send(&queue, [2, 3]).await);
    assert_eq!(queue.write(4).await, Err(Error::Refused(Refusal::Overloaded)));
    memory.0.gate.add_permits(1_000);
    assert_eq!(outcomes(writing).await, [wrote(1), wrote(2), wrote(3)]);
    assert_eq!(memory.attempts(), [vec![1], vec![2, 3]]);
}

#[tokio::test]
async fn the_request_of_a_client_that_left_is_not_written() {
    let memory = Memory::gated();
    let (queue, _task) = start(&memory, LIMITS);
    let first = send(&queue, [1]).await;
    memory.wait_for_attempts(1).await;
    let mut writing = send(&queue, [2, 3]).await;
    let left = writing.remove(0);
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    memory.0.gate.add_permits(1_000);
    assert_eq!(outcomes_of(first, writing).await, [wrote(1), wrote(3)]);
    assert_eq!(memory.attempts(), [[1], [3]]);
}

#[tokio::test]
async fn a_group_of_clients_that_left_is_no_group() {
    let memory = Memory::gated();
    let (queue, _task) = start(&memory, LIMITS);
    let first = send(&queue, [1]).await;
    memory.wait_for_attempts(1).await;
    for left in send(&queue, [2, 3]).await {
        left.abort();
        assert!(left.await.unwrap_err().is_cancelled());
    }
    memory.0.gate.add_permits(1_000);
    assert_eq!(outcomes(first).await, [wrote(1)], "the response does not wait for a next group");
    assert_eq!(outcomes(send(&queue, [4]).await).await, [wrote(4)]);
    assert_eq!(memory.attempts(), [[1], [4]]);
}

#[tokio::test]
async fn a_write_that_does_not_end_is_given_up_with_its_connection() {
    let memory = Memory::open();
    let (queue, _task) = start(&memory, Limits { write_wait: Duration::from_millis(50), ..LIMITS });
    assert_eq!(queue.write(STUCK).await, Err(Error::Late));
    assert_eq!(*memory.0.abandoned_count.lock().unwrap(), 1);
    assert_eq!(queue.write(1).await, wrote(1));
}

#[tokio::test]
async fn all_halves_of_a_group_have_one_deadline() {
    let memory = Memory::gated();
    let (queue, _task) = start(&memory, Limits { write_wait: Duration::from_millis(200), ..LIMITS });
    let first = send(&queue, [0]).await;
    memory.wait_for_attempts(1).await;
    let writing = send(&queue, [1, -2]).await;
    // The first request, the group, and its first half may end; the second half may not.
    memory.0.gate.add_permits(3);
    assert_eq!(outcomes_of(first, writing).await, [wrote(0), wrote(1), Err(Error::Late)]);
    assert_eq!(*memory.0.abandoned_count.lock().unwrap(), 1);
}

#[tokio::test]
async fn without_a_connection_every_request_of_the_group_fails() {
    let memory = Memory::open();
    let (queue, _task) = start(&memory, LIMITS);
    memory.0.connections.forget_permits(1);
    let writing = send(&queue, [1, 2]).await;
    assert_eq!(outcomes(writing).await, [Err(Error::NoConnection), Err(Error::NoConnection)]);
    memory.0.connections.add_permits(1);
    assert_eq!(queue.write(3).await, wrote(3));
    assert_eq!(memory.attempts(), [[3]]);
}

#[tokio::test]
async fn a_destination_that_fails_is_tried_less_and_less_often_and_then_at_once_again() {
    let memory = Memory::open();
    let (queue, _task) = start(&memory, LIMITS);
    let began_at = Instant::now();
    for _ in 0..6 {
        assert_eq!(queue.write(BROKEN).await, Err(Error::Broken));
    }
    // At least half of 100, 200, 400, 500 and 500 ms.
    assert!(began_at.elapsed() >= Duration::from_millis(850), "{:?}", began_at.elapsed());
    let began_at = Instant::now();
    for request in 0..100 {
        assert_eq!(queue.write(request).await, wrote(request));
    }
    assert!(began_at.elapsed() < PATIENCE, "after a success there is no pause: {:?}", began_at.elapsed());
}

#[tokio::test]
async fn after_the_last_queue_is_dropped_what_waits_is_written() {
    let memory = Memory::gated();
    let (queue, task) = start(&memory, LIMITS);
    let mut writing = send(&queue, [1]).await;
    memory.wait_for_attempts(1).await;
    writing.extend(send(&queue, [2, 3]).await);
    drop(queue);
    memory.0.gate.add_permits(1_000);
    assert_eq!(outcomes(writing).await, [wrote(1), wrote(2), wrote(3)]);
    timeout(PATIENCE, task).await.expect("the task ends").unwrap();
}

#[tokio::test]
async fn a_task_that_dies_loses_its_group_and_closes_the_queue() {
    let memory = Memory::open();
    let (queue, task) = start(&memory, LIMITS);
    assert_eq!(queue.write(PANIC).await, Err(Error::Refused(Refusal::Lost)));
    assert!(timeout(PATIENCE, task).await.expect("the task ends").unwrap_err().is_panic());
    assert_eq!(queue.write(1).await, Err(Error::Refused(Refusal::Closed)));
}
