//! The spool in real folders, with real kills and a real full disk.

mod children;
mod refused;
mod s3;

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::*;
use crate::envelope::PartHead;

/// A new folder, which is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("container-spool-{}", Uuid::new_v4()));
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn place(&self) -> SpoolPlace {
        SpoolPlace::Folder(self.0.join("spool"))
    }

    /// The names in the folder of the files.
    fn files(&self) -> Vec<String> {
        names(&self.0.join("spool").join(FILES))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn head() -> Head {
    Head {
        resource: "manifests".to_owned(),
        document: "manifest".to_owned(),
        idempotency_key: Some("a \"key\"\nof ünïcode".to_owned()),
        traceparent: None,
        received_at: "2026-01-02T03:04:05Z".parse().unwrap(),
    }
}

fn document() -> (PartHead, Bytes) {
    let head = PartHead { name: "manifest".to_owned(), content_type: "application/json".to_owned(), file_name: None };
    (head, Bytes::from_static(b"{\"ride_id\":1,\"passengers\":[\"Ada\"]}"))
}

fn photo(len: usize) -> (PartHead, Bytes) {
    let head = PartHead {
        name: "photo".to_owned(),
        content_type: "image/jpeg".to_owned(),
        file_name: Some("a\nb.jpg".to_owned()),
    };
    (head, (0..len).map(|at| (at * 7 / 3) as u8).collect())
}

/// Writes a request, in chunks of a length that divides no piece.
async fn spool_parts(spool: &Spool, parts: &[(PartHead, Bytes)]) -> Result<Spooled, SpoolError> {
    let mut upload = spool.begin(head())?;
    for (head, content) in parts {
        upload.begin_part(head.clone()).await?;
        for chunk in content.chunks(10_007) {
            upload.write(Bytes::copy_from_slice(chunk)).await?;
        }
    }
    upload.complete().await
}

async fn read_part(spooled: &Spooled, name: &str) -> Result<Bytes, SpoolError> {
    let chunks: Vec<Bytes> = spooled.part(name).unwrap().try_collect().await?;
    Ok(chunks.concat().into())
}

async fn listed(spool: &Spool) -> Vec<String> {
    let mut names: Vec<String> = spool.list().map_ok(|file| file.name).try_collect().await.unwrap();
    names.sort();
    names
}

/// A request is read as it was written, from a folder and from a bucket.
async fn assert_round_trip(spool: &Spool, parts: &[(PartHead, Bytes)]) -> Spooled {
    let written = spool_parts(spool, parts).await.unwrap();
    let read = spool.open_file(&written.name).await.unwrap();
    assert_eq!((&read.head, &read.parts, read.hash), (&head(), &written.parts, written.hash));
    assert_eq!(read.document().await.unwrap(), document().1);
    for (head, content) in parts {
        assert!(read_part(&read, &head.name).await.unwrap() == *content, "{}", head.name);
        assert_eq!(read.parts.iter().find(|part| part.head.name == head.name).map(|part| &part.head), Some(head));
    }
    assert!(read.part("map").is_none());
    read
}

#[tokio::test]
async fn a_request_is_read_as_it_was_written() {
    let scratch = Scratch::new();
    let spool = Spool::open(&scratch.place()).await.unwrap();
    spool.sync().await.expect("a new spool has nothing to make durable");
    let mut written = Vec::new();
    written.push(assert_round_trip(&spool, &[document()]).await.name);
    // Around the ends of pieces, and a trailer that begins another piece.
    for len in [0, 1, 65_000, 65_536, 131_072, 300_000] {
        let first = assert_round_trip(&spool, &[document(), photo(len)]).await;
        let second = assert_round_trip(&spool, &[photo(len), document()]).await;
        assert_eq!(first.hash, second.hash, "the order of the parts does not count");
        written.extend([first.name, second.name]);
    }
    written.sort();
    assert_eq!(listed(&spool).await, written);
    assert_eq!(scratch.files(), written, "nothing else is left");
}

#[tokio::test]
async fn files_in_a_folder_are_synced() {
    let scratch = Scratch::new();
    let spool = Spool::open(&scratch.place()).await.unwrap();
    // The effect shows after a power failure only. So the setting is compared.
    let store = format!("{:?}", spool.0.store);
    assert!(store.contains("fsync: true"), "{store}");
}

#[tokio::test]
async fn another_request_has_another_hash() {
    let scratch = Scratch::new();
    let spool = Spool::open(&scratch.place()).await.unwrap();
    let hash = spool_parts(&spool, &[document(), photo(9)]).await.unwrap().hash;
    let mut renamed = photo(9);
    renamed.0.name = "picture".to_owned();
    let mut retyped = photo(9);
    retyped.0.content_type = "image/png".to_owned();
    for parts in [vec![document()], vec![document(), photo(10)], vec![document(), renamed], vec![document(), retyped]] {
        assert_ne!(spool_parts(&spool, &parts).await.unwrap().hash, hash, "{parts:?}");
    }
}

#[tokio::test]
async fn the_id_stays() {
    let scratch = Scratch::new();
    let place = scratch.place();
    // Eight processes that start at the same time.
    let spools = futures_util::future::join_all((0..8).map(|_| Spool::open(&place))).await;
    let spools: Vec<Spool> = spools.into_iter().map(Result::unwrap).collect();
    let first = &spools[0];
    assert!(spools.iter().all(|spool| spool.id() == first.id() && spool.place() == first.place()));
    assert_eq!(spools.iter().filter(|spool| spool.is_new()).count(), 1);
    let again = Spool::open(&scratch.place()).await.unwrap();
    assert_eq!((again.id(), again.is_new(), again.place()), (first.id(), false, first.place()));
    assert!(again.place().ends_with(&format!(":{}", fs::canonicalize(scratch.0.join("spool")).unwrap().display())));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(scratch.0.join("spool")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn a_file_is_deleted_once_or_twice() {
    let scratch = Scratch::new();
    let spool = Spool::open(&scratch.place()).await.unwrap();
    let name = spool_parts(&spool, &[document()]).await.unwrap().name;
    for _ in 0..2 {
        spool.delete(&name).await.unwrap();
        spool.sync().await.unwrap();
        assert!(matches!(spool.open_file(&name).await, Err(SpoolError::Unknown)));
    }
    assert_eq!(scratch.files(), [""; 0]);
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing() {
    let scratch = Scratch::new();
    let spool = Spool::open(&scratch.place()).await.unwrap();
    for len in [10, 200_000] {
        let mut upload = spool.begin(head()).unwrap();
        upload.begin_part(photo(0).0).await.unwrap();
        upload.write(photo(len).1).await.unwrap();
        assert_eq!(scratch.files().len(), usize::from(len > 65_536), "a small request is not written before its end");
        upload.abort().await;
        assert_eq!(scratch.files(), [""; 0]);
    }
}

async fn drop_a_write() {
    let scratch = Scratch::new();
    let spool = Spool::open(&scratch.place()).await.unwrap();
    let mut upload = spool.begin(head()).unwrap();
    upload.begin_part(photo(0).0).await.unwrap();
    // The only thread that writes is busy, so the write is pending when it is dropped.
    let (release, released) = std::sync::mpsc::channel::<()>();
    let busy = tokio::task::spawn_blocking(move || released.recv());
    {
        let write = std::pin::pin!(upload.write(photo(200_000).1));
        assert!(futures_util::poll!(write).is_pending());
    }
    drop(release);
    busy.await.unwrap().unwrap_err();
    assert!(matches!(upload.complete().await.map(drop), Err(SpoolError::Away(_))));
    assert_eq!(listed(&spool).await, [""; 0]);
}

#[test]
fn an_upload_whose_write_was_dropped_is_not_completed() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(drop_a_write());
}

#[tokio::test]
async fn a_completion_that_fails_leaves_nothing() {
    let scratch = Scratch::new();
    let spool = Spool::open(&scratch.place()).await.unwrap();
    let mut upload = spool.begin(head()).unwrap();
    upload.begin_part(photo(0).0).await.unwrap();
    upload.write(photo(200_000).1).await.unwrap();
    // A folder of that name: the file cannot replace it.
    let name = upload.name().to_owned();
    fs::create_dir(scratch.0.join("spool").join(FILES).join(&name)).unwrap();
    assert!(matches!(upload.complete().await, Err(SpoolError::Away(_))));
    assert_eq!(scratch.files(), [name], "the temporary file is gone");
}

#[test]
fn a_place_is_a_folder_or_a_bucket() {
    let parse = |text: &str| text.parse::<SpoolPlace>();
    assert_eq!(parse("a/b"), Ok(SpoolPlace::Folder("a/b".into())));
    let bucket = |prefix: &str| Ok(SpoolPlace::S3 { bucket: "bucket".to_owned(), prefix: prefix.to_owned() });
    assert_eq!(parse("s3://bucket"), bucket(""));
    assert_eq!(parse("s3://bucket/a/b/"), bucket("a/b"));
    for text in ["", "s3://", "s3:///a", "gs://bucket"] {
        assert!(parse(text).is_err(), "{text}");
    }
}
