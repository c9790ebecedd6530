//! The flags of every process that books.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use deadpool_postgres::Pool;
use payments::{Stripe, StripeArgs};

use crate::desk::Desk;

/// The payment processor, and how long a booking may take.
#[derive(Debug, Clone, Args)]
pub struct BookingArgs {
    /// The processor that charges for booked rides.
    #[command(flatten)]
    pub stripe: StripeArgs,

    /// How long a booking may take in all before another process may go on with it; the same in every process.
    #[arg(long, env = "CLAIM_WAIT", default_value = "90s", value_parser = humantime::parse_duration)]
    pub claim_wait: Duration,
}

impl BookingArgs {
    /// A desk that takes connections from `pool`.
    ///
    /// # Errors
    /// There is no key, or no certificate authority. Says which setting is missing.
    pub fn desk(&self, pool: Pool) -> Result<Desk> {
        Ok(Desk::new(pool, Stripe::new(&self.stripe)?).with_claim_wait(self.claim_wait))
    }
}
