//! A finished file of the spool, and its parts. They are read by ranges: never more than a piece is held.

use std::ops::Range;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStoreExt};
use sha2::{Digest, Sha256};

use super::{Spool, SpoolError};
use crate::envelope::{self, END_LEN, HEAD_LEN_MAX, Head, Part};

/// The bytes that are read first, from the end of the file. They contain most files of JSON, and all usual trailers.
const TAIL_LEN: u64 = 16 * 1024;

/// A finished file.
#[derive(Debug, Clone)]
pub struct Spooled {
    /// Its name.
    pub name: String,
    /// The request without its body.
    pub head: Head,
    /// The parts of the body, as they arrived.
    pub parts: Vec<Part>,
    /// The hash of names, types and contents of the parts.
    pub hash: [u8; 32],
    spool: Spool,
    location: Path,
    /// The whole file, if it is short and was just written.
    held: Option<Bytes>,
}

impl Spooled {
    pub(super) fn new(spool: Spool, name: String, location: Path, head: Head, parts: Vec<Part>) -> Self {
        Self { hash: envelope::content_hash(&parts), name, head, parts, spool, location, held: None }
    }

    /// As `self`, which need not be read from the store.
    pub(super) fn holding(self, held: Option<Bytes>) -> Self {
        Self { held, ..self }
    }

    /// The document.
    ///
    /// # Errors
    /// As [`Spool::open_file`].
    pub async fn document(&self) -> Result<Bytes, SpoolError> {
        let missing = || SpoolError::damaged(&self.name, format!("it has no part {}", self.head.document));
        let mut chunks = self.part(&self.head.document).ok_or_else(missing)?;
        let mut document = Vec::new();
        while let Some(chunk) = chunks.try_next().await? {
            document.extend_from_slice(&chunk);
        }
        Ok(document.into())
    }

    /// The content of the first part of this name. The last item is an error if the content is not as it was written: so use
    /// nothing of it before the end.
    pub fn part(&self, name: &str) -> Option<BoxStream<'static, Result<Bytes, SpoolError>>> {
        let part = self.parts.iter().find(|part| part.head.name == name)?.clone();
        if let Some(held) = &self.held {
            let content = held.slice(part.at as usize..(part.at + part.len) as usize);
            return Some(stream::once(async { Ok(content) }).boxed());
        }
        let (spool, location, file) = (self.spool.clone(), self.location.clone(), self.name.clone());
        let chunks = async move {
            if part.len == 0 {
                return Ok(stream::empty().boxed());
            }
            let range = GetRange::Bounded(part.at..part.at + part.len);
            let options = GetOptions { range: Some(range), ..GetOptions::default() };
            let found = match spool.0.store.get_opts(&location, options).await {
                Ok(found) => found,
                Err(error) => return Err(read_error(&spool, error).await),
            };
            Ok(verify(file, part, found.into_stream()))
        };
        Some(stream::once(chunks).try_flatten().boxed())
    }
}

/// Passes the chunks on, and ends with an error if they are not the part.
fn verify(
    file: String,
    part: Part,
    chunks: BoxStream<'static, object_store::Result<Bytes>>,
) -> BoxStream<'static, Result<Bytes, SpoolError>> {
    let start = (chunks, Sha256::new(), 0);
    let next = move |(mut chunks, mut hasher, len): (BoxStream<'static, _>, Sha256, u64)| {
        let damaged =
            SpoolError::damaged(&file, format!("the content of its part {} differs from its hash", part.head.name));
        let (part_len, sha256) = (part.len, part.sha256.clone());
        async move {
            let chunk: Option<Bytes> = chunks.try_next().await.map_err(SpoolError::of)?;
            // A file that was cut while it is read gives empty chunks, without an end.
            if let Some(chunk) = chunk.filter(|chunk| !chunk.is_empty()) {
                hasher.update(&chunk);
                let len = len + chunk.len() as u64;
                return Ok(Some((chunk, (chunks, hasher, len))));
            }
            if len != part_len || envelope::hex(hasher) != sha256 {
                return Err(damaged);
            }
            Ok(None)
        }
    };
    stream::try_unfold(start, next).boxed()
}

/// Opens a file: its end, then its trailer and its head if they are not in the same bytes.
pub(super) async fn open(spool: &Spool, name: &str) -> Result<Spooled, SpoolError> {
    let location = spool.location(name)?;
    let damaged = |reason: String| SpoolError::damaged(name, reason);
    let len = match spool.0.store.head(&location).await {
        Ok(found) => found.size,
        Err(error) => return Err(read_error(spool, error).await),
    };
    if len < END_LEN as u64 {
        return Err(damaged(format!("its {len} bytes are too few: it is cut or foreign")));
    }
    let mut tail = read_range(spool, &location, len.saturating_sub(TAIL_LEN)..len).await?;
    let trailer_len = envelope::trailer_len(&tail[tail.len() - END_LEN..]).map_err(damaged)?;
    let end_len = (trailer_len + END_LEN) as u64;
    if end_len > len {
        return Err(damaged(format!("it is cut: its trailer alone has {trailer_len} bytes, and it has {len}")));
    }
    if end_len > tail.len() as u64 {
        tail = read_range(spool, &location, len - end_len..len).await?;
    }
    let start = if tail.len() as u64 == len {
        tail.clone()
    } else {
        read_range(spool, &location, 0..len.min(HEAD_LEN_MAX as u64)).await?
    };
    let tail = tail.slice(tail.len() - trailer_len - END_LEN..);
    let (head, parts) = envelope::read(spool.id(), &start, &tail, len).map_err(damaged)?;
    Ok(Spooled::new(spool.clone(), name.to_owned(), location, head, parts))
}

async fn read_range(spool: &Spool, location: &Path, range: Range<u64>) -> Result<Bytes, SpoolError> {
    match spool.0.store.get_range(location, range).await {
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(read_error(spool, error).await),
    }
}

/// A missing file is unknown, unless the whole folder is missing.
async fn read_error(spool: &Spool, error: object_store::Error) -> SpoolError {
    if !matches!(error, object_store::Error::NotFound { .. }) {
        return SpoolError::of(error);
    }
    spool.require_mounted().await.err().unwrap_or(SpoolError::Unknown)
}
