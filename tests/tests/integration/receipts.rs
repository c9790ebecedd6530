//! Receipts by mail, receipts that another process is delivering, and receipts from dead letters.

use tests::{MailServer, Process, Watched, World, binary, free_port, scratch_folder, wait_until, write_certificate};
use tokio::process::Command;

use crate::fold_life::correct_letter;

/// Notes a receipt for the user 1 for each of these rides.
async fn note(world: &World, ride_ids: &[i64]) {
    let note = "INSERT INTO receipts (ride_id, record_offset, data)
        SELECT ride_id, ride_id, format('{\"ride_id\":%s,\"user_id\":1,\"amount\":2000,\"currency\":\"usd\"}', ride_id)::json
        FROM unnest($1::bigint[]) AS ride_id";
    world.client().execute(note, &[&ride_ids]).await.unwrap();
}

/// A further user, and one receipt for each of these rides.
async fn note_for(world: &World, email: &str, ride_ids: &[i64]) {
    note(world, ride_ids).await;
    let add = "WITH added AS (INSERT INTO users (email, stripe_customer_id) VALUES ($1, $1) RETURNING id)
        UPDATE receipts SET data = replace(data::text, '\"user_id\":1,', format('\"user_id\":%s,', id))::json
        FROM added WHERE ride_id = ANY($2)";
    world.client().execute(add, &[&email, &ride_ids]).await.unwrap();
}

fn start(world: &World, url: &str) -> Process {
    Process::start(world, "receipts", &["receipts", "--smtp-url", url])
}

async fn delivered(world: &World, ride_id: i64) {
    let query = format!("SELECT count(*) FROM receipts WHERE ride_id = {ride_id} AND delivered_at IS NOT NULL");
    wait_until(&format!("the receipt of ride {ride_id} is delivered"), async || world.number(&query).await == 1).await;
}

/// The mail server is an independent program: aiosmtpd.
#[tokio::test]
async fn receipts_are_mailed_once_and_wait_for_a_mail_server_that_is_away() {
    let (world, port) = (World::new().await, free_port());
    note(&world, &[7, 8]).await;
    let receipts = start(&world, &format!("smtp://127.0.0.1:{port}"));
    wait_until("both were refused", async || {
        world.number("SELECT count(*) FROM receipts WHERE last_error IS NOT NULL").await == 2
    })
    .await;
    let message_id = async |ride_id: i64| -> String {
        let query = "SELECT message_id::text FROM receipts WHERE ride_id = $1";
        world.client().query_one(query, &[&ride_id]).await.unwrap().get(0)
    };
    let first_ids = [message_id(7).await, message_id(8).await];
    assert_ne!(first_ids[0], first_ids[1]);

    let server = MailServer::start(port, None).await;
    // The next attempt is due in a minute; the test moves it to now.
    world.client().execute("UPDATE receipts SET next_attempt_at = now()", &[]).await.unwrap();
    delivered(&world, 7).await;
    delivered(&world, 8).await;
    receipts.stop().await;

    let mut mails = server.mails();
    mails.sort_by_key(|mail| mail.contains("ride 8"));
    assert_eq!(mails.len(), 2, "{mails:?}");
    for ((mail, ride_id), message_id) in mails.iter().zip([7, 8]).zip(first_ids) {
        for line in [
            "To: user@example.com".to_owned(),
            "From: receipts@example.com".to_owned(),
            format!("Subject: Receipt for ride {ride_id}"),
            // The same as in the first attempt, and of no other installation.
            format!("Message-ID: <{message_id}@rocket-rides-log>"),
            format!("Ride {ride_id}: 20.00 USD"),
        ] {
            assert!(mail.contains(&line), "{line:?} is not in {mail}");
        }
    }
}

/// The server hangs at RCPT for more than half of the receipts that are delivered side by side.
#[tokio::test]
async fn a_mail_server_that_hangs_for_one_address_holds_up_no_other() {
    let (world, port) = (World::new().await, free_port());
    let server = MailServer::start(port, None).await;
    note_for(&world, "hang@example.com", &[1, 2, 3, 4, 5]).await;
    note(&world, &[6]).await;
    let receipts = start(&world, &format!("smtp://127.0.0.1:{port}"));
    delivered(&world, 6).await;
    // So is a receipt that is noted later.
    note(&world, &[7]).await;
    delivered(&world, 7).await;
    let output = receipts.output();
    assert!(!output.contains("a receipt was not taken"), "the server still hangs for the first five:\n{output}");
    let waiting = "SELECT count(*) FROM receipts WHERE delivered_at IS NULL AND last_error LIKE '%longer than 20s%'";
    wait_until("they are tried later", async || world.number(waiting).await == 5).await;
    receipts.stop().await;
    assert_eq!(server.mails().len(), 2);
}

#[tokio::test]
async fn a_receipt_that_is_refused_for_ever_is_put_aside_and_sent_again_by_an_operator() {
    let (world, port) = (World::new().await, free_port());
    let server = MailServer::start(port, None).await;
    note_for(&world, "gone@example.com", &[1]).await;
    let url = format!("smtp://127.0.0.1:{port}");
    let receipts = Watched::start(&world, "receipts", &["receipts", "--smtp-url", &url]).await;
    for (attempt_count, pause_s) in [(1, 60), (2, 120), (3, 240), (4, 480)] {
        let paused = format!(
            "SELECT count(*) FROM receipts WHERE attempt_count = {attempt_count} AND last_error LIKE '%550%'
             AND next_attempt_at BETWEEN now() + INTERVAL '{} s' AND now() + INTERVAL '{pause_s} s'",
            pause_s - 30
        );
        wait_until(&format!("a pause of {pause_s} s"), async || world.number(&paused).await == 1).await;
        world.client().execute("UPDATE receipts SET next_attempt_at = now()", &[]).await.unwrap();
    }
    let put_aside = "SELECT count(*) FROM receipts WHERE attempt_count = 5 AND next_attempt_at = 'infinity'";
    wait_until("it is put aside", async || world.number(put_aside).await == 1).await;
    let gauge = "rocket_rides_receipts_put_aside";
    wait_until("the gauge tells", async || receipts.metric(gauge).await == 1.0).await;
    let operator = |program: &str, args: &[&str]| {
        let mut command = Command::new(binary(program));
        command.args(args).env("DATABASE_URL", world.database_url_of("operator"));
        command.env("REDIS_URL", world.redis_url()).env("STREAM_NAME", world.stream_name());
        Process::spawn(program, command)
    };
    // It fails: the servers of the tests do not wait for the disk.
    assert!(operator("doctor", &[]).fail(1).await.contains("warn receipts: 1 are put aside"));
    let list = operator("dead-letters", &["receipts"]).succeed().await;
    assert!(list.starts_with("ride 1, 5 attempts: sending a mail") && list.contains("No such mailbox"), "{list}");
    let refused = operator("dead-letters", &["resend", "9"]).fail(1).await;
    assert!(refused.contains("no receipt of ride 9 was refused"), "{refused}");

    world.client().execute("UPDATE users SET email = 'new@example.com' WHERE id > 2", &[]).await.unwrap();
    assert_eq!(operator("dead-letters", &["resend", "--all"]).succeed().await, "1 receipts are due again\n");
    delivered(&world, 1).await;
    wait_until("the gauge falls", async || receipts.metric(gauge).await == 0.0).await;
    assert!(server.mails()[0].contains("To: new@example.com"));
}

/// A payload that no text can hold, a user that does not exist, and an address that is none.
#[tokio::test]
async fn a_receipt_that_cannot_be_read_holds_up_no_other() {
    let (world, folder) = (World::new().await, scratch_folder());
    note(&world, &[1, 2, 3]).await;
    note_for(&world, "no address", &[4]).await;
    let spoil = "UPDATE receipts SET data = CASE ride_id
        WHEN 1 THEN '{\"user_id\":\"\\u0000\",\"amount\":1,\"currency\":\"usd\"}'
        ELSE '{\"user_id\":77,\"amount\":1,\"currency\":\"usd\"}' END::json WHERE ride_id < 3";
    world.client().execute(spoil, &[]).await.unwrap();
    let receipts = Process::start(&world, "receipts", &["receipts", "--folder", folder.to_str().unwrap()]);
    delivered(&world, 3).await;
    let refused = "SELECT count(*) FROM receipts WHERE delivered_at IS NULL AND
        last_error LIKE CASE ride_id WHEN 1 THEN 'the payload is no receipt%' WHEN 2 THEN 'user 77 is unknown' ELSE '%no address%' END";
    wait_until("the others are refused", async || world.number(refused).await == 3).await;
    receipts.stop().await;
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn mails_are_encrypted_and_the_mail_server_must_prove_its_name() {
    let (world, folder, ports) = (World::new().await, scratch_folder(), [free_port(), free_port()]);
    write_certificate(&folder);
    let server = MailServer::start(ports[0], Some(&folder)).await;
    let _plain = MailServer::start(ports[1], None).await;
    let [url, plain_url] = ports.map(|port| format!("smtp://localhost:{port}"));
    note(&world, &[1]).await;
    let drain = |url: &str, ca_file: Option<&str>| {
        let mut args = vec!["receipts", "--drain", "--smtp-url", url];
        args.extend(ca_file.map(|file| ["--tls-ca-file", file]).iter().flatten());
        Process::start(&world, "receipts", &args)
    };
    let ca_file = folder.join("ca.pem").display().to_string();
    for (url, advice) in [
        (url.clone(), "set TLS_CA_FILE"),
        (format!("{plain_url}?tls=required"), "add ?tls=none"),
        (plain_url.replace("localhost", "user:secret@localhost"), "add ?tls=none"),
    ] {
        let output = drain(&url, None).fail(1).await;
        assert!(output.contains(advice) && !output.contains("secret"), "{url}: {output}");
        world.client().execute("UPDATE receipts SET next_attempt_at = now()", &[]).await.unwrap();
    }
    assert_eq!(server.mails().len(), 0);
    drain(&url, Some(&ca_file)).succeed().await;
    assert!(server.mails()[0].contains("X-Encrypted: yes"), "{:?}", server.mails());
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

/// The receipt was noted by version 5.
#[tokio::test]
async fn a_receipt_of_an_older_schema_is_delivered_after_the_upgrade() {
    let (world, folder) = (World::new().await, scratch_folder());
    note(&world, &[1]).await;
    let old = "ALTER TABLE receipts DROP COLUMN attempt_count, DROP COLUMN message_id, DROP COLUMN last_error";
    world.client().batch_execute(old).await.unwrap();
    launcher::apply_schema(world.client()).await.unwrap();
    let mut command = Command::new(binary("receipts"));
    command.args(["receipts", "--drain", "--folder", folder.to_str().unwrap()]);
    command.env("DATABASE_URL", world.database_url()).env("REDIS_URL", world.redis_url());
    command.env("STREAM_NAME", world.stream_name());
    Process::spawn("receipts", command).succeed().await;
    assert_eq!(world.number("SELECT count(*) FROM receipts WHERE message_id IS NOT NULL").await, 1);
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
