//! A proxy to Postgres that strikes at COMMIT: the moment after which a client without a response does not know what was
//! written.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream, UnixStream, tcp};
use tokio::sync::Semaphore;

use crate::begin_proxy::{read_message, socket_of};

/// How the proxy treats the next COMMIT, or the next statement of a name, which commits by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AtCommit {
    /// It reaches Postgres, and so does the response reach the client.
    #[default]
    Pass,
    /// The client is cut off, and so is Postgres: the COMMIT is lost.
    Lose,
    /// Postgres commits, and the client is cut off before the response.
    LoseResponse,
    /// The client is cut off, and the COMMIT reaches Postgres when [`CommitProxy::deliver`] says so.
    Delay,
}

/// A proxy on a port of the loopback interface.
pub struct CommitProxy {
    port: u16,
    shared: Arc<Shared>,
}

/// The simple query that ends a transaction.
const COMMIT: &str = "COMMIT";

struct Shared {
    socket: PathBuf,
    next: Mutex<AtCommit>,
    /// A part of the statement that it strikes at.
    statement: Mutex<&'static str>,
    /// New connections are closed at once.
    is_shut: Mutex<bool>,
    delivered: Semaphore,
}

/// The statements that a connection has prepared, by their names.
type Prepared = HashMap<Vec<u8>, Vec<u8>>;

impl Shared {
    /// Whether the message is, or begins, the statement that is waited for.
    fn is_struck(&self, message: &[u8], prepared: &mut Prepared) -> bool {
        let statement = *self.statement.lock().unwrap();
        let is_waited_for =
            |text: &[u8]| statement != COMMIT && text.windows(statement.len()).any(|part| part == statement.as_bytes());
        let mut texts = message[5..].split(|byte| *byte == 0);
        match message[0] {
            b'Q' => message[5..].starts_with(statement.as_bytes()),
            b'P' => match (texts.next(), texts.next()) {
                (Some([]), Some(text)) => is_waited_for(text),
                (Some(name), Some(text)) => {
                    prepared.insert(name.to_owned(), text.to_owned());
                    false
                }
                _ => false,
            },
            // Its first text is the name of the portal.
            b'B' => texts.nth(1).and_then(|name| prepared.get(name)).is_some_and(|text| is_waited_for(text)),
            _ => false,
        }
    }
}

impl CommitProxy {
    /// Starts a proxy to the server of this URL.
    pub async fn start(postgres_url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            socket: socket_of(postgres_url),
            next: Mutex::default(),
            statement: Mutex::new(COMMIT),
            is_shut: Mutex::new(false),
            delivered: Semaphore::new(0),
        });
        let proxy = Self { port, shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if !*shared.is_shut.lock().unwrap() {
                    tokio::spawn(carry(client, Arc::clone(&shared)));
                }
            }
        });
        proxy
    }

    /// The URL of this database through the proxy.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// Strikes at the next COMMIT.
    pub fn strike(&self, at_commit: AtCommit) {
        self.strike_at(COMMIT, at_commit);
    }

    /// Strikes at the next statement that contains this text and has parameters. Without BEGIN it commits by itself.
    pub fn strike_at(&self, statement: &'static str, at_commit: AtCommit) {
        *self.shared.statement.lock().unwrap() = statement;
        *self.shared.next.lock().unwrap() = at_commit;
    }

    /// Whether the proxy has struck.
    pub fn has_struck(&self) -> bool {
        *self.shared.next.lock().unwrap() == AtCommit::Pass
    }

    /// Lets the delayed COMMIT reach Postgres.
    pub fn deliver(&self) {
        self.shared.delivered.add_permits(1);
    }

    /// Closes new connections at once, or carries them again.
    pub fn shut(&self, is_shut: bool) {
        *self.shared.is_shut.lock().unwrap() = is_shut;
    }
}

/// Carries one connection. It ends when either side closes it, or at a strike.
async fn carry(client: TcpStream, shared: Arc<Shared>) {
    client.set_nodelay(true).unwrap();
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = UnixStream::connect(&shared.socket).await.unwrap().into_split();
    let to_client = Arc::new(tokio::sync::Mutex::new(Some(to_client)));
    let back = tokio::spawn(carry_back(from_server, Arc::clone(&to_client)));
    let Ok(mut message) = read_message(&mut from_client, 0).await else { return back.abort() };
    let mut prepared = Prepared::new();
    loop {
        let strike = if shared.is_struck(&message, &mut prepared) {
            // A statement with parameters is several messages. The last one is Sync.
            let mut kind = message[0];
            while kind != b'Q' && kind != b'S' {
                let Ok(next) = read_message(&mut from_client, 1).await else { return back.abort() };
                kind = next[0];
                message.extend_from_slice(&next);
            }
            std::mem::take(&mut *shared.next.lock().unwrap())
        } else {
            AtCommit::Pass
        };
        if strike != AtCommit::Pass {
            // Both halves are dropped, so the client sees the end of the connection.
            drop(to_client.lock().await.take());
            drop(from_client);
            match strike {
                AtCommit::Lose => return back.abort(),
                AtCommit::Delay => shared.delivered.acquire().await.unwrap().forget(),
                AtCommit::LoseResponse | AtCommit::Pass => {}
            }
            to_server.write_all(&message).await.unwrap();
            // Postgres reads the end of the connection behind the COMMIT. Then the way back ends, too.
            return;
        }
        if to_server.write_all(&message).await.is_err() {
            break;
        }
        let Ok(next) = read_message(&mut from_client, 1).await else { break };
        message = next;
    }
    back.abort();
}

/// Carries responses to the client while there is one, and drops them afterwards: a server that cannot send ends its session.
async fn carry_back(mut from_server: OwnedReadHalf, to_client: Arc<tokio::sync::Mutex<Option<tcp::OwnedWriteHalf>>>) {
    let mut bytes = vec![0; 10_000];
    while let Ok(len @ 1..) = from_server.read(&mut bytes).await {
        if let Some(to_client) = to_client.lock().await.as_mut() {
            let _ = to_client.write_all(&bytes[..len]).await;
        }
    }
}
