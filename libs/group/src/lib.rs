//! A group writer: requests that arrive while a transaction is in flight are written together by the next one.
//!
//! Requests wait in a bounded [`Queue`]. One task takes all requests that wait, writes them to a [`Destination`] in one
//! transaction, and sends each response after its rows are durable. A lone request is written at once; the task never
//! waits for a second one. A commit to disk takes as long for a hundred requests as for one, so each request gets cheaper
//! as more of them arrive.
//!
//! ```text
//! write() --queue is full--> Refusal::Overloaded
//! waits   --client leaves--> dropped, never written
//! waits   --next group-----> written with all others that wait
//!            all rows are durable     a response each
//!            one request is bad       half as many are tried next, until only the bad request fails
//!            any other failure        the requests without a response get this error; a pause of 0.5 s at most
//!            the deadline passes      the same, and the connection is given up
//! ```
//!
//! The response to one group is sent while the destination writes the next group: see [`Queue::start`].

mod destination;
mod halves;
mod queue;
mod refusal;

#[cfg(test)]
mod tests;

pub use destination::Destination;
pub use queue::{Limits, Queue};
pub use refusal::Refusal;
