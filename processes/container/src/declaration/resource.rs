//! Resources: the paths that the container serves.

use std::collections::BTreeSet;
use std::fmt;

use bytesize::ByteSize;
use toml::Spanned;

use super::entries::{AttachmentEntry, File, KindName, ResourceEntry};
use super::values::Variables;

/// The least and the greatest `body_max`, in bytes. The least is the size of the largest document.
pub const BODY_MAX_LIMITS: (u64, u64) = (64 << 10, 1 << 30);

/// The longest body of a resource that declares none, in bytes.
const BODY_MAX: u64 = 10 << 20;

/// The names whose paths the container needs itself.
const RESERVED: [&str; 1] = ["units"];

/// A kind of thing that clients put into the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// The path without its slash: `manifests` is served at `POST /manifests`.
    pub name: String,
    /// The field of the document that names the thing which the unit is about. Its value is a string or an integer.
    pub subject: String,
    /// The part of a multipart body that has the document.
    pub document: String,
    /// The destination that `GET` reads, of the kind `rows`. `None`: the resource cannot be read.
    pub reader: Option<String>,
    /// The longest body, in bytes.
    pub body_max: u64,
    /// The destinations of new units, in the order of the file. The retired ones are left out. At least one.
    pub destinations: Vec<String>,
    /// The parts that a multipart body may have beside the document.
    pub attachments: Vec<Attachment>,
}

/// A part of a multipart body, beside the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The name of the part.
    pub name: String,
    /// The content types that are accepted, in lower case, without parameters: `image/png`.
    pub content_types: Vec<String>,
}

impl Resource {
    /// The attachment of this name.
    pub fn attachment(&self, name: &str) -> Option<&Attachment> {
        self.attachments.iter().find(|attachment| attachment.name == name)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, subject, body_max, .. } = self;
        write!(f, "resource {name}: POST /{name} up to {} to {}", ByteSize(*body_max), self.destinations.join(", "))?;
        match &self.reader {
            Some(reader) => write!(f, "; GET /{name}/{{{subject}}} from {reader}"),
            None => Ok(()),
        }
    }
}

/// The resources of the file that have no fault.
pub(super) fn check_all(file: &File, values: &mut Variables<'_, '_>) -> Vec<Resource> {
    no_doubles("resource", file.resource.iter().map(|entry| &entry.name), values);
    file.resource.iter().filter_map(|entry| check(entry, file, values)).collect()
}

fn check(entry: &ResourceEntry, file: &File, values: &mut Variables<'_, '_>) -> Option<Resource> {
    let name = values.name("resource", &entry.name).and_then(|name| {
        let fault = || format!("the container needs the path /{name} itself: give the resource another name");
        if RESERVED.contains(&name.as_str()) { values.refuse(entry.name.span(), fault()) } else { Some(name) }
    });
    let subject = values.word("subject", &entry.subject);
    let document = values.word("document", &entry.document);
    let body_max = match &entry.body_max {
        Some(text) => values.size("body_max", text, BODY_MAX_LIMITS),
        None => Some(BODY_MAX),
    };
    let parts = std::iter::once(&entry.document).chain(entry.attachment.iter().map(|attachment| &attachment.name));
    no_doubles("part", parts, values);
    let attachments: Vec<Option<Attachment>> =
        entry.attachment.iter().map(|attachment| check_attachment(attachment, values)).collect();
    let destinations = check_destinations(entry, file, values);
    check_reader(entry, file, values);
    Some(Resource {
        name: name?,
        subject: subject?,
        document: document?,
        reader: entry.reader.as_ref().map(|reader| reader.get_ref().clone()),
        body_max: body_max?,
        destinations,
        attachments: attachments.into_iter().collect::<Option<_>>()?,
    })
}

fn check_attachment(entry: &AttachmentEntry, values: &mut Variables<'_, '_>) -> Option<Attachment> {
    let (name, types) = (values.word("name", &entry.name), entry.content_types.get_ref());
    if types.is_empty() {
        let fault = "`content_types` is empty: give a content type such as image/png";
        values.faults.add(Some(entry.content_types.span()), fault);
    }
    no_doubles("content type", types.iter(), values);
    for text in types.iter().filter(|text| !is_content_type(text.get_ref())) {
        let fault = format!(
            "{:?} is no content type: give a type and a subtype such as image/png, in lower case",
            text.get_ref()
        );
        values.faults.add(Some(text.span()), fault);
    }
    Some(Attachment { name: name?, content_types: types.iter().map(|text| text.get_ref().clone()).collect() })
}

/// Whether it is a type and a subtype, without wildcard and parameters.
fn is_content_type(text: &str) -> bool {
    let is_token = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "!#$&-^_.+".contains(c);
    let parts = text.split('/').filter(|part| !part.is_empty() && part.chars().all(is_token));
    parts.count() == 2 && text.matches('/').count() == 1
}

/// The destinations of new units.
fn check_destinations(entry: &ResourceEntry, file: &File, values: &mut Variables<'_, '_>) -> Vec<String> {
    let named = entry.destinations.get_ref();
    no_doubles("destination", named.iter(), values);
    let (mut active, mut first_rows) = (Vec::new(), None);
    for name in named {
        let Some(declared) = file.destination.get(name) else {
            let fault =
                format!("the destination {:?} is not declared: add [destination.{}]", name.get_ref(), name.get_ref());
            values.faults.add(Some(name.span()), fault);
            continue;
        };
        let declared = declared.get_ref();
        if declared.retired {
            continue;
        }
        // `GET` reads one table, so that table needs all committed units of a thing.
        if *declared.kind.get_ref() == KindName::Rows
            && let Some(first) = first_rows.replace(name.get_ref())
            && first != name.get_ref()
        {
            let fault = format!(
                "{} and {first} are both of the kind rows, and a resource has at most one: take one out",
                name.get_ref()
            );
            values.faults.add(Some(name.span()), fault);
        }
        if let Some(part) = &declared.takes
            && !entry.attachment.iter().any(|attachment| attachment.name.get_ref() == part.get_ref())
        {
            let fault = format!(
                "{} takes {:?}, which is no attachment of this resource: add the attachment, or take the destination out",
                name.get_ref(),
                part.get_ref()
            );
            values.faults.add(Some(name.span()), fault);
        }
        active.push(name.get_ref().clone());
    }
    check_boards(entry, file, &active, values);
    if named.is_empty() || (active.is_empty() && named.iter().all(|name| file.destination.contains_key(name))) {
        let fault = "no destination would store a new unit: name a destination that is not retired";
        values.faults.add(Some(entry.destinations.span()), fault);
    }
    active
}

/// A board is built again from the table of the resource when Redis forgets it.
fn check_boards(entry: &ResourceEntry, file: &File, active: &[String], values: &mut Variables<'_, '_>) {
    let is_of =
        |name: &str, kind| file.destination.get(name).is_some_and(|entry| *entry.get_ref().kind.get_ref() == kind);
    if active.iter().any(|name| is_of(name, KindName::Rows)) {
        return;
    }
    let boards = entry.destinations.get_ref().iter().filter(|name| active.contains(name.get_ref()));
    for board in boards.filter(|name| is_of(name.get_ref(), KindName::Board)) {
        let fault = format!(
            "{} is of the kind board, and is built again from a table when Redis forgets: add a destination of the kind rows",
            board.get_ref()
        );
        values.faults.add(Some(board.span()), fault);
    }
}

fn check_reader(entry: &ResourceEntry, file: &File, values: &mut Variables<'_, '_>) {
    let Some(reader) = &entry.reader else { return };
    let is_named = entry.destinations.get_ref().iter().any(|name| name.get_ref() == reader.get_ref());
    let is_rows =
        |name| file.destination.get(name).is_some_and(|entry| *entry.get_ref().kind.get_ref() == KindName::Rows);
    if !is_named || !is_rows(reader) {
        let fault =
            "`reader` is no destination of the kind rows of this resource: name such a destination, or take it out";
        values.faults.add(Some(reader.span()), fault);
    }
}

/// Refuses the second of two equal names.
fn no_doubles<'e>(key: &str, names: impl Iterator<Item = &'e Spanned<String>>, values: &mut Variables<'_, '_>) {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name.get_ref()) {
            let fault = format!("the {key} {:?} is declared twice: take one out", name.get_ref());
            values.faults.add(Some(name.span()), fault);
        }
    }
}
