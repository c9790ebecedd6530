//! The refusal to go on with the state of another fold.

use std::fmt;

use crate::advice::Whose;
use crate::fold::FoldId;

/// A consumer is registered with another fold than that of the program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct OtherFold {
    whose: Whose,
    registered: Option<(String, i32)>,
    program: FoldId,
}

impl OtherFold {
    pub(crate) fn new(whose: &Whose, registered: Option<&(String, i32)>, program: FoldId) -> Self {
        Self { whose: whose.clone(), registered: registered.cloned(), program }
    }
}

impl fmt::Display for OtherFold {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { whose, registered, program } = self;
        let name = &whose.name;
        match registered {
            None => write!(
                out,
                "consumer {name} is registered without a fold: start its own program once, which notes it, or choose another name \
                 for fold {program}"
            ),
            Some((fold, version)) if fold == program.name => write!(
                out,
                "consumer {name} is registered with fold {fold} version {version}, and this program has version {}: start a \
                 consumer with another name beside it ({}), and unregister this one when the new one has caught up ({})",
                program.version,
                Whose { name: "NEW".to_owned(), ..whose.clone() }.command(&["--fold", fold, "--from", "start"]),
                whose.command(&["--unregister"])
            ),
            Some((fold, version)) => write!(
                out,
                "consumer {name} is registered with fold {fold} version {version}, and not with {program}: start it with \
                 --fold {fold}, or choose another name"
            ),
        }
    }
}
