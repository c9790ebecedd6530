//! A client's socket whose reads and writes time out. hyper has a single time-out for a header and for the idle time before
//! it. This socket times the header by itself, and it also closes the connection of a client that does not read its response.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::limits::Limits;

/// Counts the beginnings and ends of requests. The number is even while the next request is awaited, and odd while a request
/// is being handled.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exchanges(Arc<AtomicU32>);

impl Exchanges {
    /// A request begins; it ends when the guard is dropped.
    pub fn begin(&self) -> impl Drop + use<> {
        self.0.fetch_add(1, Ordering::AcqRel);
        Exchange(self.clone())
    }

    fn now(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

struct Exchange(Exchanges);

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// A socket. Its reads and writes fail when the client is too slow.
#[derive(Debug)]
pub(crate) struct Watched {
    stream: TcpStream,
    exchanges: Exchanges,
    header: Stopwatch,
    response: Stopwatch,
}

impl Watched {
    /// Watches `stream`. The server marks the begin and the end of each request in `exchanges`.
    pub fn new(stream: TcpStream, exchanges: Exchanges, limits: &Limits) -> Self {
        let mut header = Stopwatch::new(limits.header_wait);
        // On a new connection, the time for the header runs from the start: a client that connects has a request to send.
        header.start(exchanges.now());
        Self { stream, exchanges, header, response: Stopwatch::new(limits.response_wait) }
    }

    fn watch_write(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            return written;
        }
        let exchange = self.exchanges.now();
        self.response.start(exchange);
        self.response.check(exchange, cx).map(Err)
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let exchange = this.exchanges.now();
        let filled_before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_pending() {
            return this.header.check(exchange, cx).map(Err);
        }
        // These bytes belong to a header, unless a request is being handled: its body has a time-out of its own.
        if exchange.is_multiple_of(2) && buf.filled().len() > filled_before {
            this.header.start(exchange);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.watch_write(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.watch_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // hyper flushes after the system has taken all that hyper has buffered. A further part of a streamed response is
        // timed anew.
        this.response.stop();
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Times one wait per exchange, from its first start. Further starts in the same exchange do not prolong the wait: an attacker could
/// send a single byte now and then.
#[derive(Debug)]
struct Stopwatch {
    wait: Duration,
    started_in: Option<u32>,
    until: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Stopwatch {
    fn new(wait: Duration) -> Self {
        let until = Instant::now();
        Self { wait, started_in: None, until, sleep: Box::pin(tokio::time::sleep_until(until)) }
    }

    fn start(&mut self, exchange: u32) {
        if self.started_in != Some(exchange) {
            self.started_in = Some(exchange);
            self.until = Instant::now() + self.wait;
        }
    }

    /// Forgets the wait that was started.
    fn stop(&mut self) {
        self.started_in = None;
    }

    /// Ready with an error when the wait that was started in this exchange is too long. Otherwise the task is woken at that time.
    fn check(&mut self, exchange: u32, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.started_in != Some(exchange) {
            return Poll::Pending;
        }
        // The timer is set only here, because most headers arrive in one piece and need no timer.
        if self.sleep.deadline() != self.until {
            self.sleep.as_mut().reset(self.until);
        }
        self.sleep.as_mut().poll(cx).map(|()| io::Error::from(io::ErrorKind::TimedOut))
    }
}
