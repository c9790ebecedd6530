//! The simulator's traffic of wallets: its pace, its refusals, and what it leaves in Postgres.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tests::{Process, World};
use tokio::net::{TcpListener, TcpStream};
use wallet::WalletId;

use crate::api::Api;

/// A port in front of an api. It counts the connections that it accepts.
async fn counting_port(api_port: u16) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut api = TcpStream::connect(("127.0.0.1", api_port)).await.unwrap();
                // The api ends connections that were open for long.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut api).await;
            });
        }
    });
    (port, count)
}

/// The numbers of requests in the line of the summary that begins with `name`: sent, accepted, refused.
fn summary(output: &str, name: &str) -> [i64; 3] {
    let line = output.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {output}"));
    let words: Vec<_> = line.split_whitespace().map(|word| word.trim_matches(',')).collect();
    ["sent", "accepted", "refused"]
        .map(|word| words[words.iter().position(|other| *other == word).unwrap() + 1].parse().unwrap())
}

#[tokio::test]
async fn un_19_the_simulator_loads_wallets_and_prints_its_pace_and_what_is_refused() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let (port, connection_count) = counting_port(api.port()).await;
    let flags = "--concurrency 0 --wallet-reads 4 --wallet-writes 4 --period 0s --duration 4s --seed 7 --api-port";
    let flags: Vec<_> = flags.split(' ').map(str::to_owned).chain([port.to_string()]).collect();
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let output = Process::start(&world, "simulator", &flags).succeed().await;
    let paces: Vec<_> = output.lines().filter(|line| line.contains(" requests per second (")).collect();
    assert!(paces.len() >= 3, "one line per second: {output}");
    let is_refusal = |line: &str| line.starts_with("400 {") && line.contains("(overdrawn)") && line.len() <= 310;
    assert!(output.lines().any(is_refusal), "{output}");
    let (reads, writes) = (summary(&output, "wallet reads: "), summary(&output, "wallet writes: "));
    assert_eq!((reads[0], reads[2]), (reads[1], 0), "{output}");
    assert!(!output.lines().any(|line| line.starts_with("sent ")), "no ride was posted: {output}");
    // One connection per worker, and one that asked whether the api is ready. A worker may open one that another takes over.
    let connection_count = connection_count.load(Ordering::Relaxed);
    assert!(
        (2..=30).contains(&connection_count),
        "{connection_count} connections for {} requests",
        reads[0] + writes[0]
    );
    // A transfer has a second event, of the receiver.
    let count = async |condition: &str| {
        let own = "NOT (action = 'transfer' AND amount_minor > 0)";
        world.number(&format!("SELECT count(*) FROM wallet_events WHERE {own} AND {condition}")).await
    };
    for action in ["credit", "debit", "transfer"] {
        assert!(count(&format!("accepted AND action = '{action}'")).await > 0, "{action}: {output}");
    }
    // A command with a key that is sent again gets the first response, and has no second event.
    let (attempts, repeated) = (count("true").await, writes[0] - count("true").await);
    assert!(
        repeated > 0 && repeated < count("idempotency_key IS NOT NULL").await,
        "{repeated} of {attempts}: {output}"
    );
    assert!(writes[2] >= count("NOT accepted").await && count("NOT accepted").await > 0, "{output}");
    assert!(world.number("SELECT count(*) FROM wallet_locks").await > 1, "several wallets");
}

#[tokio::test]
async fn un_19_the_simulator_takes_the_wallet_that_it_is_told() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let (wallet, port) = (WalletId::new().to_string(), api.port().to_string());
    let flags = "--concurrency 0 --wallet-writes 2 --period 10ms --count 100 --seed 7 --api-port";
    let flags: Vec<_> = flags.split(' ').chain([&*port, "--wallet", &wallet]).collect();
    let output = Process::start(&world, "simulator", &flags).succeed().await;
    assert_eq!(summary(&output, "wallet writes: ")[0], 100, "{output}");
    let rows = world.client().query("SELECT DISTINCT wallet_id::text FROM wallet_events WHERE amount_minor < 0", &[]);
    let payers: HashSet<String> = rows.await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(payers, HashSet::from([wallet]), "all debits and transfers are of this wallet");
}
