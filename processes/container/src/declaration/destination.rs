//! Destinations: their common settings, and those of their kinds.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use stream::args::parse_redis_url;
use toml::Spanned;
use url::Url;

use super::complaint::Span;
use super::entries::{DestinationEntry, File, KindName};
use super::kind::{Kind, Secret};
use super::own::{self, OwnTables};
use super::values::Variables;
use crate::units::TIME_OUT_MAX;
use crate::webhook::{Reach, check_url};

/// The time-out of a destination that declares none.
const TIME_OUT: Duration = Duration::from_secs(10);

/// The most units that a destination stores at one time. Each may hold a connection or an open file.
pub const CONCURRENCY_MAX: usize = 1024;

/// The units at one time of a destination that declares no number.
const CONCURRENCY: usize = 16;

/// The longest name of a table, as in Postgres, and of a prefix in Redis.
const PLACE_LEN_MAX: usize = 63;

/// A destination, as the file declares it.
#[derive(Debug, Clone)]
pub struct DestinationDeclaration {
    /// Its name, unique in the file.
    pub name: String,
    /// How and where it stores.
    pub kind: Kind,
    /// The attachment that it stores. It declines a unit that does not have this attachment. `None`: it stores the document.
    pub takes: Option<String>,
    /// How long a store or an undo may take, at most [`TIME_OUT_MAX`].
    pub time_out: Duration,
    /// How many units it stores at one time, from 1 to [`CONCURRENCY_MAX`].
    pub concurrency: usize,
    /// It finishes the units that it has, and gets no new units.
    pub retired: bool,
}

impl DestinationDeclaration {
    /// As [`Kind::fingerprint`].
    pub fn fingerprint(&self) -> [u8; 32] {
        self.kind.fingerprint()
    }
}

impl fmt::Display for DestinationDeclaration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let takes = self.takes.as_ref().map(|part| format!(", takes {part}")).unwrap_or_default();
        let time_out = humantime::format_duration(self.time_out);
        let retired = if self.retired { ", retired" } else { "" };
        write!(
            f,
            "destination {}: {}{takes}, {} at once, time-out {time_out}{retired}",
            self.name, self.kind, self.concurrency
        )
    }
}

/// The destinations of the file that have no fault.
pub(super) fn check_all(
    file: &File,
    mut own: OwnTables<'_>,
    values: &mut Variables<'_, '_>,
) -> BTreeMap<String, DestinationDeclaration> {
    let mut checked = BTreeMap::new();
    let mut taken: HashMap<[u8; 32], &str> = HashMap::new();
    // In the order of the file, so that the second of two at the same place is refused.
    let mut entries: Vec<_> = file.destination.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    for (name, entry) in entries {
        if !entry.get_ref().retired && !is_named(file, name.get_ref()) {
            let fault =
                format!("no resource names the destination {:?}: name it, or add retired = true", name.get_ref());
            values.faults.add(Some(name.span()), fault);
        }
        let Some(destination) = check(name, entry, &mut own, values) else { continue };
        if let Some(first) = taken.insert(destination.fingerprint(), name.get_ref()) {
            // Its undo would remove units that the first has stored.
            let fault = format!("{} stores at the same place as {first}: give it a place of its own", destination.name);
            values.faults.add(Some(name.span()), fault);
        }
        checked.insert(destination.name.clone(), destination);
    }
    checked
}

fn is_named(file: &File, name: &str) -> bool {
    let named = file.resource.iter().flat_map(|resource| resource.destinations.get_ref());
    named.map(Spanned::get_ref).any(|named| named == name)
}

fn check(
    name: &Spanned<String>,
    entry: &Spanned<DestinationEntry>,
    own: &mut OwnTables<'_>,
    values: &mut Variables<'_, '_>,
) -> Option<DestinationDeclaration> {
    let (at, entry) = (name.span(), entry.get_ref());
    let own = own.remove(name.get_ref());
    if own.is_none() {
        for (key, span) in entry.foreign_to(entry.kind.get_ref()) {
            values
                .faults
                .add(Some(span), format!("the kind {} has no `{key}`: take it out", entry.kind.get_ref().name()));
        }
    }
    let name = values.name("destination", name);
    let takes = match &entry.takes {
        Some(part) => values.word("takes", part).map(Some),
        None => Some(None),
    };
    let kind = match (entry.kind.get_ref(), own) {
        (KindName::Rows, _) => rows(entry, at, values),
        (KindName::Files, _) => files(entry, at, values),
        (KindName::Board, _) => board(entry, at, values),
        (KindName::Webhook, _) => webhook(entry, at, values),
        (KindName::Other(_), Some(own)) => own::make(own, takes.clone().flatten(), at, values),
        (KindName::Other(name), None) => {
            let known = KindName::NAMES.join(", ");
            let fault = format!(
                "the kind {name:?} is unknown to this program: give one of {known}, or start the program that has it"
            );
            values.refuse(entry.kind.span(), fault)
        }
    };
    let time_out = match &entry.time_out {
        Some(text) => values.time("time_out", text, TIME_OUT_MAX),
        None => Some(TIME_OUT),
    };
    let concurrency = match &entry.concurrency {
        Some(number) => concurrency(number, values),
        None => Some(CONCURRENCY),
    };
    let (name, kind, takes) = (name?, kind?, takes?);
    Some(DestinationDeclaration {
        name,
        kind,
        takes,
        time_out: time_out?,
        concurrency: concurrency?,
        retired: entry.retired,
    })
}

fn concurrency(number: &Spanned<i64>, values: &mut Variables<'_, '_>) -> Option<usize> {
    let count = usize::try_from(*number.get_ref()).ok().filter(|count| (1..=CONCURRENCY_MAX).contains(count));
    let fault = || format!("`concurrency` is {}: give a number from 1 to {CONCURRENCY_MAX}", number.get_ref());
    count.or_else(|| values.refuse(number.span(), fault()))
}

/// The text of a key that the kind needs. `at` is where the destination stands.
fn needed<'e>(
    key: &str,
    text: &'e Option<Spanned<String>>,
    (kind, at): (&KindName, &Span),
    values: &mut Variables<'_, '_>,
) -> Option<&'e Spanned<String>> {
    let fault = || format!("the kind {} needs `{key}`: add it", kind.name());
    text.as_ref().or_else(|| values.refuse(at.clone(), fault()))
}

fn rows(entry: &DestinationEntry, at: Span, values: &mut Variables<'_, '_>) -> Option<Kind> {
    let text = needed("table", &entry.table, (entry.kind.get_ref(), &at), values)?;
    let table = values.filled(text)?;
    // The name becomes part of statements.
    let is_table = table.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && table.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && table.len() <= PLACE_LEN_MAX;
    if is_table {
        return Some(Kind::Rows { table });
    }
    let fault =
        format!("`table` is no name: give at most {PLACE_LEN_MAX} lower-case letters, digits and _, no digit first");
    values.refuse(text.span(), fault)
}

fn files(entry: &DestinationEntry, at: Span, values: &mut Variables<'_, '_>) -> Option<Kind> {
    let text = needed("folder", &entry.folder, (entry.kind.get_ref(), &at), values)?;
    let folder = values.filled(text)?;
    if entry.takes.is_none() {
        let fault = "the kind files needs `takes`: add it, with the name of an attachment";
        return values.refuse(at, fault);
    }
    // A relative path is another place for a process that starts in another folder.
    let Ok(folder) = std::path::absolute(&folder) else {
        return values.refuse(text.span(), "`folder` is no path: give a path such as ${CONTAINER_DATA}/photos");
    };
    // The components are taken one by one, because `photos/` and `photos` are the same place.
    let folder: PathBuf = folder.components().collect();
    match (values.outside.refuse_folder)(&folder) {
        None => Some(Kind::Files { folder }),
        Some(fault) => values.refuse(text.span(), format!("`folder` cannot be used: {fault}")),
    }
}

fn board(entry: &DestinationEntry, at: Span, values: &mut Variables<'_, '_>) -> Option<Kind> {
    let text = needed("redis", &entry.redis, (entry.kind.get_ref(), &at), values);
    let redis = text.and_then(|text| {
        let url = values.named("redis", text)?;
        match parse_redis_url(&url) {
            Ok(redis) => Some(redis),
            Err(why) => values.refuse(text.span(), format!("{} is no URL of Redis: {why}", text.get_ref())),
        }
    });
    let text = needed("prefix", &entry.prefix, (entry.kind.get_ref(), &at), values);
    let prefix = text.and_then(|text| {
        let prefix = values.filled(text)?;
        if (1..=PLACE_LEN_MAX).contains(&prefix.len()) && prefix.chars().all(|c| c.is_ascii_graphic()) {
            return Some(prefix);
        }
        let fault = format!("`prefix` has no key: give 1 to {PLACE_LEN_MAX} letters, digits and signs, without blanks");
        values.refuse(text.span(), fault)
    });
    Some(Kind::Board { redis: redis?, prefix: prefix? })
}

fn webhook(entry: &DestinationEntry, at: Span, values: &mut Variables<'_, '_>) -> Option<Kind> {
    let text = needed("url", &entry.url, (entry.kind.get_ref(), &at), values);
    let url = text.and_then(|text| {
        let url = Url::parse(&values.filled(text)?).ok().filter(is_address);
        let fault = "`url` is no address of a server: give a URL such as https://example.com/notices, without user, \
                     password and #";
        url.or_else(|| values.refuse(text.span(), fault))
    });
    let text = needed("secret", &entry.secret, (entry.kind.get_ref(), &at), values);
    let secret = text.and_then(|text| match Secret::new(values.named("secret", text)?) {
        Ok(secret) => Some(secret),
        Err(why) => values.refuse(text.span(), format!("{} is no secret of a webhook: {why}", text.get_ref())),
    });
    let allow_private = entry.allow_private.as_ref().is_some_and(|flag| *flag.get_ref());
    let (url, secret) = (url?, secret?);
    let reach = if allow_private { Reach::Private } else { Reach::Public };
    match check_url(&url, reach) {
        Ok(()) => Some(Kind::Webhook { url, secret, allow_private }),
        Err(error) => values.refuse(entry.url.as_ref()?.span(), format!("`url` cannot be used: {error:#}")),
    }
}

/// Whether it is a URL of a server. The user and the password would be logged, and a fragment is not sent.
fn is_address(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.fragment().is_none()
}
