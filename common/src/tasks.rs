//! The order in which Tokio runs tasks. Users: libs/group, consumer.

/// Lets all other tasks run first: every ready task, and every task whose socket has become readable meanwhile. Returns at
/// once if there are none.
///
/// Tokio resumes a task that yields after its worker has run out of ready tasks and has polled the system for events once.
/// Tokio does not promise this order. Without it everything stays correct, but groups are smaller, or responses leave later.
///
/// Source: the source of `tokio::task::yield_now`, which defers its waker.
pub async fn after_all_other_tasks() {
    tokio::task::yield_now().await;
}
