//! A bad network: a TCP port of this machine in front of a server's unix socket, one proxy per process and server.
//!
//! The trouble can be changed while connections are open. The proxy may delay and drop bytes, and never changes them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// The trouble of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No trouble.
    None,
    /// Open connections are closed, and new connections work.
    Cut,
    /// Open connections are closed, and new connections are refused.
    Away,
    /// Every piece of data arrives this much later.
    Slow(Duration),
    /// No byte arrives in either direction, and connections stay open.
    Silent,
    /// Connections close on the server's side only. The process waits for responses.
    HalfOpen,
    /// Connections are closed after this many further bytes, both directions together, even in the middle of a message.
    CutAfter(u64),
    /// The next commit does not arrive.
    CutBeforeCommit,
    /// The next commit arrives, and its response does not.
    CutAfterCommit,
}

/// The address of a server as one process sees it.
pub(crate) struct Proxy {
    /// The port on 127.0.0.1.
    pub port: u16,
    trouble: watch::Sender<Trouble>,
    bytes_left: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens, and forwards to `socket`, which need not exist yet.
    pub async fn start(socket: &Path) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("listening for the proxy")?;
        let port = listener.local_addr().context("reading the proxy's port")?.port();
        let (trouble, seen) = watch::channel(Trouble::None);
        let bytes_left = Arc::new(AtomicU64::new(0));
        tokio::spawn(accept(listener, socket.to_owned(), seen, Arc::clone(&bytes_left)));
        Ok(Self { port, trouble, bytes_left })
    }

    /// Sets the trouble.
    pub fn set(&self, trouble: Trouble) {
        if let Trouble::CutAfter(byte_count) = trouble {
            self.bytes_left.store(byte_count, Ordering::SeqCst);
        }
        self.trouble.send_replace(trouble);
    }
}

async fn accept(listener: TcpListener, socket: PathBuf, trouble: watch::Receiver<Trouble>, bytes_left: Arc<AtomicU64>) {
    // An error of accept concerns one connection.
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let mut trouble = trouble.clone();
        if *trouble.borrow_and_update() == Trouble::Away {
            continue;
        }
        let (socket, bytes_left) = (socket.clone(), Arc::clone(&bytes_left));
        tokio::spawn(async move {
            let Ok(server) = UnixStream::connect(&socket).await else { return };
            carry(client, server, trouble, bytes_left).await;
        });
    }
}

async fn carry(client: TcpStream, server: UnixStream, trouble: watch::Receiver<Trouble>, bytes_left: Arc<AtomicU64>) {
    let _ = client.set_nodelay(true);
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let end = {
        let there = pump(&mut from_client, &mut to_server, trouble.clone(), &bytes_left, true);
        let back = pump(&mut from_server, &mut to_client, trouble.clone(), &bytes_left, false);
        tokio::select! { end = there => end, end = back => end }
    };
    if end == End::HalfOpen {
        drop((from_server, to_server));
        // The process keeps its side open until the trouble ends. Then the proxy closes it.
        let mut trouble = trouble;
        let _ = trouble.wait_for(|trouble| *trouble != Trouble::HalfOpen).await;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed,
    HalfOpen,
}

async fn pump(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut trouble: watch::Receiver<Trouble>,
    bytes_left: &AtomicU64,
    from_client: bool,
) -> End {
    let mut buffer = vec![0; 16 * 1024];
    let mut commits = Commits::default();
    // A connection that is newer than `Cut` works.
    let mut changed = false;
    loop {
        let now = *trouble.borrow_and_update();
        match now {
            Trouble::Away => return End::Closed,
            Trouble::Cut if changed => return End::Closed,
            Trouble::HalfOpen => return End::HalfOpen,
            Trouble::Silent => {
                if trouble.changed().await.is_err() {
                    return End::Closed;
                }
                changed = true;
                continue;
            }
            _ => {}
        }
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            alive = trouble.changed() => {
                changed = true;
                if alive.is_err() { return End::Closed }
                continue;
            }
        };
        let Ok(len @ 1..) = read else { return End::Closed };
        let bytes = &buffer[..len];
        let has_commit = from_client && commits.are_in(bytes);
        // The trouble may have changed during the read.
        let now = *trouble.borrow();
        let len = match now {
            Trouble::Slow(delay) => {
                tokio::time::sleep(delay).await;
                len
            }
            Trouble::CutBeforeCommit if has_commit => return End::Closed,
            Trouble::CutAfter(_) => {
                let before = bytes_left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(len as u64)));
                len.min(before.unwrap_or(0) as usize)
            }
            _ => len,
        };
        if to.write_all(&bytes[..len]).await.is_err() {
            return End::Closed;
        }
        let cut_short = len < bytes.len();
        if cut_short || has_commit && *trouble.borrow() == Trouble::CutAfterCommit {
            return End::Closed;
        }
    }
}

/// Statements that commit by themselves: those by which a consumer commits a page, and a container accepts a unit.
const COMMITTING: [&[u8]; 2] = [b"\0-- consumer::checkpoint::advance\n", b"\0-- container::accept\n"];

/// Finds commits in the bytes that a client sends to Postgres: COMMIT itself, and outside of a transaction the statements that
/// commit by themselves.
#[derive(Default)]
struct Commits {
    /// The names of these prepared statements on this connection, between two NULs, as they appear in the message that runs them.
    prepared: Vec<Vec<u8>>,
    is_in_transaction: bool,
}

impl Commits {
    fn are_in(&mut self, bytes: &[u8]) -> bool {
        // The message that prepares has P, a length, the name, NUL and the text. tokio-postgres makes the names: s and a number.
        // A statement without a name is run at once.
        let mut is_run = false;
        if let Some(at) = COMMITTING.iter().find_map(|statement| find(bytes, statement)) {
            let digit_count = bytes[..at].iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
            match &bytes[at.saturating_sub(digit_count + 1)..at] {
                name @ [b's', _, ..] => self.prepared.push([b"\0", name, b"\0"].concat()),
                _ => is_run = true,
            }
        }
        // BEGIN, COMMIT and ROLLBACK come in messages of their own, because the client waits for each response.
        let is_end = find(bytes, b"COMMIT\0").is_some();
        self.is_in_transaction |= find(bytes, b"BEGIN\0").is_some();
        self.is_in_transaction &= !is_end && find(bytes, b"ROLLBACK\0").is_none();
        is_run |= self.prepared.iter().any(|name| find(bytes, name).is_some());
        is_end || is_run && !self.is_in_transaction
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_commit_are_found() {
        let mut commits = Commits::default();
        assert!(commits.are_in(b"Q\0\0\0\x0bCOMMIT\0"));
        assert!(!commits.are_in(b"B\0\0\0\x0c\0s7\0\0\0"), "some other statement");
        assert!(!commits.are_in(b"P\0\0\x05\x39s7\0-- consumer::checkpoint::advance\nWITH\0\0\0"));
        assert!(!commits.are_in(b"D\0\0\0\x08Ss7\0"), "described, not run");
        assert!(!commits.are_in(b"B\0\0\0\x0c\0s71\0\0\0"));
        assert!(commits.are_in(b"B\0\0\0\x0c\0s7\0\0\0"));
        assert!(!commits.are_in(b"P\0\0\x05\x39s9\0-- consumer::checkpoint::advance\nWITH other\0\0\0"));
        assert!(commits.are_in(b"B\0\0\0\x0c\0s9\0\0\0"));
        assert!(commits.are_in(b"B\0\0\0\x0c\0s7\0\0\0"), "an older statement is still known");
        assert!(!commits.are_in(b"Q\0\0\0\x0aBEGIN\0"));
        assert!(!commits.are_in(b"B\0\0\0\x0c\0s7\0\0\0"), "COMMIT is still to come");
        assert!(commits.are_in(b"Q\0\0\0\x0bCOMMIT\0"));
        assert!(commits.are_in(b"B\0\0\0\x0c\0s7\0\0\0"), "the transaction is over");
        assert!(!commits.are_in(b"P\0\0\x05\x39s4\0-- container::accept\nWITH unit\0\0\0"));
        assert!(commits.are_in(b"B\0\0\0\x0c\0s4\0\0\0"));
        let unnamed = b"P\0\0\x05\x39\0-- container::accept\nWITH unit\0\0\0B\0\0\0\x0c\0\0\0\0";
        assert!(commits.are_in(unnamed), "without a name");
        assert!(!commits.are_in(b"B\0\0\0\x0c\x39\0\0\0"), "and it was no name");
    }
}
