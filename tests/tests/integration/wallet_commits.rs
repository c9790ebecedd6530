//! A COMMIT without a response. The api finds out what was written, so a client without a key is told the truth: 200, or 503
//! after which it may retry.

use tests::{AtCommit, CommitProxy, PrivatePostgres, PrivateRedis, Process, World, wait_until};
use wallet::WalletId;

use crate::wallet_fixture::{Bank, assert_sound};

/// An api that reaches Postgres through the proxy.
struct Proxied {
    world: World,
    proxy: CommitProxy,
    _api: Process,
    bank: Bank,
}

impl Proxied {
    async fn start() -> Self {
        let world = World::new().await;
        let proxy = CommitProxy::start(world.database_url()).await;
        let direct: tokio_postgres::Config = world.database_url_of("api").parse().unwrap();
        let url = proxy.url(direct.get_user().unwrap(), direct.get_dbname().unwrap());
        let (api, bank) = Bank::start_at(&world, &["--database-url", &url]).await;
        Self { world, proxy, _api: api, bank }
    }

    async fn event_count(&self) -> i64 {
        self.world.number("SELECT count(*) FROM wallet_events").await
    }
}

#[tokio::test]
async fn a_lost_commit_was_not_written_and_the_client_may_retry() {
    let proxied = Proxied::start().await;
    let wallet = WalletId::new();
    proxied.bank.credit(wallet, 1).await.accepted();
    proxied.proxy.strike(AtCommit::Lose);
    proxied.bank.credit(wallet, 1).await.refused("unavailable");
    assert!(proxied.proxy.has_struck());
    assert_eq!(proxied.bank.credit(wallet, 1).await.accepted().version(), 2, "it was not written");
    assert_sound(&proxied.world).await;
}

#[tokio::test]
async fn a_commit_whose_response_is_lost_was_written_and_the_client_is_told() {
    let proxied = Proxied::start().await;
    let wallet = WalletId::new();
    proxied.bank.credit(wallet, 1).await.accepted();
    proxied.proxy.strike(AtCommit::LoseResponse);
    let answer = proxied.bank.credit(wallet, 1).await.accepted();
    assert!(proxied.proxy.has_struck());
    assert_eq!(answer.version(), 2);
    let written = format!("SELECT version FROM wallet_events WHERE event_id = '{}'", answer.event_id());
    assert_eq!(proxied.world.number(&written).await, 2, "the answer is true");
    assert_eq!(proxied.bank.credit(wallet, 1).await.accepted().version(), 3);
    assert_sound(&proxied.world).await;
}

#[tokio::test]
async fn a_commit_that_is_still_on_its_way_is_waited_for() {
    let proxied = Proxied::start().await;
    let wallet = WalletId::new();
    proxied.bank.credit(wallet, 1).await.accepted();
    proxied.proxy.strike(AtCommit::Delay);
    let (answer, ()) = tokio::join!(proxied.bank.credit(wallet, 1), async {
        let waits = async || proxied.world.waiting_count().await > 0;
        wait_until("the api waits for the session that has the wallet", waits).await;
        assert_eq!(proxied.event_count().await, 1);
        proxied.proxy.deliver();
    });
    assert_eq!(answer.accepted().version(), 2);
    assert_sound(&proxied.world).await;
}

#[tokio::test]
async fn a_commit_that_never_arrives_holds_the_wallet_for_seconds_only() {
    let proxied = Proxied::start().await;
    let wallet = WalletId::new();
    proxied.bank.credit(wallet, 1).await.accepted();
    proxied.proxy.strike(AtCommit::Delay);
    // The session has the wallet and is idle, as that of an api that was stopped. When it ends, the api knows.
    proxied.bank.credit(wallet, 1).await.refused("unavailable");
    assert_eq!(proxied.bank.credit(wallet, 1).await.accepted().version(), 2, "it was not written");
    assert_sound(&proxied.world).await;
}

#[tokio::test]
async fn while_postgres_is_away_an_unanswered_commit_is_called_unknown() {
    let proxied = Proxied::start().await;
    let wallet = WalletId::new();
    proxied.bank.credit(wallet, 1).await.accepted();
    proxied.proxy.shut(true);
    proxied.proxy.strike(AtCommit::LoseResponse);
    proxied.bank.credit(wallet, 1).await.refused("outcome_unknown");
    wait_until("the event is written", async || proxied.event_count().await == 2).await;
    proxied.proxy.shut(false);
    assert_eq!(proxied.bank.credit(wallet, 1).await.accepted().version(), 3);
    assert_sound(&proxied.world).await;
}

#[tokio::test]
async fn a_commit_that_no_standby_has_confirmed_is_called_unknown() {
    let settings = ["fsync=off", "synchronous_commit=local"];
    let (mut postgres, redis) = (PrivatePostgres::start_with(&settings).await, PrivateRedis::start(&[]).await);
    postgres.run("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'missing'").await;
    postgres.kill().await;
    postgres.start_again().await;
    let world = World::on(&postgres.url(), &redis.url()).await;
    let api: tokio_postgres::Config = world.database_url_of("api").parse().unwrap();
    let wait_for_standbys = format!("ALTER ROLE \"{}\" SET synchronous_commit = on", api.get_user().unwrap());
    world.client().batch_execute(&wait_for_standbys).await.unwrap();
    let (_api, bank) = Bank::start(&world).await;
    let wallet = WalletId::new();

    bank.credit(wallet, 1).await.refused("outcome_unknown");
    let event_count = async || world.number("SELECT count(*) FROM wallet_events").await;
    assert_eq!(event_count().await, 0, "a reader sees what the standby does not have");

    // Without standbys the commit ends.
    postgres.run("postgres", "ALTER SYSTEM SET synchronous_standby_names = ''").await;
    postgres.run("postgres", "SELECT pg_reload_conf()").await;
    wait_until("the event is written", async || event_count().await == 1).await;
    assert_eq!(bank.credit(wallet, 1).await.accepted().version(), 2);
    assert_sound(&world).await;
}

#[tokio::test]
async fn a_session_that_is_ended_during_a_group_credits_nothing_twice() {
    let proxied = Proxied::start().await;
    let wallet = WalletId::new();
    let mut accepted_count = 0;
    let (_, ()) = tokio::join!(
        async {
            while accepted_count < 300 {
                let answer = proxied.bank.credit(wallet, 1).await;
                assert!(answer.status.is_success() || answer.code() == "unavailable", "{answer:?}");
                accepted_count += i64::from(answer.status.is_success());
            }
        },
        async {
            let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                       WHERE datname = current_database() AND application_name = 'api' AND state <> 'idle'";
            let mut ended_count = 0;
            while ended_count < 20 {
                ended_count += proxied.world.number(end).await;
                tokio::task::yield_now().await;
            }
        }
    );
    assert_eq!(proxied.event_count().await, accepted_count, "every credit was answered as it was written");
    assert_sound(&proxied.world).await;
}
