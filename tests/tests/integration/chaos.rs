//! The chaos program: a bounded run of every fault, and proof that its checker sees violations.

use std::time::Duration;

use clap::ValueEnum;
use deadpool_postgres::ClientWrapper as Client;
use tests::{Process, binary, falsify, scratch_folder, wait_until};
use tokio::process::Command;
use tokio_postgres::error::SqlState;
use wallet::WalletId;

/// How often each kind of fault strikes.
const COUNT_OF_EACH: usize = 2;

/// The longest pause between two faults. With the default of 2 s the run would mostly wait.
const PAUSE: &str = "1s";

fn chaos(args: &[&str], data: &std::path::Path) -> Process {
    let mut command = Command::new(binary("chaos"));
    command.args(args).arg("--data").arg(data);
    Process::spawn("chaos", command)
}

#[tokio::test]
async fn every_fault_strikes_and_nothing_is_lost() {
    let data = scratch_folder();
    let kinds = chaos::Fault::available().0;
    let faults = (COUNT_OF_EACH * kinds.len()).to_string();
    let output = chaos(&["--faults", &faults, "--pause", PAUSE], &data).succeed_within(Duration::from_secs(900)).await;
    println!("{output}");
    assert!(output.contains("no violation: seed "), "{output}");
    for fault in kinds {
        let name = fault.to_possible_value().unwrap().get_name().to_owned();
        let line = format!("{COUNT_OF_EACH} {name}");
        assert!(output.lines().any(|other| other.trim() == line), "{name} struck {COUNT_OF_EACH} times:\n{output}");
    }
    let wallets = output.lines().find(|line| line.contains(" commands for wallets accepted, ")).unwrap();
    let is_busy = |what: &str| !wallets.contains(&format!(" 0 {what}")) && !wallets.starts_with(&format!("0 {what}"));
    assert!(["commands", "rejected", "reads from redis", "from postgres"].into_iter().all(is_busy), "{wallets}");
    let manifests = output.lines().find(|line| line.contains(" manifests filed, ")).unwrap();
    let is_busy = |what: &str| !manifests.contains(&format!(" 0 {what}"));
    assert!(["told to be committed", "rejected", "read"].into_iter().all(is_busy), "{manifests}");
    std::fs::remove_dir_all(data).unwrap();
}

#[tokio::test]
async fn nodes_of_a_cluster_fail_and_nothing_is_lost() {
    let data = scratch_folder();
    let names = chaos::Fault::OF_CLUSTER.map(chaos::Fault::name);
    let count = names.len().to_string();
    let args = ["--redis-cluster", "--faults", &count, "--only", &names.join(","), "--pause", PAUSE];
    let output = chaos(&args, &data).succeed_within(Duration::from_secs(400)).await;
    println!("{output}");
    assert!(output.contains("no violation: seed "), "{output}");
    for name in names {
        assert!(output.lines().any(|line| line.trim() == format!("1 {name}")), "{name} struck:\n{output}");
    }
    std::fs::remove_dir_all(data).unwrap();
}

/// Locks the consumer's row for two seconds after the change, so that the consumer does not overwrite the false value at once.
fn and_hold(consumer: &str, falsify: &str) -> String {
    let hold = format!("SELECT FROM checkpoints WHERE name = '{consumer}' FOR UPDATE");
    format!("BEGIN; {hold}; {falsify}; COMMIT; BEGIN; {hold}; SELECT pg_sleep(2); COMMIT")
}

/// Runs chaos and executes the statement `falsify` behind its back. Returns the output of chaos.
async fn chaos_while(falsify: &str) -> String {
    chaos_during(async |client, _| {
        if let Err(error) = client.batch_execute(falsify).await {
            // Chaos may see the change and stop the server while this statement still holds a lock.
            assert!(error.is_closed() || error.code() == Some(&SqlState::ADMIN_SHUTDOWN), "{error:?}");
        }
    })
    .await
}

/// Runs chaos and falsifies something behind its back, in Postgres or in the Redis with this URL. Returns the output of chaos.
async fn chaos_during(falsify: impl AsyncFnOnce(&Client, &str)) -> String {
    let data = scratch_folder();
    let mut chaos = chaos(&["--faults", "1000", "--only", "kill-api", "--seed", "1"], &data);
    chaos.wait_for("#3 kill-api").await;
    let output = chaos.output();
    let quoted = |start: &str| output.split(start).nth(1).unwrap().split('\'').next().unwrap();
    let client = connect::postgres::connect(&quoted("psql '").parse().unwrap(), "falsifier", || {}).await.unwrap();
    let enough = "SELECT min(last_offset) > 20 AND count(*) > 2 FROM checkpoints WHERE name <> 'checker'";
    wait_until("the consumers have rides", async || client.query_one(enough, &[]).await.unwrap().get(0)).await;
    falsify(&client, &format!("redis+unix://{}", quoted("redis-cli -s '"))).await;
    let output = chaos.fail(1).await;
    assert!(output.contains("seed 1; servers' data and logs of all processes are kept in"), "{output}");
    assert!(data.join("1/history.log").is_file() && data.join("1/logs/api_a.log").is_file(), "the data is kept");
    std::fs::remove_dir_all(data).unwrap();
    output
}

#[tokio::test]
async fn a_total_that_is_a_millimetre_too_long_is_seen() {
    let falsify = falsify("consumer1", "total_distance_mm", 1);
    let output = chaos_while(&and_hold("consumer1", &falsify)).await;
    assert!(output.contains("VIOLATION I4: consumer1 has"), "{output}");
}

#[tokio::test]
async fn a_ride_that_was_confirmed_and_is_gone_is_seen() {
    let output = chaos_while(
        "DELETE FROM rides WHERE id <= (SELECT max(id) - 10 FROM rides) AND id NOT IN (SELECT ride_id FROM bookings)",
    )
    .await;
    assert!(output.contains("VIOLATION I1: the log has"), "{output}");
}

#[tokio::test]
async fn a_checkpoint_that_goes_back_is_seen() {
    let falsify = "UPDATE checkpoints SET last_offset = 1 WHERE name = 'consumer2'";
    let output = chaos_while(&and_hold("consumer2", falsify)).await;
    assert!(output.contains("VIOLATION I5: consumer2 went back"), "{output}");
}

#[tokio::test]
async fn an_archived_record_that_is_changed_is_seen() {
    let output = chaos_while("UPDATE history SET data = '{}' WHERE record_offset = 7").await;
    assert!(output.contains("VIOLATION I2: the history has another record at offset 7"), "{output}");
}

#[tokio::test]
async fn an_archived_record_that_is_gone_is_seen() {
    let output = chaos_while("DELETE FROM history WHERE record_offset = 7").await;
    assert!(output.contains("VIOLATION I2: the history lacks the record at offset 7"), "{output}");
}

#[tokio::test]
async fn a_cent_out_of_nowhere_is_seen() {
    let output = chaos_while(
        "ALTER TABLE wallet_events DISABLE TRIGGER wallet_events_never_change;
         UPDATE wallet_events SET amount_minor = amount_minor + 1
         WHERE wallet_id = (SELECT id FROM wallets ORDER BY version DESC LIMIT 1) AND version = 1 AND accepted",
    )
    .await;
    assert!(output.contains("VIOLATION W4: the balances sum to"), "{output}");
}

#[tokio::test]
async fn a_command_that_is_decided_twice_is_seen() {
    // Without its key, an event is not found when its command is sent again.
    let output = chaos_while(
        "CREATE FUNCTION lose_key() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN NEW.idempotency_key := NULL; RETURN NEW; END';
         CREATE TRIGGER lose_key BEFORE INSERT ON wallet_events FOR EACH ROW EXECUTE FUNCTION lose_key()",
    )
    .await;
    assert!(output.contains("VIOLATION W1: WalletCommand {"), "{output}");
}

/// Runs chaos, and runs the statement when a manifest is committed. Returns the output of chaos.
async fn chaos_with_manifests_while(falsify: &str) -> String {
    chaos_during(async |client, _| {
        let enough = "SELECT count(*) > 2 FROM manifests";
        wait_until("manifests are committed", async || client.query_one(enough, &[]).await.unwrap().get(0)).await;
        client.batch_execute(falsify).await.unwrap();
    })
    .await
}

#[tokio::test]
async fn a_manifest_that_is_committed_and_gone_is_seen() {
    let output = chaos_with_manifests_while("DELETE FROM manifests WHERE uow = (SELECT min(uow) FROM manifests)").await;
    assert!(output.contains("VIOLATION C2: 1 committed units have no row in manifests"), "{output}");
}

#[tokio::test]
async fn a_second_verdict_on_an_attempt_is_seen() {
    let output = chaos_with_manifests_while(
        "INSERT INTO staged_log_records (object, action, data)
         SELECT 'unit', 'commit', json_build_object('uow', uow, 'attempt', attempt, 'status', 200)
         FROM units WHERE state = 'committed' ORDER BY uow LIMIT 1",
    )
    .await;
    assert!(output.contains("VIOLATION C2: record "), "{output}");
}

/// Runs a script on the document of the wallet that changed most, as one step: so the projector writes nothing in between. Its
/// second key is the document of a new wallet. It returns 0 if there is no document yet.
async fn change_document(client: &Client, redis_url: &str, script: &str) {
    let hottest = "SELECT id::text FROM wallets ORDER BY version DESC LIMIT 1";
    let wallet: String = client.query_one(hottest, &[]).await.unwrap().get(0);
    let mut redis = stream::redis::connect(&stream::redis::client(redis_url).unwrap()).await.unwrap();
    let (script, other) = (redis::Script::new(script), WalletId::new());
    wait_until("the wallet has a document", async || {
        let mut script = script.key(format!("wallet.{wallet}"));
        script.key(format!("wallet.{other}")).invoke_async::<i64>(&mut redis).await.unwrap() == 1
    })
    .await;
}

#[tokio::test]
async fn an_older_document_over_a_newer_one_is_seen() {
    let output = chaos_during(async |client, redis_url| {
        let older = "local text = redis.call('GET', KEYS[1]) or ''
                     local version = text:match('\"version_id\":(%d+)')
                     if not version then return 0 end
                     redis.call('SET', KEYS[1], (text:gsub('\"version_id\":%d+', '\"version_id\":' .. version - 1, 1)))
                     return 1";
        change_document(client, redis_url, older).await;
    })
    .await;
    assert!(output.contains("VIOLATION W6: version"), "{output}");
}

#[tokio::test]
async fn a_document_of_a_wallet_that_postgres_does_not_know_is_seen() {
    let output = chaos_during(async |client, redis_url| {
        let copy = "local text = redis.call('GET', KEYS[1])
                    if not text then return 0 end
                    redis.call('SET', KEYS[2], (text:gsub(KEYS[1], KEYS[2])))
                    return 1";
        change_document(client, redis_url, copy).await;
    })
    .await;
    assert!(output.contains("VIOLATION W6: readers believe wallet."), "{output}");
}
