//! Receipts by mail, receipts that another process is delivering, and receipts from dead letters.

use std::path::Path;

use tests::{Process, World, binary, free_port, python_program, scratch_folder, wait_until};
use tokio::process::Command;

use crate::fold_life::correct_letter;

/// Notes a receipt for the user 1 for each of these rides.
async fn note(world: &World, ride_ids: &[i64]) {
    let note = "INSERT INTO receipts (ride_id, record_offset, data)
        SELECT ride_id, ride_id, format('{\"ride_id\":%s,\"user_id\":1,\"amount\":2000,\"currency\":\"usd\"}', ride_id)::json
        FROM unnest($1::bigint[]) AS ride_id";
    world.client().execute(note, &[&ride_ids]).await.unwrap();
}

/// The mails in the mailbox.
fn mails(mailbox: &Path) -> Vec<String> {
    let Ok(files) = std::fs::read_dir(mailbox.join("new")) else { return Vec::new() };
    files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

/// The mail server is an independent program: aiosmtpd.
#[tokio::test]
async fn receipts_are_mailed_once_and_wait_for_a_mail_server_that_is_away() {
    let (world, folder, port) = (World::new().await, scratch_folder(), free_port());
    let mailbox = folder.join("mailbox");
    let url = format!("smtp://127.0.0.1:{port}");
    note(&world, &[7, 8]).await;
    let mut receipts = Process::start(&world, "receipts", &["receipts", "--smtp-url", &url]);
    receipts.wait_for("a receipt was not taken").await;

    let mut server = Command::new(python_program("aiosmtpd"));
    server.args(["-n", "-l", &format!("127.0.0.1:{port}"), "-c", "aiosmtpd.handlers.Mailbox"]).arg(&mailbox);
    let _server = Process::spawn("aiosmtpd", server);
    wait_until("the mail server listens", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok())
        .await;
    assert_eq!(world.number("SELECT count(*) FROM receipts WHERE delivered_at IS NOT NULL").await, 0);
    // The next attempt is due in a minute; the test moves it to now.
    world.client().execute("UPDATE receipts SET next_attempt_at = now()", &[]).await.unwrap();
    let undelivered = "SELECT count(*) FROM receipts WHERE delivered_at IS NULL";
    wait_until("the receipts are delivered", async || world.number(undelivered).await == 0).await;
    receipts.stop().await;

    let mut mails = mails(&mailbox);
    mails.sort_by_key(|mail| mail.contains("ride 8"));
    assert_eq!(mails.len(), 2, "{mails:?}");
    for (mail, ride_id) in mails.iter().zip([7, 8]) {
        for line in [
            "To: user@example.com".to_owned(),
            "From: receipts@example.com".to_owned(),
            format!("Subject: Receipt for ride {ride_id}"),
            format!("Message-ID: <ride-{ride_id}@rocket-rides-log>"),
            format!("Ride {ride_id}: 20.00 USD"),
        ] {
            assert!(mail.contains(&line), "{line:?} is not in {mail}");
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn what_another_process_has_in_hand_is_waited_for() {
    let (world, folder) = (World::new().await, scratch_folder());
    note(&world, &[1, 2]).await;
    // Another process was killed while it delivered the first receipt.
    let take = "UPDATE receipts SET next_attempt_at = now() + INTERVAL '3 seconds' WHERE ride_id = 1";
    world.client().execute(take, &[]).await.unwrap();
    let flags = ["receipts", "--drain", "--folder", folder.to_str().unwrap()];
    let mut receipts = Process::start(&world, "receipts", &flags);
    receipts.wait_for("Delivered job: send_ride_receipt ride_id=2").await;
    assert!(!folder.join("1.eml").exists(), "it may still be delivered by another process");
    receipts.succeed().await;
    assert!(folder.join("1.eml").exists());
    std::fs::remove_dir_all(&folder).unwrap();
}

/// `dead-letters` finds the fold of the consumer in its registration. Its Postgres role may note receipts.
#[tokio::test]
async fn a_dead_letter_of_receipts_becomes_a_receipt() {
    let (world, folder) = (World::new().await, scratch_folder());
    let stage = "INSERT INTO staged_log_records (object, action, data)
                 VALUES ('receipt', 'create', '{\"ride_id\":8,\"amount\":\"20.00 USD\"}')";
    world.client().execute(stage, &[]).await.unwrap();
    world.drain_streamer(&mut world.streamer()).await;
    let flags = ["receipts", "--drain", "--folder", folder.to_str().unwrap()];
    Process::start(&world, "receipts", &flags).succeed().await;
    let replay = || {
        let mut command = Command::new(binary("dead-letters"));
        command.args(["replay", "receipts", "1"]).env("DATABASE_URL", world.database_url_of("operator"));
        Process::spawn("dead-letters", command)
    };
    let output = replay().fail(1).await;
    assert!(output.contains("still rejected, and kept: data is not a receipt"), "{output}");
    assert_eq!(world.number("SELECT count(*) FROM receipts").await, 0);
    correct_letter(&world, "receipts", 1, r#"{"ride_id":8,"user_id":1,"amount":2000,"currency":"usd"}"#).await;
    assert_eq!(replay().succeed().await, "receipts 1: folded\n");
    assert_eq!(world.number("SELECT record_offset FROM receipts WHERE ride_id = 8").await, 1);
    assert_eq!(world.number("SELECT count(*) FROM dead_letters").await, 0);
    Process::start(&world, "receipts", &flags).succeed().await;
    assert!(folder.join("8.eml").exists(), "it is delivered like any other");
    std::fs::remove_dir_all(&folder).unwrap();
}
