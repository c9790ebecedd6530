//! The declaration: which resources the container serves, and in which destinations it stores them. A file declares them, so
//! that a destination is added by configuration alone.
//!
//! ```text
//! container.toml ──toml, serde──▶ entries with their lines ──checked, variables filled in──▶ Declaration
//!                                                             └──▶ Complaint: one line per fault
//! ```
//!
//! Every fault is refused with its line before the container accepts a request: a request that was accepted must have
//! destinations that can store it.

mod complaint;
mod destination;
mod entries;
mod folder;
mod kind;
mod own;
mod resource;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use toml::de::DeTable;

use complaint::Faults;
pub use complaint::{Complaint, LEN_MAX};
pub use destination::{CONCURRENCY_MAX, DestinationDeclaration};
pub use kind::{Kind, Secret};
pub use own::{Own, OwnKind, Settings, SettingsError};
pub use resource::{Attachment, BODY_MAX_LIMITS, Resource};
use values::{Outside, Variables};

/// The resources and destinations of a container.
#[derive(Debug, Clone)]
pub struct Declaration {
    /// In the order of the file. At least one.
    pub resources: Vec<Resource>,
    /// By name.
    pub destinations: BTreeMap<String, DestinationDeclaration>,
}

impl Declaration {
    /// Reads the file at `path`. `kinds` are those that the program adds to the container's own. `env` returns the value of an
    /// environment variable, for example [`environment`].
    ///
    /// # Errors
    /// The file cannot be read, or has faults. Print the lines of the complaint, and stay down until a person changes the file.
    pub fn read(path: &Path, kinds: &[OwnKind], env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Complaint> {
        let text = complaint::read(path)?;
        Self::check(path, &text, kinds, &Outside { env, refuse_folder: &folder::refuse })
    }

    /// Reads `text`, which is the content of the file at `path`. Whether its folders can be used is not checked.
    ///
    /// # Errors
    /// As [`Declaration::read`].
    pub fn parse(
        path: &Path,
        text: &str,
        kinds: &[OwnKind],
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Complaint> {
        Self::check(path, text, kinds, &Outside { env, refuse_folder: &|_| None })
    }

    fn check(path: &Path, text: &str, kinds: &[OwnKind], outside: &Outside<'_>) -> Result<Self, Complaint> {
        let mut faults = Faults::new(path, text);
        let parsed = DeTable::parse(text).and_then(|mut table| {
            let own = own::take_out(table.get_mut(), kinds);
            Ok((entries::File::deserialize(toml::Deserializer::from(table))?, own))
        });
        let (file, own) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                // The parser stops at its first fault.
                faults.add(error.span(), advised(error.message()));
                return Err(faults.into_complaint());
            }
        };
        if file.resource.is_empty() {
            faults.add(None, "it declares no resource: add one under [[resource]]");
        }
        let mut values = Variables { outside, faults: &mut faults };
        let destinations = destination::check_all(&file, own, &mut values);
        let resources = resource::check_all(&file, &mut values);
        if faults.is_empty() { Ok(Self { resources, destinations }) } else { Err(faults.into_complaint()) }
    }

    /// The names of the destinations that store by themselves: all but the rows of a verdict.
    pub fn storing(&self) -> impl Iterator<Item = &str> {
        let storing = self.destinations.values().filter(|one| !matches!(one.kind, Kind::Rows { .. }));
        storing.map(|one| one.name.as_str())
    }
}

/// The message of the parser, with what to change.
fn advised(message: &str) -> String {
    if message == "invalid type: map, expected a sequence" {
        return "this is a list: write its name in double brackets, as in [[resource]]".to_owned();
    }
    let advice = match message {
        "duplicate key" => "take one of the two out",
        _ if message.starts_with("missing field") => "add it",
        _ if message.starts_with("unknown field") => "correct its name, or take it out",
        _ => "correct it",
    };
    format!("{message}: {advice}")
}

/// One line per resource and destination, without secrets.
impl fmt::Display for Declaration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let resources = self.resources.iter().map(ToString::to_string);
        let lines: Vec<String> = resources.chain(self.destinations.values().map(ToString::to_string)).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// The value of an environment variable of this process. An empty variable counts as not set.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
