//! The audit of wallets: true ones pass, and each difference is named with its wallet and version.

use tests::{Process, World};
use wallet::{Action, Amount, EventId, State, WalletId, apply, decide, decide_transfer};

use crate::reaper::reap;

/// Runs `audit`, which must find no difference.
pub async fn equal(world: &World, args: &[&str]) -> String {
    Process::start(world, "audit", args).succeed().await
}

/// Runs `audit`, which must find exactly these differences, each with its beginning and with these words.
pub async fn different(world: &World, differences: &[(&str, &str)]) {
    let output = Process::start(world, "audit", &[]).fail(1).await;
    let found: Vec<&str> = output.lines().filter_map(|line| line.strip_prefix("DIFFERENCE: ")).collect();
    for (beginning, words) in differences {
        let is_there = found.iter().any(|line| line.starts_with(beginning) && line.contains(words));
        assert!(is_there, "no {beginning:?} with {words:?} in\n{output}");
    }
    assert_eq!(found.len(), differences.len(), "{output}");
}

/// Writes events and their records, in one transaction each, without the api.
struct Writer<'a> {
    world: &'a World,
    wallets: Vec<(WalletId, State)>,
}

impl<'a> Writer<'a> {
    /// Two wallets, whose ids are in this order.
    fn new(world: &'a World) -> Self {
        let ids = ["000000000000000000000000001", "28skwt5B8zTrs6AqBWrSgCHLcRL"];
        Self { world, wallets: ids.map(|id| (id.parse().unwrap(), State::default())).into() }
    }

    fn id(&self, place: usize) -> WalletId {
        self.wallets[place].0
    }

    async fn credit(&mut self, place: usize, minor: i64) {
        self.decide(place, Action::Credit, minor).await;
    }

    async fn debit(&mut self, place: usize, minor: i64) {
        self.decide(place, Action::Debit, minor).await;
    }

    async fn decide(&mut self, place: usize, action: Action, minor: i64) {
        let event = decide(self.wallets[place].1, action, Amount::from_minor(minor).unwrap());
        let sql = self.add(place, &event, "world");
        self.world.client().batch_execute(&sql).await.unwrap();
    }

    async fn transfer(&mut self, payer: usize, receiver: usize, minor: i64) {
        let amount = Amount::from_minor(minor).unwrap();
        let (paid, received) = decide_transfer(self.wallets[payer].1, self.wallets[receiver].1, amount);
        let (to, from) = (self.id(receiver).to_string(), self.id(payer).to_string());
        let mut sql = self.add(payer, &paid, &to);
        if let Some(received) = received {
            sql += &self.add(receiver, &received, &from);
        }
        self.world.client().batch_execute(&format!("BEGIN; {sql}; COMMIT")).await.unwrap();
    }

    /// The statements of one event with its record.
    fn add(&mut self, place: usize, event: &wallet::Event, counterparty: &str) -> String {
        let (id, state) = &mut self.wallets[place];
        *state = apply(*state, event);
        let (State { version, balance_minor }, event_id) = (*state, EventId::new());
        let wallet::Event { action, amount_minor, outcome } = event;
        let mut data = serde_json::json!({"wallet_id": id.as_str(), "version": version, "event_id": event_id.as_str(),
            "amount_minor": amount_minor, "balance_minor": balance_minor, "counterparty": counterparty});
        let (mut record_action, mut reason) = (action.name(), "NULL".to_owned());
        if let Err(rejection) = outcome {
            (record_action, reason) = ("reject", format!("'{rejection}'"));
            data["action"] = action.name().into();
            data["reason"] = rejection.to_string().into();
        }
        format!(
            "INSERT INTO wallet_locks VALUES ('{id}') ON CONFLICT DO NOTHING;
             INSERT INTO wallet_events (event_id, wallet_id, version, balance_minor, accepted, reason, action, amount_minor,
                                        counterparty)
             VALUES ('{event_id}', '{id}', {version}, {balance_minor}, {}, {reason}, '{action}', {amount_minor},
                     '{counterparty}');
             INSERT INTO staged_log_records (object, action, data) VALUES ('wallet', '{record_action}', '{data}');",
            outcome.is_ok()
        )
    }
}

/// Two wallets with every kind of event. The first has version 3 and 3.00, the second version 1 and 2.00.
async fn used_world() -> World {
    let world = World::new().await;
    let mut writer = Writer::new(&world);
    writer.debit(0, 500).await;
    writer.credit(0, 600).await;
    writer.transfer(0, 1, 200).await;
    writer.debit(0, 100).await;
    writer.transfer(1, 0, 900).await;
    world
}

/// Executes a statement that the triggers refuse.
async fn forge(world: &World, statement: &str) {
    let forge = format!("SET session_replication_role = replica; {statement}; RESET session_replication_role");
    world.client().batch_execute(&forge).await.unwrap();
}

const FIRST: &str = "wallet 000000000000000000000000001, version";
const SECOND: &str = "wallet 28skwt5B8zTrs6AqBWrSgCHLcRL, version";

#[tokio::test]
async fn true_wallets_are_equal_before_and_after_their_records_are_reaped() {
    let world = used_world().await;
    let line = "wallets: 2, with 500 cents; 6 events, 2 of them rejected, and 6 records: equal";
    assert!(equal(&world, &[]).await.contains(line));
    world.drain_streamer(&mut world.streamer()).await;
    world.drain_consumer(&mut world.consumer("c0")).await;
    assert!(equal(&world, &[]).await.contains(line));
    Process::start(&world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
    reap(&world, &["--keep", "0s"]).await;
    let output = equal(&world, &[]).await;
    assert!(output.contains("6 events, 2 of them rejected, and 0 records: equal"), "{output}");
    assert!(equal(&world, &["--from", "start"]).await.contains(line), "the history has the records");
}

#[tokio::test]
async fn a_false_balance_is_told_by_its_event_by_its_record_and_by_the_sum() {
    let world = used_world().await;
    forge(&world, "UPDATE wallet_events SET balance_minor = balance_minor + 1 WHERE version = 3").await;
    let at = format!("{FIRST} 3, event ");
    let differences = [
        (&*at, "its balance is 3.01, and by the event before it should be 3.00 (W2)"),
        (&at, "its record in the log has another data.balance_minor"),
        ("wallets: ", "the balances are 5.01 together, and the accepted credits less the accepted debits 5.00 (W4)"),
    ];
    different(&world, &differences).await;

    let world = used_world().await;
    let drop = "ALTER TABLE wallet_events DROP CONSTRAINT wallet_events_balance_in_range;
                UPDATE wallet_events SET balance_minor = -100 WHERE version = 3";
    forge(&world, drop).await;
    let differences = [
        (&*at, "its balance is below 0 (W3)"),
        (&at, "its balance is -1.00, and by the event before it should be 3.00 (W2)"),
        (&at, "its record in the log has another data.balance_minor"),
        ("wallets: ", "the balances are 1.00 together"),
    ];
    different(&world, &differences).await;
}

#[tokio::test]
async fn a_missing_event_is_told_and_so_is_the_half_of_a_transfer() {
    let transfer =
        "a transfer of 2.00 from 000000000000000000000000001 to 28skwt5B8zTrs6AqBWrSgCHLcRL lacks its other event";
    let no_event = ("wallets: a record transfer {", "there is no such event (W1)");
    let world = used_world().await;
    forge(&world, "DELETE FROM wallet_events WHERE version = 2").await;
    let gap = (FIRST, "3, event ");
    let half = format!("{SECOND} 1: ");
    different(&world, &[gap, (&half, transfer), no_event]).await;

    // The newest state of the receiver: money is missing.
    let world = used_world().await;
    forge(&world, "DELETE FROM wallet_events WHERE version = 1 AND accepted AND action = 'transfer'").await;
    let half = format!("{FIRST} 2: ");
    let sums =
        ("wallets: ", "the balances are 3.00 together, and the accepted credits less the accepted debits 5.00 (W4)");
    let rejected = (SECOND, "it was rejected, and the wallet had version 0 (W2)");
    different(&world, &[(&half, transfer), sums, no_event, rejected]).await;
}

#[tokio::test]
async fn a_decision_that_is_not_that_of_the_api_is_told() {
    let world = used_world().await;
    forge(&world, "UPDATE wallet_events SET reason = 'no' WHERE version = 0").await;
    let wanted =
        "it was rejected (no), and should be rejected: debit of 5 rejected; would cause balance of -5 (overdrawn)";
    different(&world, &[(FIRST, wanted), (FIRST, "its record in the log has another data.reason")]).await;

    let world = used_world().await;
    let insert = "INSERT INTO wallet_events
                      (event_id, wallet_id, version, balance_minor, accepted, reason, action, amount_minor)
                  VALUES ('29p8aA0XrY2slsqmEyNzBlS7f64', '000000000000000000000000001', 3, 300, false, 'no', 'debit', -100)";
    world.client().batch_execute(insert).await.unwrap();
    let event = format!("{FIRST} 3, event 29p8aA0XrY2slsqmEyNzBlS7f64: ");
    let differences =
        [(&*event, "it was rejected (no), and should be accepted"), (&event, "it has no record in the log (W1)")];
    different(&world, &differences).await;
}

/// A transfer is also rejected if the receiver would have too much. Its event does not say what the receiver had.
#[tokio::test]
async fn a_transfer_that_the_receiver_could_not_take_is_a_true_rejection() {
    let world = World::new().await;
    let mut writer = Writer::new(&world);
    // Nearly all that a wallet can have. It took one credit, which no client can make.
    let rich = State { version: 1, balance_minor: 9_007_100_000_000_000 };
    let credit = wallet::Event { action: Action::Credit, amount_minor: rich.balance_minor, outcome: Ok(()) };
    let sql = writer.add(1, &credit, "world");
    world.client().batch_execute(&sql).await.unwrap();
    writer.credit(0, 100_000_000_000).await;
    writer.transfer(0, 1, 99_254_740_992).await;
    let too_large = (SECOND, "its amount is too large");
    different(&world, &[too_large]).await;
    let other = "UPDATE wallet_events SET reason = replace(reason, '90071992547409.92', '90071992547409.93')
                 WHERE NOT accepted";
    forge(&world, other).await;
    different(&world, &[too_large, (FIRST, "and should be accepted"), (FIRST, "has another data.reason")]).await;
}

#[tokio::test]
async fn a_wallet_that_cannot_be_locked_is_told() {
    let world = used_world().await;
    forge(&world, "DELETE FROM wallet_locks WHERE wallet_id = '000000000000000000000000001'").await;
    different(&world, &[(FIRST, "3: it has events, and no row in wallet_locks")]).await;
}

#[tokio::test]
async fn records_that_are_missing_repeated_or_false_are_told() {
    let copy =
        "INSERT INTO staged_log_records (object, action, data) SELECT object, action, data FROM staged_log_records";
    let change =
        r#"UPDATE staged_log_records SET action = 'credit', data = replace(data::text, '"world"', '"other"')::json"#;
    for (statement, words) in [
        ("DELETE FROM staged_log_records", "it has no record in the log (W1)"),
        (copy, "it has 2 records in the log"),
        (change, "its record in the log has another action, data.counterparty"),
    ] {
        let world = used_world().await;
        forge(&world, &format!("{statement} WHERE object = 'wallet' AND action = 'debit'")).await;
        different(&world, &[(&format!("{FIRST} 3, event "), words)]).await;
    }
    // Records that no program of this project stages. Postgres cannot read the first.
    let world = used_world().await;
    for data in [r#"{"event_id":"\u0000"}"#, "[1]", r#"{"event_id":7}"#] {
        let stage =
            format!("INSERT INTO staged_log_records (object, action, data) VALUES ('wallet', 'credit', '{data}')");
        world.client().batch_execute(&stage).await.unwrap();
    }
    different(&world, &[("wallets: a record credit ", "there is no such event (W1)"); 3]).await;
}

/// The records of a wallet are in the order of its versions: those after a retained one must be there.
#[tokio::test]
async fn a_missing_record_is_told_after_others_were_reaped() {
    let world = World::new().await;
    let mut writer = Writer::new(&world);
    writer.credit(0, 100).await;
    world.drain_streamer(&mut world.streamer()).await;
    world.drain_consumer(&mut world.consumer("c0")).await;
    reap(&world, &["--keep", "0s"]).await;
    for _ in 0..3 {
        writer.credit(0, 100).await;
    }
    assert!(equal(&world, &[]).await.contains("4 events, 0 of them rejected, and 3 records: equal"));
    forge(&world, "DELETE FROM staged_log_records WHERE data->>'version' = '3'").await;
    different(&world, &[(FIRST, "it has no record in the log (W1)")]).await;
}
