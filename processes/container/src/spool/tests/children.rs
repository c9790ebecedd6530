//! Tests that start themselves once more, as a child: to kill it, to measure its memory, or to give it a full disk.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use super::*;

/// The variable with the folder of the spool, in the child.
const FOLDER: &str = "CONTAINER_TEST_SPOOL";

/// The spool of the test that started this process. `None`: this process is not a child.
async fn spool_of_child() -> Option<Spool> {
    let folder = std::env::var_os(FOLDER)?;
    Some(Spool::open(&SpoolPlace::Folder(folder.into())).await.unwrap())
}

/// A command that runs one test of this program.
fn child(mut command: Command, test: &str, folder: &Path) -> Command {
    command.args(["--exact", "--nocapture", &format!("spool::tests::children::{test}")]);
    command.env(FOLDER, folder);
    command
}

fn this_program() -> Command {
    Command::new(std::env::current_exe().unwrap())
}

/// The steps of an upload: after each, the child waits for a line.
const STEPS: [&str; 7] = ["begun", "part", "written 0", "written 1", "written 2", "document", "complete"];

async fn upload_step_by_step(spool: &Spool) {
    let step = |name: &str| {
        println!("\nstep {name}");
        std::io::stdin().read_line(&mut String::new()).unwrap();
    };
    let mut upload = spool.begin(head()).unwrap();
    step("begun");
    upload.begin_part(photo(0).0).await.unwrap();
    step("part");
    for piece in 0..3 {
        upload.write(photo(70_000).1).await.unwrap();
        step(&format!("written {piece}"));
    }
    upload.begin_part(document().0).await.unwrap();
    upload.write(document().1).await.unwrap();
    step("document");
    upload.complete().await.unwrap();
    step("complete");
}

/// Lets the child go up to a step.
fn drive(child: &mut Child, last: &str) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for name in STEPS {
        while lines.next().expect("the child goes on").unwrap() != format!("step {name}") {}
        if name == last {
            return;
        }
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

#[tokio::test]
async fn a_killed_upload_is_never_listed_and_is_cleared_by_age() {
    if let Some(spool) = spool_of_child().await {
        return upload_step_by_step(&spool).await;
    }
    let scratch = Scratch::new();
    let spool = Spool::open(&scratch.place()).await.unwrap();
    for last in STEPS {
        let mut command =
            child(this_program(), "a_killed_upload_is_never_listed_and_is_cleared_by_age", &scratch.0.join("spool"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        drive(&mut child, last);
        child.kill().unwrap();
        child.wait().unwrap();
        let left_count = scratch.files().len();
        let finished = listed(&spool).await;
        assert_eq!(finished.len(), usize::from(last == "complete"), "{last}: only a complete file is listed");
        let unfinished_count = left_count - finished.len();
        // The first piece is full in the first write of 70,000 bytes.
        assert_eq!(unfinished_count, usize::from(last.starts_with("written") || last == "document"), "{last}");
        assert_eq!(spool.clear_unfinished(Duration::from_secs(3600)).await.unwrap(), 0, "{last}: it is too young");
        assert_eq!(scratch.files().len(), left_count, "{last}");
        assert_eq!(spool.clear_unfinished(Duration::ZERO).await.unwrap(), unfinished_count, "{last}");
        assert_eq!(scratch.files(), finished, "{last}");
    }
    let name = listed(&spool).await.remove(0);
    assert_eq!(spool.open_file(&name).await.unwrap().document().await.unwrap(), document().1);
}

/// A number from `/proc/self/status`, in KiB.
fn status(field: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

async fn stream_64_mib(spool: &Spool) {
    assert_round_trip(spool, &[document(), photo(200_000)]).await;
    // The highest memory so far is forgotten.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmHWM");
    let chunk = photo(32 * 1024).1;
    let mut upload = spool.begin(head()).unwrap();
    upload.begin_part(photo(0).0).await.unwrap();
    for _ in 0..2048 {
        upload.write(chunk.clone()).await.unwrap();
    }
    let file = upload.complete().await.unwrap();
    let mut len = 0;
    let mut chunks = file.part("photo").unwrap();
    while let Some(chunk) = chunks.try_next().await.unwrap() {
        len += chunk.len();
    }
    assert_eq!(len, 64 * 1024 * 1024);
    let grown = status("VmHWM") - before;
    assert!(grown < 1024, "64 MiB took {grown} KiB of memory");
}

#[tokio::test]
async fn a_large_body_is_never_held() {
    if let Some(spool) = spool_of_child().await {
        return stream_64_mib(&spool).await;
    }
    let scratch = Scratch::new();
    let status = child(this_program(), "a_large_body_is_never_held", &scratch.0.join("spool")).status().unwrap();
    assert!(status.success());
}

async fn fill_the_disk(spool: &Spool, folder: &Path) {
    let files = folder.join(FILES);
    let full = async |len| {
        let result = spool_parts(spool, &[photo(len), document()]).await;
        assert!(matches!(result, Err(SpoolError::Full)), "{len}: {result:?}");
    };
    let first = spool_parts(spool, &[document(), photo(100_000)]).await.unwrap().name;
    full(2_000_000).await;
    assert_eq!(names(&files), [&*first], "a large upload leaves nothing");
    let free = folder.join("free");
    let filled = fs::write(&free, vec![1; 2_000_000]).unwrap_err();
    assert_eq!(filled.kind(), ErrorKind::StorageFull);
    full(10).await;
    let tried = spool.try_write().await;
    assert!(matches!(tried, Err(SpoolError::Full)), "the container is not ready: {tried:?}");
    assert_eq!(names(&files), [&*first], "a small upload leaves nothing");
    assert_eq!(spool.open_file(&first).await.unwrap().document().await.unwrap(), document().1);
    fs::remove_file(&free).unwrap();
    let free_ratio = spool.try_write().await.unwrap();
    assert!(free_ratio.is_some_and(|ratio| (0.1..0.99).contains(&ratio)), "{free_ratio:?}");
    spool_parts(spool, &[document(), photo(100_000)]).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_full_and_nothing_is_left() {
    if let Some(spool) = spool_of_child().await {
        return fill_the_disk(&spool, Path::new(&std::env::var_os(FOLDER).unwrap())).await;
    }
    let scratch = Scratch::new();
    // A file system of 1 MiB, which only the child sees.
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-ec"]);
    command.arg("mount -t tmpfs -o size=1m spool \"$CONTAINER_TEST_SPOOL\"; exec \"$0\" \"$@\"");
    command.arg(std::env::current_exe().unwrap());
    let output = child(command, "a_full_disk_is_full_and_nothing_is_left", &scratch.0)
        .output()
        .expect("unshare, from the package util-linux, is installed");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
