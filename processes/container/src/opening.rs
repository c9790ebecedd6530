//! The start: the spool and the destinations are opened, and compared with the units in Postgres.

use anyhow::{Result, bail};
use common::stay_down::StayDown;
use monitor::OrderBook;
use process::{Failure, Turn, Work};

use crate::declaration::Declaration;
use crate::places::{self, Places};
use crate::spool::{Spool, SpoolPlace};
use crate::units;

/// Opens everything, as soon as all servers can be reached.
pub(crate) struct Opening<'a> {
    place: &'a SpoolPlace,
    declaration: &'a Declaration,
    pool: &'a deadpool_postgres::Pool,
    orders: &'a OrderBook,
    /// The result.
    pub opened: Option<(Spool, Places)>,
}

impl Work for Opening<'_> {
    type Fault = ();

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        match self.open().await {
            Ok(opened) => {
                self.opened = Some(opened);
                Ok(Turn::idle())
            }
            // A person must act.
            Err(error) if error.is::<StayDown>() => Err(Failure::Final(error)),
            Err(error) => Err(Failure::Passing(error)),
        }
    }
}

impl<'a> Opening<'a> {
    /// Opens this spool, and these destinations.
    pub fn new(
        place: &'a SpoolPlace,
        declaration: &'a Declaration,
        pool: &'a deadpool_postgres::Pool,
        orders: &'a OrderBook,
    ) -> Self {
        Self { place, declaration, pool, orders, opened: None }
    }

    async fn open(&self) -> Result<(Spool, Places)> {
        let spool = open_spool(self.place, self.pool).await?;
        register(self.declaration, self.pool).await?;
        let places = open_places(self.declaration, &spool, self.pool, self.orders).await?;
        Ok((spool, places))
    }
}

/// Opens the destinations. The folders among them must be those that this spool has used before.
async fn open_places(
    declaration: &Declaration,
    spool: &Spool,
    pool: &deadpool_postgres::Pool,
    orders: &OrderBook,
) -> Result<Places> {
    let (client, spool_id) = (connect::postgres::take(pool).await?, spool.id().to_string());
    let places = places::open(declaration, &units::known_folders(&client, &spool_id).await?, orders).await?;
    if !units::register_folders(&client, &spool_id, &places.folders).await? {
        let text = "another process with this spool has just begun with other folders: mount the same disks for both";
        bail!(StayDown(anyhow::anyhow!(text)));
    }
    Ok(places)
}

/// Opens the spool and compares it with the units: a folder that is not mounted looks like a new one.
async fn open_spool(place: &SpoolPlace, pool: &deadpool_postgres::Pool) -> Result<Spool> {
    let spool = Spool::open(place).await?;
    let client = connect::postgres::take(pool).await?;
    let mut open = units::open_spools_at(&client, &spool.place()).await?;
    open.retain(|id| *id != spool.id().to_string());
    if !open.is_empty() {
        let text = format!(
            "units wait for files in another spool that was at {} ({}): mount its folder, or put its files back",
            spool.place(),
            open.join(", ")
        );
        return Err(StayDown(anyhow::anyhow!(text)).into());
    }
    units::register_spool(&client, &spool.id().to_string(), &spool.place()).await?;
    Ok(spool)
}

async fn register(declaration: &Declaration, pool: &deadpool_postgres::Pool) -> Result<()> {
    let client = connect::postgres::take(pool).await?;
    let destinations = declaration.destinations.values();
    let destinations: Vec<_> = destinations.map(|one| (one.name.clone(), one.fingerprint().to_vec())).collect();
    units::register(&client, &destinations).await?;
    for name in units::open_destinations(&client).await? {
        if !declaration.destinations.contains_key(&name) {
            let text = "units are open that have parts there: declare it with retired = true until they are settled";
            bail!(StayDown(anyhow::anyhow!("the destination {name} is not declared, and {text}")));
        }
    }
    Ok(())
}
