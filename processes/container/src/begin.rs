//! A request whose file is complete becomes a unit, and its first attempt begins.

use tokio::sync::oneshot;

use crate::fan_out::End;
use crate::hand::Hand;
use crate::incoming::Incoming;
use crate::metrics;
use crate::points::{Point, pass};
use crate::units::{Accepted, NewUnit, Unwritten};

/// The outcome of a request.
pub(crate) enum Begun {
    /// The first attempt of a new unit is made. The receiver gets its end.
    Driven { uow: i64, ended: oneshot::Receiver<End> },
    /// The new unit waits for a destination that is away.
    Waits { uow: i64 },
    /// The same request was accepted before.
    Known { uow: i64 },
    /// The client used its key for another request.
    KeyMismatch,
}

impl Hand {
    /// Makes a unit of a request, and begins its first attempt. Both also happen if the client leaves: its unit would otherwise be
    /// leased to a worker that does not exist.
    ///
    /// # Errors
    /// [`Unwritten::Overloaded`]: nothing was begun, and nothing is kept. Otherwise the file stays: the unit may have been made. If it
    /// was not, the file is taken up later.
    pub async fn begin(&self, unit: NewUnit, incoming: Incoming) -> Result<Begun, Unwritten> {
        let hand = self.clone();
        let begun = self.driving.spawn(async move { hand.accept(unit, incoming).await });
        begun.await.unwrap_or_else(|error| Err(Unwritten::Unknown(error.to_string().into())))
    }

    async fn accept(&self, unit: NewUnit, incoming: Incoming) -> Result<Begun, Unwritten> {
        let accepted = self.accepts.write(unit.clone()).await;
        pass(Point::Accepted, &unit.subject);
        if let Ok(Some(accepted)) = &accepted {
            metrics::accepted(accepted);
        }
        match accepted {
            Ok(Some(Accepted::New { uow, .. })) if unit.waits => Ok(Begun::Waits { uow }),
            Ok(Some(Accepted::New { uow, lease })) => {
                Ok(Begun::Driven { uow, ended: self.start(unit, incoming, uow, lease) })
            }
            Ok(Some(Accepted::Known { uow, has_this_file, .. })) => {
                if !has_this_file {
                    self.discard(&unit.spool_name).await;
                }
                Ok(Begun::Known { uow })
            }
            Ok(Some(Accepted::KeyMismatch)) => {
                self.discard(&unit.spool_name).await;
                Ok(Begun::KeyMismatch)
            }
            Ok(None) => Err(Unwritten::Unknown("the unit that has the key could not be read".into())),
            Err(Unwritten::Overloaded) => {
                self.discard(&unit.spool_name).await;
                Err(Unwritten::Overloaded)
            }
            Err(unwritten) => Err(unwritten),
        }
    }
}
