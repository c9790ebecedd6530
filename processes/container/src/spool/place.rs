//! The place of a spool: a folder, or a bucket of S3.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result};
use common::stay_down::StayDown;
use futures_util::TryStreamExt;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;

use super::folder::{self, Folder};
use super::s3;

/// The length of a piece in a folder, in bytes.
const PIECE_LEN: usize = 64 * 1024;

/// The length of a piece in S3, in bytes: the smallest that it takes.
const PIECE_LEN_S3: usize = 5 * 1024 * 1024;

/// The place of a spool, from `/var/lib/…` or `s3://bucket/prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpoolPlace {
    /// A folder on this machine.
    Folder(PathBuf),
    /// A bucket of S3. Credentials, region and endpoint come from the variables `AWS_…`.
    S3 {
        /// The bucket.
        bucket: String,
        /// The beginning of the names of all objects. It may be empty.
        prefix: String,
    },
}

impl FromStr for SpoolPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(format!("{text} names no bucket: write s3://bucket/prefix"));
            }
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned() });
        }
        if text.is_empty() || text.contains("://") {
            return Err(format!("{text:?} is not a place for a spool: write a folder or s3://bucket/prefix"));
        }
        Ok(Self::Folder(text.into()))
    }
}

impl fmt::Display for SpoolPlace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(out),
            Self::S3 { bucket, prefix } => write!(out, "s3://{bucket}/{prefix}"),
        }
    }
}

impl SpoolPlace {
    /// The store, and the prefix of the spool in it. A missing folder is made.
    pub(super) fn store(&self) -> Result<(Arc<dyn ObjectStore>, Path)> {
        match self {
            Self::Folder(path) => {
                folder::make(path).with_context(|| format!("make the folder {self} of the spool"))?;
                let store = LocalFileSystem::new_with_prefix(path)?.with_fsync(true);
                Ok((Arc::new(store), Path::default()))
            }
            Self::S3 { bucket, prefix } => {
                let store = s3::store(bucket).map_err(StayDown)?;
                Ok((store, Path::parse(prefix).map_err(|error| StayDown(error.into()))?))
            }
        }
    }

    /// The folder, once it has its id.
    pub(super) async fn folder(&self) -> Result<Option<Folder>> {
        match self {
            Self::Folder(path) => Folder::open(path).await.map(Some),
            Self::S3 { .. } => Ok(None),
        }
    }

    /// Anything that is there already, by its name.
    pub(super) async fn find_anything(&self, store: &dyn ObjectStore, prefix: &Path) -> Result<Option<String>> {
        match self {
            Self::Folder(path) => Ok(folder::find_anything(path)?),
            Self::S3 { .. } => Ok(store.list(Some(prefix)).try_next().await?.map(|object| object.location.to_string())),
        }
    }

    pub(super) fn piece_len(&self) -> usize {
        match self {
            Self::Folder(_) => PIECE_LEN,
            Self::S3 { .. } => PIECE_LEN_S3,
        }
    }
}
