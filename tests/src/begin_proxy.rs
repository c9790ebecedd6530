//! A proxy to Postgres that breaks transactions at their beginning, and watches whether a client sends anything behind a BEGIN
//! before it is answered. Behind a BEGIN that failed, each such statement would take effect by itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_postgres::config::Host;

/// How long a BEGIN is held back. A client that does not wait for the answer has sent the next statement by then.
const HELD: Duration = Duration::from_millis(20);

/// The first of so many BEGINs of each program is broken.
const BROKEN_EVERY: usize = 5;

/// The BEGINs of one program, which the proxy knows by its `application_name`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Begins {
    /// BEGINs in all.
    pub count: usize,
    /// BEGINs that the proxy has turned into statements that fail.
    pub broken_count: usize,
    /// BEGINs after which the program sent another message before Postgres could answer.
    pub followed_count: usize,
}

/// A proxy on a port of the loopback interface.
pub struct BeginProxy {
    port: u16,
    seen: Arc<Mutex<BTreeMap<String, Begins>>>,
}

impl BeginProxy {
    /// Starts a proxy to the server of this URL.
    pub async fn start(postgres_url: &str) -> Self {
        let socket = socket_of(postgres_url);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self { port: listener.local_addr().unwrap().port(), seen: Arc::default() };
        let seen = Arc::clone(&proxy.seen);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, socket.clone(), Arc::clone(&seen)));
            }
        });
        proxy
    }

    /// The URL of this database through the proxy.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// The BEGINs of each program so far.
    pub fn seen(&self) -> BTreeMap<String, Begins> {
        self.seen.lock().unwrap().clone()
    }
}

/// The socket of the server of this URL.
pub(crate) fn socket_of(postgres_url: &str) -> PathBuf {
    let postgres: tokio_postgres::Config = postgres_url.parse().unwrap();
    let Host::Unix(folder) = &postgres.get_hosts()[0] else { panic!("not a unix socket: {postgres_url}") };
    folder.join(format!(".s.PGSQL.{}", postgres.get_ports().first().copied().unwrap_or(5432)))
}

/// Carries one connection. It ends when either side closes it.
async fn carry(client: TcpStream, socket: PathBuf, seen: Arc<Mutex<BTreeMap<String, Begins>>>) {
    client.set_nodelay(true).unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = UnixStream::connect(socket).await.unwrap().into_split();
    let back = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let Ok(startup) = read_message(&mut from_client, 0).await else { return back.abort() };
    let program = program_of(&startup);
    let mut next = startup;
    while to_server.write_all(&next).await.is_ok() {
        let Ok(message) = read_message(&mut from_client, 1).await else { break };
        next = message;
        if !is_begin(&next) {
            continue;
        }
        let peeked = tokio::time::timeout(HELD, from_client.peek(&mut [0])).await;
        let is_followed = matches!(peeked, Ok(Ok(1..)));
        let mut seen = seen.lock().unwrap();
        let begins = seen.entry(program.clone()).or_default();
        begins.followed_count += usize::from(is_followed);
        if begins.count.is_multiple_of(BROKEN_EVERY) {
            begins.broken_count += 1;
            // `?EGIN` is no statement.
            next[5] = b'?';
        }
        begins.count += 1;
    }
    back.abort();
}

/// The next message: `prefix_len` bytes (the type), the length, the body.
pub(crate) async fn read_message(
    from: &mut (impl AsyncReadExt + Unpin),
    prefix_len: usize,
) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; prefix_len + 4];
    from.read_exact(&mut message).await?;
    let len = u32::from_be_bytes(message[prefix_len..].try_into().expect("four bytes")) as usize;
    message.resize(prefix_len + len, 0);
    from.read_exact(&mut message[prefix_len + 4..]).await?;
    Ok(message)
}

/// Whether a message is a simple query that begins a transaction.
fn is_begin(message: &[u8]) -> bool {
    message[0] == b'Q' && [&b"BEGIN"[..], b"START TRANSACTION"].iter().any(|begin| message[5..].starts_with(begin))
}

/// The parameter `application_name` of a startup message.
fn program_of(startup: &[u8]) -> String {
    let parameters: Vec<&[u8]> = startup[8..].split(|byte| *byte == 0).collect();
    let named = parameters.chunks(2).find(|pair| pair[0] == b"application_name");
    named.map(|pair| String::from_utf8_lossy(pair[1]).into_owned()).unwrap_or_default()
}
