//! Files in a real folder.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use bytes::Bytes;
use container::destination::{Attachment, Attachments, Destination, Outcome, Refusal, Unit, UnitRef};
use container::files::Files;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::process::Command;
use uuid::Uuid;

use crate::world::{Folder, Photo, again, unit, wait_until};

/// The length of a block that is written at once, in bytes.
const BLOCK_LEN: usize = 64 * 1024;

const CONTENT: &[u8] = b"the first piece, the second";

/// The names in a folder, without the folder of temporary files and the id.
fn names(folder: &Folder) -> Vec<String> {
    let names =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != ".unfinished" && name != ".folder-id").collect()
}

fn unfinished_count(folder: &Folder) -> usize {
    std::fs::read_dir(folder.path().join(".unfinished")).unwrap().count()
}

fn content(files: &Files, unit: &Unit) -> Option<Vec<u8>> {
    std::fs::read(files.path(unit.key, unit.attempt)).ok()
}

fn status(outcome: &Outcome) -> u16 {
    match outcome {
        Outcome::Failed(Refusal { status, .. }) => *status,
        _ => panic!("{outcome:?} is no failure"),
    }
}

#[tokio::test]
async fn a_photo_is_stored_whole_and_a_second_store_changes_nothing() {
    let folder = Folder::new();
    let files = Files::open(&folder.path().join("made/by/open"), "photo").await.unwrap();
    let unit = unit(1, "7", 2);
    assert_eq!(files.store(&unit).await, Outcome::Stored);
    assert_eq!(content(&files, &unit).unwrap(), CONTENT);
    assert_eq!(files.store(&unit).await, Outcome::Stored);
    assert_eq!(content(&files, &unit).unwrap(), CONTENT);
    let mode = std::fs::metadata(folder.path().join("made/by/open")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "only its owner reads it");
}

#[tokio::test]
async fn a_unit_without_a_photo_is_declined() {
    let folder = Folder::new();
    let files = Files::open(folder.path(), "photo").await.unwrap();
    let mut unit = unit(1, "7", 2);
    unit.attachments = Box::new(Photo(vec![]));
    assert_eq!(files.store(&unit).await, Outcome::Declined);
    assert!(names(&folder).is_empty());
}

#[tokio::test]
async fn an_empty_photo_is_refused_because_it_would_look_like_a_tombstone() {
    let folder = Folder::new();
    let files = Files::open(folder.path(), "photo").await.unwrap();
    let mut unit = unit(1, "7", 2);
    unit.attachments = Box::new(Photo(vec![Ok(Bytes::new())]));
    assert_eq!(status(&files.store(&unit).await), 422);
    assert!(names(&folder).is_empty());
}

#[tokio::test]
async fn a_second_undo_changes_nothing_and_a_late_store_is_refused() {
    let folder = Folder::new();
    let files = Files::open(folder.path(), "photo").await.unwrap();
    let unit = unit(1, "7", 2);
    assert_eq!(files.store(&unit).await, Outcome::Stored);
    for _ in 0..2 {
        files.undo(unit.reference()).await.unwrap();
        assert_eq!(content(&files, &unit).unwrap(), b"", "a tombstone");
    }
    assert_eq!(files.store(&unit).await, Outcome::Failed(Refusal::undone()));
    assert_eq!(content(&files, &unit).unwrap(), b"");
    assert_eq!(unfinished_count(&folder), 0);
}

#[tokio::test]
async fn an_undo_before_the_store_refuses_it() {
    let folder = Folder::new();
    let files = Files::open(folder.path(), "photo").await.unwrap();
    let unit = unit(1, "7", 2);
    files.undo(unit.reference()).await.unwrap();
    assert_eq!(files.store(&unit).await, Outcome::Failed(Refusal::undone()));
    assert_eq!(content(&files, &unit).unwrap(), b"");
}

#[tokio::test]
async fn a_late_undo_of_the_first_attempt_does_not_touch_the_second() {
    let folder = Folder::new();
    let files = Files::open(folder.path(), "photo").await.unwrap();
    let first = unit(1, "7", 2);
    let second = again(&first, 2);
    assert_eq!(files.store(&first).await, Outcome::Stored);
    files.undo(first.reference()).await.unwrap();
    assert_eq!(files.store(&second).await, Outcome::Stored);
    files.undo(first.reference()).await.unwrap();
    assert_eq!(content(&files, &second).unwrap(), b"the photo of another attempt");
}

#[tokio::test]
async fn a_committed_photo_stays_when_its_unit_is_forgotten() {
    let folder = Folder::new();
    let files = Files::open(folder.path(), "photo").await.unwrap();
    let first = unit(1, "7", 2);
    let third = again(&first, 3);
    files.undo(first.reference()).await.unwrap();
    files.undo(UnitRef { attempt: 2, ..first.reference() }).await.unwrap();
    assert_eq!(files.store(&third).await, Outcome::Stored);
    for _ in 0..2 {
        files.forget(third.reference()).await.unwrap();
        assert_eq!(names(&folder), [format!("{}-3", first.key)]);
    }
}

#[tokio::test]
async fn an_attachment_that_breaks_off_leaves_nothing() {
    let folder = Folder::new();
    let files = Files::open(folder.path(), "photo").await.unwrap();
    let mut unit = unit(1, "7", 2);
    unit.attachments = Box::new(Photo(vec![Ok("the beginning".into()), Err("the spool is away".to_owned())]));
    let outcome = files.store(&unit).await;
    assert_eq!(status(&outcome), 503);
    assert!(matches!(outcome, Outcome::Failed(refusal) if refusal.reason.contains("the spool is away")));
    assert!(names(&folder).is_empty());
    assert_eq!(unfinished_count(&folder), 0);
}

#[tokio::test]
async fn a_folder_that_goes_away_is_a_passing_failure_and_is_not_made_again() {
    let folder = Folder::new();
    let photos = folder.path().join("photos");
    let files = Files::open(&photos, "photo").await.unwrap();
    std::fs::rename(&photos, folder.path().join("unmounted")).unwrap();
    let unit = unit(1, "7", 2);
    assert_eq!(status(&files.store(&unit).await), 503);
    assert_eq!(files.undo(unit.reference()).await.unwrap_err().status, 503);
    assert!(!photos.exists());
    std::fs::rename(folder.path().join("unmounted"), &photos).unwrap();
    assert_eq!(files.store(&unit).await, Outcome::Stored);
}

#[tokio::test]
async fn a_folder_that_is_replaced_gets_no_photo_and_forgets_none() {
    let folder = Folder::new();
    let (photos, away) = (folder.path().join("photos"), folder.path().join("away"));
    let files = Files::open(&photos, "photo").await.unwrap();
    let (first, second) = (unit(1, "7", 2), unit(2, "8", 2));
    files.undo(first.reference()).await.unwrap();
    std::fs::rename(&photos, &away).unwrap();
    std::fs::create_dir(&photos).unwrap();
    // Another folder of photos has all that a store needs.
    let other = Files::open(&photos, "photo").await.unwrap();
    assert_eq!(status(&files.store(&second).await), 503);
    assert_eq!(files.undo(second.reference()).await.unwrap_err().status, 503);
    assert_eq!(files.forget(first.reference()).await.unwrap_err().status, 503, "its tombstone is elsewhere");
    assert_eq!(std::fs::read_dir(&photos).unwrap().count(), 2, "only the folder of temporary files and the id");
    assert_ne!(files.id(), other.id());
    let refused = Files::open_known(&photos, "photo", files.id()).await.map(drop).unwrap_err();
    assert!(
        format!("{refused:#}").contains(&format!("its id was {}, and it has {}", files.id(), other.id())),
        "{refused:#}"
    );
    assert_eq!(Files::open_known(&away, "photo", files.id()).await.unwrap().id(), files.id());
}

#[tokio::test]
async fn processes_that_open_a_folder_at_the_same_time_find_one_id() {
    let folder = Folder::new();
    let opened = futures_util::future::join_all((0..8).map(|_| Files::open(folder.path(), "photo"))).await;
    let ids: Vec<Uuid> = opened.into_iter().map(|files| files.unwrap().id()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

/// A photo that never ends.
struct Endless;

impl Attachments for Endless {
    fn find(&self, _: &str) -> Option<Attachment> {
        let begun = stream::once(async { Ok(Bytes::from_static(&[7; BLOCK_LEN])) });
        let bytes = begun.chain(stream::pending()).boxed();
        Some(Attachment { content_type: "image/png".to_owned(), bytes })
    }
}

#[tokio::test]
async fn a_store_that_is_given_up_leaves_nothing() {
    let folder = Folder::new();
    let files = Files::open(folder.path(), "photo").await.unwrap();
    let mut unit = unit(1, "7", 2);
    unit.attachments = Box::new(Endless);
    tokio::time::timeout(Duration::from_millis(200), files.store(&unit)).await.unwrap_err();
    assert!(names(&folder).is_empty());
    assert_eq!(unfinished_count(&folder), 0);
}

/// The variable that gives the process below its folder.
const FOLDER: &str = "CONTAINER_TEST_FOLDER";

/// Run by the next test, in a process of its own, which is killed while it stores. Run as a test, it has nothing to do.
#[tokio::test]
async fn process_that_stores_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let files = Files::open(folder.as_ref(), "photo").await.unwrap();
    let mut unit = unit(1, "7", 2);
    unit.attachments = Box::new(Endless);
    files.store(&unit).await;
}

#[tokio::test]
async fn a_process_that_is_killed_before_the_link_leaves_nothing_visible() {
    let folder = Folder::new();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "files::process_that_stores_until_it_is_killed"]).env(FOLDER, folder.path());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let unfinished = folder.path().join(".unfinished");
    wait_until("the temporary file has a content", async || {
        let entries = std::fs::read_dir(&unfinished).into_iter().flatten();
        entries.flatten().any(|entry| entry.metadata().unwrap().len() == BLOCK_LEN as u64)
    })
    .await;
    child.kill().await.unwrap();
    assert!(names(&folder).is_empty());
    assert_eq!(unfinished_count(&folder), 1);
    let files = Files::open(folder.path(), "photo").await.unwrap();
    assert_eq!(unfinished_count(&folder), 1, "another process may still write a young file");
    assert_eq!(files.clear_unfinished(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(unfinished_count(&folder), 0);
}

#[tokio::test]
async fn a_store_goes_on_where_a_killed_process_has_linked() {
    let folder = Folder::new();
    let files = Files::open(folder.path(), "photo").await.unwrap();
    let unit = unit(1, "7", 2);
    // A process that is killed after the link leaves both names.
    let temporary = folder.path().join(".unfinished").join(Uuid::new_v4().to_string());
    std::fs::write(&temporary, CONTENT).unwrap();
    std::fs::hard_link(&temporary, files.path(unit.key, 1)).unwrap();
    assert_eq!(files.store(&unit).await, Outcome::Stored);
    assert_eq!(files.clear_unfinished(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(content(&files, &unit).unwrap(), CONTENT);
    files.undo(unit.reference()).await.unwrap();
    assert_eq!(content(&files, &unit).unwrap(), b"");
}
