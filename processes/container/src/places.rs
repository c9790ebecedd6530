//! The destinations of a declaration, opened.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use common::stay_down::StayDown;
use monitor::OrderBook;
use tokio::sync::Semaphore;

use crate::board::Board;
use crate::declaration::{Declaration, DestinationDeclaration, Kind};
use crate::destination::{Attachment, Attachments};
use crate::fan_out::{Place, Way};
use crate::files::Files;
use crate::outage::Interrupted;
use crate::spool::Spooled;
use crate::units::Folders;
use crate::webhook::{Reach, Secret, Webhook};

/// The destinations of a declaration.
#[derive(Default)]
pub(crate) struct Places {
    /// By name.
    pub all: BTreeMap<String, Place>,
    /// Those that are built again when Redis forgets.
    pub boards: Vec<(String, Arc<Board>)>,
    /// The id of each folder, by its path.
    pub folders: Folders,
}

/// Opens each destination. `known` has the ids of the folders that this spool has used before. A destination that has `orders`
/// for outages is wrapped.
///
/// # Errors
/// A folder cannot be used now; with [`StayDown`] if its disk is not mounted, or if an address is not allowed.
pub(crate) async fn open(declaration: &Declaration, known: &Folders, orders: &OrderBook) -> Result<Places> {
    let mut places = Places::default();
    for (name, declared) in &declaration.destinations {
        let way = way(declared, known, &mut places).await.with_context(|| format!("opening the destination {name}"))?;
        let way = match (way, orders.get(name)) {
            (Way::Store(inner), Some(orders)) => Way::Store(Arc::new(Interrupted::new(name, inner, orders.clone()))),
            (Way::Tell(inner), Some(orders)) => Way::Tell(Arc::new(Interrupted::new(name, inner, orders.clone()))),
            (way, _) => way,
        };
        let permits = Semaphore::new(declared.concurrency);
        places.all.insert(name.clone(), Place { way, time_out: declared.time_out, permits });
    }
    Ok(places)
}

async fn way(declared: &DestinationDeclaration, known: &Folders, places: &mut Places) -> Result<Way> {
    Ok(match &declared.kind {
        Kind::Rows { table } => Way::Row(table.clone()),
        Kind::Files { folder } => {
            let takes = declared.takes.clone().context("a destination of the kind files needs `takes`: an attachment");
            let (takes, path) = (takes.map_err(StayDown)?, folder.display().to_string());
            let files = match known.get(&path) {
                Some(id) => Files::open_known(folder, takes, *id).await?,
                None => Files::open(folder, takes).await?,
            };
            places.folders.insert(path, files.id());
            Way::Store(Arc::new(files))
        }
        Kind::Board { redis, prefix } => {
            let board = Arc::new(Board::new(redis.clone(), prefix.clone()));
            places.boards.push((declared.name.clone(), Arc::clone(&board)));
            Way::Store(board)
        }
        Kind::Webhook { url, secret, allow_private } => {
            let reach = if *allow_private { Reach::Private } else { Reach::Public };
            let secret = Secret::parse(secret.expose()).map_err(|error| StayDown(anyhow::Error::msg(error)))?;
            Way::Tell(Arc::new(Webhook::new(url, secret, declared.time_out, reach).map_err(StayDown)?))
        }
        Kind::Own { destination, .. } => Way::Store(Arc::clone(destination)),
    })
}

impl Attachments for Spooled {
    fn find(&self, name: &str) -> Option<Attachment> {
        use futures_util::TryStreamExt;
        let part = self.parts.iter().find(|part| part.head.name == name && name != self.head.document)?;
        let bytes = self.part(name)?;
        let bytes = Box::pin(bytes.map_err(anyhow::Error::from));
        Some(Attachment { content_type: part.head.content_type.clone(), bytes })
    }
}
