//! Receipts for booked rides. A consumer of the log notes each receipt in the transaction that moves its checkpoint, so each
//! receipt is noted once. A second loop delivers the noted receipts and marks them.

mod config;
mod deliver;
mod receipt;
mod refusal;
mod sink;

use std::time::Duration;

use anyhow::{Result, anyhow};
use common::shutdown::CancellationToken;
use common::stay_down::StayDown;
use consumer::{ReceiptsFold, Registry, row_fold};
use monitor::{declare_counter, declare_gauge};

pub use config::Config;
use sink::Sink;

/// The only fold of this process.
const FOLDS: Registry = Registry(&[row_fold::<ReceiptsFold>]);

/// Receipts that cannot be noted or marked for so long make the process unready.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Statements that succeed only while receipts can be noted and delivered, and change no row.
const TRIAL: [&str; 3] = [
    "-- receipts::try_note
     INSERT INTO receipts (ride_id, partition, record_offset, data) SELECT NULL, NULL, NULL, NULL WHERE false",
    "-- receipts::try_mark
     UPDATE receipts SET delivered_at = delivered_at, next_attempt_at = next_attempt_at, attempt_count = 0,
            message_id = NULL, last_error = NULL WHERE false",
    "-- receipts::try_address\nSELECT email FROM users WHERE false",
];

/// Notes and delivers until `shutdown`; with `--drain`, until the head of the log is reached and every receipt is delivered.
///
/// # Errors
/// The sink cannot be set up; otherwise as [`consumer::run`].
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    if config.consumer.state_database_url.is_some() {
        let refusal = anyhow!("receipts are noted in the log's own database: leave STATE_DATABASE_URL out");
        return Err(StayDown(refusal).into());
    }
    if config.consumer.administers() {
        return consumer::run(config.consumer, FOLDS, shutdown).await;
    }
    let sink = Sink::new(&config).map_err(StayDown)?;
    let health = monitor::start(&config.consumer.process.monitor).await?;
    declare_counter(
        "rocket_rides_receipts_delivered_total",
        "Receipts that the folder or the mail server has taken",
        &[],
    );
    declare_counter("rocket_rides_receipts_refused_total", "Attempts that it has refused", &[]);
    let put_aside = "Receipts that were refused for the last time; at most 1,000 are counted";
    declare_gauge("rocket_rides_receipts_put_aside", put_aside, &[]);
    let postgres = &config.consumer.postgres.database_url;
    health.ask_postgres(postgres, health.pulse("receipts", AGE_MAX), |client| {
        Box::pin(monitor::try_statements(client, &TRIAL))
    });
    let noted = shutdown.child_token();
    let delivering = deliver::keep_delivering(&config.consumer, &sink, &noted, &shutdown);
    let noting = async {
        let folded = consumer::run_watched(config.consumer.clone(), FOLDS, &health, shutdown.clone()).await;
        noted.cancel();
        folded
    };
    let (folded, delivered) = tokio::join!(noting, delivering);
    folded.and(delivered)
}
