//! A connection to Redis for the log's hot path: it carries whole pages as bytes. Users: streamer, consumer, dashboard,
//! operator, tests.
//!
//! Other code uses the redis crate, which is more convenient. It allocates a value for every string, and for a page of
//! entries that takes longer than folding them.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use redis::{Client, ConnectionAddr};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::redis::{CLUSTER_REPLY_WAIT, CONNECT_WAIT, PEER_WAIT, REPLY_WAIT, ensure_version, is_cluster};
use crate::resp::{Commands, Element, Elements, Scan};
use connect::tls;

/// Room for one read: a page of a thousand entries takes about 150 KB.
const INPUT_LEN: usize = 256 * 1024;

trait Socket: AsyncRead + AsyncWrite + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Send + Sync> Socket for S {}

/// A connection. After an error or a timeout it is of no more use: a late reply would be taken for the reply to the next
/// command.
pub struct Wire {
    socket: Pin<Box<dyn Socket>>,
    input: BytesMut,
    reply_wait: Duration,
    is_cluster: bool,
}

impl Wire {
    /// Connects. Every reply must arrive within 5 s, from a node of a Redis Cluster within 2 s, plus `block` for commands that
    /// block on the server.
    ///
    /// # Errors
    /// Redis is away, refuses the login, or is older than 7.0: back off and try again.
    pub async fn connect(client: &Client, block: Duration) -> Result<Self> {
        timeout(CONNECT_WAIT, Self::open(client, block))
            .await
            .unwrap_or_else(|_| bail!("no answer within {CONNECT_WAIT:?}"))
            .context("connecting to Redis")
            .map_err(tls::explain)
    }

    async fn open(client: &Client, block: Duration) -> Result<Self> {
        let socket = open_socket(client.get_connection_info().addr()).await?;
        let mut wire =
            Self { socket, input: BytesMut::with_capacity(INPUT_LEN), reply_wait: REPLY_WAIT, is_cluster: false };
        let settings = client.get_connection_info().redis_settings();
        let mut greeting = Commands::default();
        match (settings.username(), settings.password()) {
            (Some(username), Some(password)) => greeting.add(&["AUTH", username, password]),
            (None, Some(password)) => greeting.add(&["AUTH", password]),
            (_, None) => &mut greeting,
        };
        if settings.db() != 0 {
            greeting.add(&["SELECT", &settings.db().to_string()]);
        }
        greeting.add(&["INFO", "server"]);
        wire.send(&greeting).await?;
        let replies = wire.read(greeting.count()).await?;
        for element in Elements::of(&replies) {
            match element {
                Element::Error(line) if line.starts_with(b"WRONGPASS") => bail!("Password authentication failed"),
                Element::Error(line) => bail!("redis refuses: {}", String::from_utf8_lossy(line)),
                Element::Bulk(info) => {
                    let info = String::from_utf8_lossy(info);
                    ensure_version(&info)?;
                    wire.is_cluster = is_cluster(&info);
                }
                _ => {}
            }
        }
        wire.reply_wait = block + if wire.is_cluster { CLUSTER_REPLY_WAIT } else { REPLY_WAIT };
        Ok(wire)
    }

    /// Whether the server is a node of a Redis Cluster.
    pub fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    /// Sends commands. The caller reads their replies before it sends more, or keeps count of the open ones.
    ///
    /// # Errors
    /// The connection is lost, or Redis does not read.
    pub async fn send(&mut self, commands: &Commands) -> Result<()> {
        let sent = async {
            self.socket.write_all(commands.bytes()).await?;
            // TLS buffers the last bytes until it is flushed.
            self.socket.flush().await
        };
        timeout(self.reply_wait, sent).await.context("redis does not read")?.context("sending to redis")
    }

    /// Reads `reply_count` whole replies, for [`Elements`]. If the future is dropped nothing is lost: the next call goes on.
    ///
    /// # Errors
    /// The connection is lost, the replies did not come in time, or this is not Redis.
    pub async fn read(&mut self, reply_count: usize) -> Result<Bytes> {
        timeout(self.reply_wait, self.read_whole(reply_count)).await.context("redis does not answer")?
    }

    async fn read_whole(&mut self, reply_count: usize) -> Result<Bytes> {
        let mut scan = Scan::of(reply_count);
        loop {
            if let Some(len) = scan.advance(&self.input)? {
                return Ok(self.input.split_to(len).freeze());
            }
            // Reuses the memory of earlier replies, if their `Bytes` are dropped.
            self.input.reserve(INPUT_LEN / 2);
            let read_len = self.socket.read_buf(&mut self.input).await.context("reading from redis")?;
            ensure!(read_len > 0, io::Error::new(io::ErrorKind::UnexpectedEof, "redis closed the connection"));
        }
    }
}

async fn open_socket(address: &ConnectionAddr) -> Result<Pin<Box<dyn Socket>>> {
    Ok(match address {
        ConnectionAddr::Unix(path) => Box::pin(UnixStream::connect(path).await?),
        ConnectionAddr::Tcp(host, port) => Box::pin(open_tcp(host, *port).await?),
        ConnectionAddr::TcpTls { insecure: true, .. } => {
            bail!("Cannot create insecure client: take #insecure out of the URL")
        }
        ConnectionAddr::TcpTls { host, port, .. } => {
            let name = host.clone().try_into().context("the host's name cannot be in a certificate")?;
            Box::pin(tls::connector()?.connect(name, open_tcp(host, *port).await?).await?)
        }
        _ => bail!("this kind of address is not supported"),
    })
}

/// A socket that sends at once, and notices a dead peer.
async fn open_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let socket = TcpStream::connect((host, port)).await?;
    socket.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&socket).set_tcp_user_timeout(Some(PEER_WAIT))?;
    Ok(socket)
}
