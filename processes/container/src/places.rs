//! The destinations of a declaration, opened.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::Semaphore;

use crate::board::Board;
use crate::declaration::{Declaration, DestinationDeclaration, Kind};
use crate::destination::{Attachment, Attachments};
use crate::fan_out::{Place, Way};
use crate::files::Files;
use crate::spool::Spooled;
use crate::webhook::{Reach, Secret, Webhook};

/// Opens each destination.
///
/// # Errors
/// A folder cannot be used, or an address is not allowed.
pub(crate) async fn open(declaration: &Declaration) -> Result<BTreeMap<String, Place>> {
    let mut places = BTreeMap::new();
    for (name, declared) in &declaration.destinations {
        let way = way(declared).await.with_context(|| format!("opening the destination {name}"))?;
        let permits = Semaphore::new(declared.concurrency);
        places.insert(name.clone(), Place { way, time_out: declared.time_out, permits });
    }
    Ok(places)
}

async fn way(declared: &DestinationDeclaration) -> Result<Way> {
    Ok(match &declared.kind {
        Kind::Rows { table } => Way::Row(table.clone()),
        Kind::Files { folder } => {
            let takes =
                declared.takes.clone().context("a destination of the kind files needs `takes`: an attachment")?;
            Way::Store(Arc::new(Files::open(folder, takes).await?))
        }
        Kind::Board { redis, prefix } => Way::Store(Arc::new(Board::new(redis.clone(), prefix.clone()))),
        Kind::Webhook { url, secret, allow_private } => {
            let reach = if *allow_private { Reach::Private } else { Reach::Public };
            let secret = Secret::parse(secret.expose()).map_err(anyhow::Error::msg)?;
            Way::Tell(Arc::new(Webhook::new(url, secret, declared.time_out, reach)?))
        }
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
