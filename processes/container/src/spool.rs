//! The spool: each request is a file there, complete and synced, before it is promised (C1). Format: `envelope.rs`.
//!
//! It is a folder or a bucket, behind the crate `object_store` 0.14. These facts about it decide the code here:
//!
//! - In a folder, an upload writes `<name>#1` first. `with_fsync(true)` syncs that file, publishes it under its name, and syncs the
//!   folder. So a file under a finished name is complete. A finished name without a trailer means damage, and the file stays.
//! - `put` with `PutMode::Create` publishes by a hard link and is exclusive, as it is in S3 (`If-None-Match`). The completion of
//!   a multipart upload is a rename, which replaces. Names are therefore random UUIDs, and each upload makes a new one.
//! - A killed upload leaves `<name>#1`. `list` hides such names and `delete` refuses them, so [`Spool::clear_unfinished`] reads the
//!   folder itself. S3 does not show its unfinished uploads either: give the bucket a lifecycle rule
//!   `AbortIncompleteMultipartUpload`.
//! - A failed completion leaves `<name>#1`, or even the published name if only the sync of the folder failed.
//!   [`Upload::complete`] deletes both.
//! - A missing folder is made again. After an unmount, requests would be kept on the disk below the mount point. So the id file is
//!   compared (device and inode) before an upload writes anything, before it is published, and before a missing file counts as
//!   gone.
//! - `delete` does not sync the folder. [`Spool::sync`] does.
//! - A full disk is an `io::Error` deep in the chain: `StorageFull` or `QuotaExceeded`.
//! - S3 takes pieces from 5 MiB on, except for the last. So an upload holds up to 5 MiB of memory there, and 64 KiB in a folder.
//!   A request that fits into one piece is one `PUT`.

mod folder;
mod place;
mod s3;
mod spooled;
#[cfg(test)]
mod tests;
mod trial;
mod upload;

use std::error::Error;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use common::stay_down::StayDown;
use futures_util::{Stream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::envelope::Head;
use folder::Folder;
pub use place::SpoolPlace;
pub use spooled::Spooled;
pub use upload::Upload;

/// The object with the id of the spool.
const ID: &str = "spool-id";

/// The folder with the files of requests.
const FILES: &str = "files";

/// Why the spool did not do it.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// No space is left, and nothing is kept of the upload. It may succeed when other files are gone.
    #[error("the spool has no space left")]
    Full,
    /// The folder or the bucket does not answer. Unknown whether it was done.
    #[error("the spool is away")]
    Away(#[source] anyhow::Error),
    /// The file is not as it was written, or another program wrote it. It stays: a person looks after it.
    #[error("the file {name} of the spool is refused: {reason}")]
    Damaged {
        /// The name of the file.
        name: String,
        /// The part of the file that is wrong.
        reason: String,
    },
    /// The request does not fit into the format.
    #[error("{0}")]
    TooLarge(String),
    /// The spool has no file of this name.
    #[error("the spool has no file of this name")]
    Unknown,
}

impl SpoolError {
    /// An error of the store.
    fn of(error: object_store::Error) -> Self {
        let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>()
                && matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
            {
                return Self::Full;
            }
            cause = error.source();
        }
        Self::Away(error.into())
    }

    /// A file that is refused.
    fn damaged(name: &str, reason: impl Into<String>) -> Self {
        Self::Damaged { name: name.to_owned(), reason: reason.into() }
    }
}

/// A finished file. Whether it is whole, [`Spool::open_file`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name of the file.
    pub name: String,
    /// Its length, in bytes.
    pub len: u64,
    /// The time since it was finished. 0 if the clock was put back since.
    pub age: Duration,
}

/// A folder or a bucket with one file per request. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn ObjectStore>,
    files: Path,
    /// `None`: it is a bucket.
    folder: Option<Folder>,
    /// The length of a piece of an upload, in bytes.
    piece_len: usize,
    id: Uuid,
    is_new: bool,
    place: String,
}

/// The object [`ID`], as it is written.
#[derive(Serialize, Deserialize)]
struct Id {
    spool_id: Uuid,
}

impl Spool {
    /// Opens the spool. A missing folder is made, and a new spool gets an id.
    ///
    /// # Errors
    /// The place is away: try again later. With [`StayDown`] a person has to act first: the place has files and no id, because it
    /// is another folder or the id was deleted; the id is damaged; or no bucket can have this name.
    pub async fn open(place: &SpoolPlace) -> Result<Self> {
        let (store, prefix) = place.store()?;
        let id_at = prefix.clone().join(ID);
        let mut known = read_id(&*store, &id_at).await?;
        if known.is_none()
            && let Some(found) = place.find_anything(&*store, &prefix).await?
        {
            // A second process may just have begun: it makes the id before any other file.
            known = read_id(&*store, &id_at).await?;
            if known.is_none() {
                return Err(StayDown(anyhow!(
                    "the spool {place} has no file {ID}, but it contains {found}: choose an empty folder or prefix for the spool, \
                     or restore its {ID}"
                ))
                .into());
            }
        }
        let (id, is_new) = match known {
            Some(id) => (id, false),
            None => make_id(&*store, &id_at).await.with_context(|| format!("make the id of the spool {place}"))?,
        };
        let folder = place.folder().await?;
        let place_name = folder.as_ref().map_or_else(|| place.to_string(), Folder::name);
        let inner = Inner {
            store,
            files: prefix.join(FILES),
            folder,
            piece_len: place.piece_len(),
            id,
            is_new,
            place: place_name,
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Its id, which stays.
    pub fn id(&self) -> Uuid {
        self.0.id
    }

    /// Its place, for people: a host and a folder, or a bucket.
    pub fn place(&self) -> String {
        self.0.place.clone()
    }

    /// Whether [`Spool::open`] has just made its id. If a spool of this place is known, its disk may not be mounted.
    pub fn is_new(&self) -> bool {
        self.0.is_new
    }

    /// Begins a file under a new random name.
    ///
    /// # Errors
    /// [`SpoolError::TooLarge`] if the head is too long.
    pub fn begin(&self, head: Head) -> Result<Upload, SpoolError> {
        Upload::begin(self.clone(), head)
    }

    /// Reads head and trailer of a file.
    ///
    /// # Errors
    /// [`SpoolError::Unknown`] if it is gone, [`SpoolError::Damaged`] if it is not as it was written.
    pub async fn open_file(&self, name: &str) -> Result<Spooled, SpoolError> {
        spooled::open(self, name).await
    }

    /// Reads a file up to its document.
    ///
    /// # Errors
    /// As [`Spool::open_file`].
    pub async fn read(&self, name: &str) -> Result<(Spooled, Bytes), SpoolError> {
        let spooled = self.open_file(name).await?;
        let document = spooled.document().await?;
        Ok((spooled, document))
    }

    /// Deletes a file. Success also if it is gone already. A power failure may bring it back until [`Spool::sync`].
    ///
    /// # Errors
    /// [`SpoolError::Away`]: try again later.
    pub async fn delete(&self, name: &str) -> Result<(), SpoolError> {
        match self.0.store.delete(&self.location(name)?).await {
            Err(object_store::Error::NotFound { .. }) => self.require_mounted().await,
            result => result.map_err(SpoolError::of),
        }
    }

    /// Makes all deletes durable that have returned.
    ///
    /// # Errors
    /// [`SpoolError::Away`]: they may not be durable.
    pub async fn sync(&self) -> Result<(), SpoolError> {
        match &self.0.folder {
            Some(folder) => folder.sync().await.map_err(SpoolError::Away),
            None => Ok(()),
        }
    }

    /// Finished files, in no order.
    pub fn list(&self) -> impl Stream<Item = Result<Listed, SpoolError>> + Send + use<> {
        let spool = self.clone();
        let files = async move {
            spool.require_mounted().await?;
            let files = spool.0.files.clone();
            Ok(spool.0.store.list(Some(&files)).map(move |file| {
                let file = file.map_err(SpoolError::of)?;
                let name =
                    file.location.as_ref().strip_prefix(files.as_ref()).unwrap_or_default().trim_start_matches('/');
                let age = SystemTime::now().duration_since(file.last_modified.into()).unwrap_or_default();
                Ok(Listed { name: name.to_owned(), len: file.size, age })
            }))
        };
        futures_util::stream::once(files).try_flatten()
    }

    /// Deletes what killed uploads have left in the folder, if it was last written longer ago. Returns the number of files. For a
    /// bucket this is 0: a lifecycle rule clears it. Choose a time that is longer than any pause of an upload: an upload whose
    /// temporary file is deleted fails with [`SpoolError::Away`] when it is completed.
    ///
    /// # Errors
    /// [`SpoolError::Away`]: some may be left.
    pub async fn clear_unfinished(&self, older_than: Duration) -> Result<usize, SpoolError> {
        self.require_mounted().await?;
        match &self.0.folder {
            Some(folder) => folder.clear_unfinished(older_than).await.map_err(SpoolError::Away),
            None => Ok(0),
        }
    }

    async fn require_mounted(&self) -> Result<(), SpoolError> {
        match &self.0.folder {
            Some(folder) => folder.require_mounted().await.map_err(SpoolError::Away),
            None => Ok(()),
        }
    }

    /// The location of a file. Names of another form would lead out of the folder.
    fn location(&self, name: &str) -> Result<Path, SpoolError> {
        match Uuid::try_parse(name) {
            Ok(id) if id.to_string() == name => Ok(self.0.files.clone().join(name)),
            _ => Err(SpoolError::damaged(name, "its name is not one that the spool gives")),
        }
    }
}

/// The id of a spool. `None`: it has none.
async fn read_id(store: &dyn ObjectStore, at: &Path) -> Result<Option<Uuid>> {
    let bytes = match store.get(at).await {
        Ok(found) => found.bytes().await,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => Err(error),
    };
    let bytes = bytes.with_context(|| format!("read the id of the spool at {store}"))?;
    let id: Id = serde_json::from_slice(&bytes)
        .with_context(|| format!("the file {ID} at {store} is damaged: restore it, it contains {{\"spool_id\":\"…\"}}"))
        .map_err(StayDown)?;
    Ok(Some(id.spool_id))
}

/// Makes an id, exclusively: of two processes at the same time, the second reads the id of the first. The bool: it is ours.
async fn make_id(store: &dyn ObjectStore, at: &Path) -> Result<(Uuid, bool)> {
    let id = Uuid::new_v4();
    let bytes = serde_json::to_vec(&Id { spool_id: id })?;
    match store.put_opts(at, bytes.into(), PutMode::Create.into()).await {
        Ok(_) => Ok((id, true)),
        Err(object_store::Error::AlreadyExists { .. }) => {
            let id = read_id(store, at).await?.context("it was there a moment ago")?;
            Ok((id, false))
        }
        Err(error) => Err(error.into()),
    }
}
