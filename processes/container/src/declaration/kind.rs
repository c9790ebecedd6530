//! The kinds of destinations, each with its settings and its place.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use url::{Position, Url};

use crate::destination::Destination;

/// How a destination stores, and where.
#[derive(Clone)]
pub enum Kind {
    /// A table in the Postgres of the container. The transaction that gives the verdict writes the row.
    Rows {
        /// The name of the table: lower-case letters, digits and `_`. Quote it in SQL, because it may be a keyword.
        table: String,
    },
    /// A folder with one file per unit and attempt.
    Files {
        /// Its absolute path.
        folder: PathBuf,
    },
    /// A leaderboard in Redis.
    Board {
        /// Where Redis is, with its password.
        redis: redis::Client,
        /// The first part of each key, for example `container`.
        prefix: String,
    },
    /// A server that is told by HTTP.
    Webhook {
        /// Where it is: `http` or `https`, without user and password.
        url: Url,
        /// The secret by which requests are signed.
        secret: Secret,
        /// Whether the server may have a loopback or private address.
        allow_private: bool,
    },
    /// A kind that the program has added to those of the container.
    Own {
        /// The word of the declaration.
        name: &'static str,
        /// Where it stores, without secrets.
        place: String,
        /// The destination.
        destination: Arc<dyn Destination>,
    },
}

impl Kind {
    /// The word of the declaration: `rows`, `files`, `board`, `webhook`, or that of an own kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rows { .. } => "rows",
            Self::Files { .. } => "files",
            Self::Board { .. } => "board",
            Self::Webhook { .. } => "webhook",
            Self::Own { name, .. } => name,
        }
    }

    /// The SHA-256 of the place where the destination stores. Two destinations with the same fingerprint would undo each other's units.
    /// A destination whose fingerprint changes has moved, so an undo would no longer reach what was stored before.
    ///
    /// Passwords, secrets, time-outs and `allow_private` are not part of it: each may change while units are open.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            // Without the length, `ab` and `c` would be the same place as `a` and `bc`.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        };
        add(self.name().as_bytes());
        match self {
            Self::Rows { table } => add(table.as_bytes()),
            Self::Files { folder } => add(folder.as_os_str().as_encoded_bytes()),
            Self::Board { redis, prefix } => {
                let info = redis.get_connection_info();
                add(info.addr().to_string().as_bytes());
                add(&info.redis_settings().db().to_be_bytes());
                add(prefix.as_bytes());
            }
            Self::Webhook { url, .. } => add(url.as_str().as_bytes()),
            Self::Own { place, .. } => add(place.as_bytes()),
        }
        hash.finalize().into()
    }
}

/// The kind and the place, without secrets. A URL is shown without its query, which may hold a token.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Self::Rows { table } => write!(f, "{name} in the table {table}"),
            Self::Files { folder } => write!(f, "{name} in {}", folder.display()),
            Self::Board { redis, prefix } => {
                write!(f, "{name} in Redis at {} under {prefix}", redis.get_connection_info().addr())
            }
            Self::Webhook { url, allow_private, .. } => {
                let private = if *allow_private { ", private addresses allowed" } else { "" };
                write!(f, "{name} at {}{private}", &url[..Position::AfterPath])
            }
            Self::Own { place, .. } => write!(f, "{name} at {place}"),
        }
    }
}

/// As `Display`, because a derived `Debug` would print the password of Redis.
impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The secret of a webhook, as Standard Webhooks writes it: `whsec_` and 24 to 64 bytes in base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Reads a secret. The prefix `whsec_` may be missing.
    ///
    /// # Errors
    /// A sentence that says what to give instead, without the text.
    ///
    /// Source: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        let key = STANDARD.decode(text.strip_prefix("whsec_").unwrap_or(&text));
        if key.is_ok_and(|key| (24..=64).contains(&key.len())) {
            Ok(Self(text))
        } else {
            Err("give whsec_ and 24 to 64 random bytes in base64, as openssl rand -base64 32 prints them".to_owned())
        }
    }

    /// The text, for the code that signs. Never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret")
    }
}
