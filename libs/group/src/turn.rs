//! The order in which Tokio runs tasks.

/// Lets all other tasks go first: those that are ready, and those whose sockets have become readable meanwhile. Returns at
/// once if there are none.
///
/// Tokio resumes a task that yields only after its worker has run every ready task and has asked the system for events once.
/// Tokio does not promise this order. Without it everything stays correct; groups are smaller, or responses leave later.
///
/// Source: `tokio::task::yield_now`, and the deferred wakers in `tokio/src/runtime/scheduler`.
pub(crate) async fn after_all_other_tasks() {
    tokio::task::yield_now().await;
}
