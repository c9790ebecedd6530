//! Files and folders that the spool refuses.

use super::*;
use crate::envelope;

/// The reason why a file is refused, on opening it or on reading it.
async fn reason(spool: &Spool, name: &str) -> String {
    let read = async {
        let file = spool.open_file(name).await?;
        file.document().await?;
        read_part(&file, "photo").await
    };
    match read.await {
        Err(SpoolError::Damaged { name: refused, reason }) => {
            assert_eq!(refused, name);
            reason
        }
        other => panic!("{name}: {other:?}"),
    }
}

#[tokio::test]
async fn a_file_with_any_byte_changed_or_missing_is_refused_and_stays() {
    let scratch = Scratch::new();
    let spool = Spool::open(&scratch.place()).await.unwrap();
    let name = spool_parts(&spool, &[document(), photo(20)]).await.unwrap().name;
    let path = scratch.0.join("spool").join(FILES).join(&name);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        reason(&spool, &name).await;
        fs::write(&path, &whole[..at]).unwrap();
        reason(&spool, &name).await;
    }
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    assert!(reason(&spool, &name).await.contains("cut or foreign"));
    // Bytes between the parts and the trailer, which no hash covers.
    let trailer_len = envelope::trailer_len(&whole).unwrap() + envelope::END_LEN;
    let (start, end) = whole.split_at(whole.len() - trailer_len);
    fs::write(&path, [start, b"x", end].concat()).unwrap();
    assert!(reason(&spool, &name).await.contains("another length"));
    spool.clear_unfinished(Duration::ZERO).await.unwrap();
    assert_eq!(listed(&spool).await, [&*name]);
    fs::write(&path, &whole).unwrap();
    assert_eq!(spool.open_file(&name).await.unwrap().document().await.unwrap(), document().1);
}

#[tokio::test]
async fn a_file_that_is_cut_while_it_is_read_ends_with_an_error() {
    let scratch = Scratch::new();
    let spool = Spool::open(&scratch.place()).await.unwrap();
    let file = spool_parts(&spool, &[document(), photo(500_000)]).await.unwrap();
    let mut chunks = file.part("photo").unwrap();
    chunks.try_next().await.unwrap();
    let path = scratch.0.join("spool").join(FILES).join(&file.name);
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(100_000).unwrap();
    let rest = chunks.try_collect::<Vec<Bytes>>();
    let rest = tokio::time::timeout(Duration::from_secs(20), rest).await.expect("the content has an end");
    assert!(matches!(rest, Err(SpoolError::Damaged { .. })), "{rest:?}");
}

#[tokio::test]
async fn a_file_of_another_spool_or_program_is_refused() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    let spool = Spool::open(&scratch.place()).await.unwrap();
    let foreign = spool_parts(&Spool::open(&other.place()).await.unwrap(), &[document()]).await.unwrap().name;
    let files = scratch.0.join("spool").join(FILES);
    fs::create_dir_all(&files).unwrap();
    fs::copy(other.0.join("spool").join(FILES).join(&foreign), files.join(&foreign)).unwrap();
    assert!(reason(&spool, &foreign).await.starts_with("it belongs to spool "));
    fs::write(files.join("README"), "Read me.").unwrap();
    assert!(reason(&spool, "README").await.contains("its name"));
    let longer = Uuid::new_v4().to_string();
    fs::write(files.join(&longer), [7; 100_000]).unwrap();
    assert!(reason(&spool, &longer).await.contains("foreign"));
    assert_eq!(listed(&spool).await.len(), 3);
    for name in ["../spool-id", "", "README", &Uuid::new_v4().simple().to_string()] {
        assert!(matches!(spool.delete(name).await, Err(SpoolError::Damaged { .. })), "{name}");
    }
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused() {
    let id = Uuid::new_v4();
    let line = format!("{{\"version\":2,\"spool_id\":\"{id}\"}}\n");
    let tail = envelope::write_trailer(line.as_bytes(), &[]);
    let refused = envelope::read(id, line.as_bytes(), &tail, (line.len() + tail.len()) as u64).unwrap_err();
    assert_eq!(refused, "it has version 2 of the format, and this program reads version 1");
}

#[tokio::test]
async fn a_folder_with_files_and_no_id_is_refused() {
    let scratch = Scratch::new();
    let folder = scratch.0.join("spool");
    // A killed first start leaves a temporary id. A file system brings lost+found.
    fs::create_dir_all(folder.join("lost+found")).unwrap();
    fs::write(folder.join("spool-id#1"), "").unwrap();
    fs::write(folder.join("notes.txt"), "").unwrap();
    let refused = Spool::open(&scratch.place()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("it contains notes.txt"), "{refused:#}");
    fs::remove_file(folder.join("notes.txt")).unwrap();
    assert!(Spool::open(&scratch.place()).await.unwrap().is_new());
    fs::write(folder.join(ID), "{}").unwrap();
    let refused = Spool::open(&scratch.place()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("is damaged: restore it"), "{refused:#}");
}

#[tokio::test]
async fn an_unmounted_folder_takes_nothing_and_forgets_nothing() {
    let scratch = Scratch::new();
    let (mounted, away) = (scratch.0.join("spool"), scratch.0.join("away"));
    let spool = Spool::open(&scratch.place()).await.unwrap();
    let file = spool_parts(&spool, &[document()]).await.unwrap();
    let file = spool.open_file(&file.name).await.unwrap();
    let mut begun = spool.begin(head()).unwrap();
    begun.begin_part(document().0).await.unwrap();
    begun.write(document().1).await.unwrap();
    let mut long = spool.begin(head()).unwrap();
    long.begin_part(photo(200_000).0).await.unwrap();
    fs::rename(&mounted, &away).unwrap();
    fs::create_dir(&mounted).unwrap();
    assert!(matches!(begun.complete().await, Err(SpoolError::Away(_))));
    assert!(matches!(long.write(photo(200_000).1).await, Err(SpoolError::Away(_))));
    assert!(matches!(spool.open_file(&file.name).await, Err(SpoolError::Away(_))));
    assert!(matches!(file.document().await, Err(SpoolError::Away(_))));
    assert!(matches!(spool.delete(&file.name).await, Err(SpoolError::Away(_))), "it is not gone");
    assert!(matches!(spool.clear_unfinished(Duration::ZERO).await, Err(SpoolError::Away(_))));
    assert!(matches!(spool.list().try_collect::<Vec<_>>().await, Err(SpoolError::Away(_))));
    assert_eq!(names(&mounted), [""; 0], "nothing is written below the mount point");
    fs::remove_dir(&mounted).unwrap();
    fs::rename(&away, &mounted).unwrap();
    assert_eq!(spool.open_file(&file.name).await.unwrap().document().await.unwrap(), document().1);
}

#[tokio::test]
async fn a_request_that_does_not_fit_is_refused() {
    let scratch = Scratch::new();
    let spool = Spool::open(&scratch.place()).await.unwrap();
    let long = Head { idempotency_key: Some("k".repeat(10_000)), ..head() };
    assert!(matches!(spool.begin(long).map(drop), Err(SpoolError::TooLarge(_))));
    let mut upload = spool.begin(head()).unwrap();
    upload.begin_part(document().0).await.unwrap();
    upload.write(vec![b' '; 64 * 1024].into()).await.unwrap();
    assert!(matches!(upload.write(Bytes::from_static(b" ")).await, Err(SpoolError::TooLarge(_))));
    assert!(matches!(upload.complete().await.map(drop), Err(SpoolError::Away(_))), "bytes are missing");
    let mut upload = spool.begin(head()).unwrap();
    let long = PartHead { name: "n".repeat(70_000), ..document().0 };
    assert!(matches!(upload.begin_part(long).await, Err(SpoolError::TooLarge(_))));
    assert!(matches!(upload.complete().await.map(drop), Err(SpoolError::TooLarge(_))));
    // A large upload that is refused at its end has written a temporary file.
    let mut upload = spool.begin(head()).unwrap();
    upload.begin_part(photo(0).0).await.unwrap();
    upload.write(photo(200_000).1).await.unwrap();
    upload.begin_part(document().0).await.unwrap();
    assert!(matches!(upload.write(vec![b' '; 70_000].into()).await, Err(SpoolError::TooLarge(_))));
    assert_eq!(scratch.files(), [""; 0]);
}

#[tokio::test]
async fn an_upload_that_was_cleared_is_not_completed() {
    let scratch = Scratch::new();
    let spool = Spool::open(&scratch.place()).await.unwrap();
    assert_eq!(spool.clear_unfinished(Duration::ZERO).await.unwrap(), 0, "a new spool has no files");
    assert_eq!(listed(&spool).await, [""; 0]);
    let mut upload = spool.begin(head()).unwrap();
    upload.begin_part(photo(0).0).await.unwrap();
    upload.write(photo(200_000).1).await.unwrap();
    assert_eq!(spool.clear_unfinished(Duration::ZERO).await.unwrap(), 1);
    assert!(matches!(upload.complete().await.map(drop), Err(SpoolError::Away(_))));
    assert_eq!(scratch.files(), [""; 0]);
}
