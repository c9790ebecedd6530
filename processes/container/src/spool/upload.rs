//! A request on its way into the spool. It is held piece by piece, and published at once when it is complete.

use anyhow::anyhow;
use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Spool, SpoolError, Spooled};
use crate::envelope::{self, DOCUMENT_LEN_MAX, HEAD_LEN_MAX, Head, Part, PartHead, TRAILER_LEN_MAX};

/// The longest file that is held in memory until its first attempt has ended, in bytes.
const HELD_LEN_MAX: usize = 64 * 1024;

/// A file that is not finished. If it is dropped, or the process is killed, the request was never promised.
pub struct Upload {
    spool: Spool,
    name: String,
    location: Path,
    head: Head,
    head_line: Bytes,
    parts: Vec<Part>,
    hasher: Sha256,
    /// Bytes that are not written yet: at most one piece.
    piece: BytesMut,
    /// The length of the file so far, with the piece.
    len: u64,
    /// `None` until the first piece is full. A file of one piece needs no multipart upload.
    multipart: Option<Box<dyn MultipartUpload>>,
    /// A write failed, or its future was dropped: bytes may be missing.
    is_broken: bool,
}

impl Upload {
    pub(super) fn begin(spool: Spool, head: Head) -> Result<Self, SpoolError> {
        let name = Uuid::new_v4().to_string();
        let head_line = envelope::write_head(spool.id(), &head);
        if head_line.len() > HEAD_LEN_MAX {
            return Err(SpoolError::TooLarge(format!("the head of a request is longer than {HEAD_LEN_MAX} bytes")));
        }
        Ok(Self {
            location: spool.location(&name)?,
            spool,
            name,
            head,
            parts: Vec::new(),
            hasher: Sha256::new(),
            piece: BytesMut::from(&*head_line),
            len: head_line.len() as u64,
            head_line,
            multipart: None,
            is_broken: false,
        })
    }

    /// The name that the file will have.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Begins the next part. The one before it is finished.
    ///
    /// # Errors
    /// [`SpoolError::TooLarge`] if the parts are too many.
    pub async fn begin_part(&mut self, head: PartHead) -> Result<(), SpoolError> {
        self.finish_part();
        self.parts.push(Part { head, at: self.len, len: 0, sha256: hex_len_placeholder() });
        match self.trailer() {
            Ok(_) => Ok(()),
            Err(error) => Err(self.give_up(error).await),
        }
    }

    /// Adds bytes to the part that was begun.
    ///
    /// # Errors
    /// [`SpoolError::Full`], [`SpoolError::Away`], or [`SpoolError::TooLarge`] for the document. Nothing is kept of the upload.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), SpoolError> {
        let part = self.parts.last_mut().expect("begin_part comes first");
        part.len += bytes.len() as u64;
        if part.head.name == self.head.document && part.len > DOCUMENT_LEN_MAX {
            let error = SpoolError::TooLarge(format!("the document is longer than {DOCUMENT_LEN_MAX} bytes"));
            return Err(self.give_up(error).await);
        }
        self.hasher.update(&bytes);
        self.push(&bytes).await
    }

    /// Finishes the file: it is synced, and then has its name. If the future is dropped, the file may be there or not.
    ///
    /// # Errors
    /// As [`Upload::write`]. After [`SpoolError::Away`] the file may be there, if it could not be deleted either.
    pub async fn complete(mut self) -> Result<Spooled, SpoolError> {
        self.finish_part();
        let trailer = match self.trailer() {
            Ok(trailer) => trailer,
            Err(error) => return Err(self.give_up(error).await),
        };
        self.push(&trailer).await?;
        if let Err(error) = self.spool.require_mounted().await {
            return Err(self.give_up(error).await);
        }
        let last = self.piece.split().freeze();
        let held = (self.multipart.is_none() && last.len() <= HELD_LEN_MAX).then(|| last.clone());
        let published = match &mut self.multipart {
            None => self.spool.0.store.put_opts(&self.location, last.into(), PutMode::Create.into()).await,
            Some(multipart) => match multipart.put_part(last.into()).await {
                Ok(()) => multipart.complete().await,
                Err(error) => Err(error),
            },
        };
        match published {
            Ok(_) => Ok(Spooled::new(self.spool, self.name, self.location, self.head, self.parts).holding(held)),
            // Another file has the name, so it must not be deleted.
            Err(error @ object_store::Error::AlreadyExists { .. }) => Err(SpoolError::of(error)),
            Err(error) => {
                self.discard().await?;
                Err(SpoolError::of(error))
            }
        }
    }

    /// Gives the upload up, and deletes what it has written.
    pub async fn abort(mut self) {
        self.abort_multipart().await;
    }

    fn finish_part(&mut self) {
        let hasher = std::mem::take(&mut self.hasher);
        if let Some(part) = self.parts.last_mut() {
            part.sha256 = envelope::hex(hasher);
        }
    }

    /// Trailer and end. The lengths of the parts make it longer until the upload is complete.
    fn trailer(&self) -> Result<Bytes, SpoolError> {
        let trailer = envelope::write_trailer(&self.head_line, &self.parts);
        if trailer.len() > TRAILER_LEN_MAX {
            return Err(SpoolError::TooLarge(format!(
                "the names of the parts are longer than {TRAILER_LEN_MAX} bytes"
            )));
        }
        Ok(trailer)
    }

    async fn push(&mut self, mut bytes: &[u8]) -> Result<(), SpoolError> {
        if self.is_broken {
            return Err(SpoolError::Away(anyhow!("a write of the upload {} has failed before", self.name)));
        }
        self.is_broken = true;
        while !bytes.is_empty() {
            if self.piece.len() >= self.spool.0.piece_len {
                self.write_piece().await?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.spool.0.piece_len - self.piece.len()));
            self.piece.extend_from_slice(now);
            self.len += now.len() as u64;
            bytes = later;
        }
        self.is_broken = false;
        Ok(())
    }

    async fn write_piece(&mut self) -> Result<(), SpoolError> {
        let multipart = match &mut self.multipart {
            Some(multipart) => multipart,
            unbegun => {
                self.spool.require_mounted().await?;
                unbegun.insert(self.spool.0.store.put_multipart(&self.location).await.map_err(SpoolError::of)?)
            }
        };
        if let Err(error) = multipart.put_part(self.piece.split().freeze().into()).await {
            return Err(self.give_up(SpoolError::of(error)).await);
        }
        Ok(())
    }

    /// Ends the upload: nothing more is written, and it cannot be completed.
    async fn give_up(&mut self, error: SpoolError) -> SpoolError {
        self.is_broken = true;
        self.abort_multipart().await;
        error
    }

    /// Only what is not published. Its own failure leaves a temporary file, which is cleared by age.
    async fn abort_multipart(&mut self) {
        if let Some(mut multipart) = self.multipart.take() {
            let _ = multipart.abort().await;
        }
    }

    /// Deletes what a failed completion has left. The client hears of a failure, so the request must not be taken up later.
    async fn discard(&mut self) -> Result<(), SpoolError> {
        self.abort_multipart().await;
        match &self.spool.0.folder {
            Some(folder) => folder.discard(&self.name).await.map_err(SpoolError::Away),
            None => self.spool.delete(&self.name).await,
        }
    }
}

/// As long as any hash: the length of the trailer is known before the hash is.
fn hex_len_placeholder() -> String {
    "0".repeat(64)
}
