//! The faults that can be injected into a streamer. Consumers must not notice any of them.

use common::fault::{Dice, Injectable};

/// A fault of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Nothing goes wrong.
    None,
    /// Add every record twice, as `<offset>-0` and `<offset>-1`. Redis takes both.
    SendTwice,
    /// "Fail" after the batch was sent, and send all of it again under the same ids. Redis refuses them.
    ResendBatch,
    /// SIGKILL after a batch is cut, before any of it is published.
    DieAfterAssign,
    /// SIGKILL after half of the pipeline is in the stream.
    DieMidPipeline,
    /// SIGKILL after the whole pipeline is in the stream, before anything else happens.
    DieAfterPublish,
}

impl Fault {
    /// Whether it concerns a page that is published.
    pub(crate) fn is_of_a_page(self) -> bool {
        match self {
            Self::None | Self::DieAfterAssign => false,
            Self::SendTwice | Self::ResendBatch | Self::DieMidPipeline | Self::DieAfterPublish => true,
        }
    }
}

impl Injectable for Fault {
    fn roll(dice: &mut Dice) -> Self {
        if !dice.strikes() {
            Self::None
        } else if dice.coin() {
            Self::SendTwice
        } else {
            Self::ResendBatch
        }
    }

    fn ordered() -> Self {
        Self::SendTwice
    }
}
