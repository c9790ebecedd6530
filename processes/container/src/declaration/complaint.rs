//! Faults of a declaration, each with its file and line.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

/// The longest file of a declaration, in bytes.
pub const LEN_MAX: u64 = 1024 * 1024;

/// Everything that is wrong with a declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint(Vec<String>);

impl Complaint {
    /// One fault each, in the order of the file: `container.toml:12: …`. A fault of the whole file has no line number.
    pub fn lines(&self) -> &[String] {
        &self.0
    }
}

/// All faults in one line, for a log.
impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Complaint {}

/// Where a value stands in the text, in bytes.
pub(super) type Span = Range<usize>;

/// The faults that were found so far.
pub(super) struct Faults<'a> {
    path: &'a Path,
    text: &'a str,
    /// By line. Line 0 is the whole file.
    found: BTreeSet<(usize, String)>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(path: &'a Path, text: &'a str) -> Self {
        Self { path, text, found: BTreeSet::new() }
    }

    /// Adds a fault of the value at `span`, or of the whole file.
    pub(super) fn add(&mut self, span: Option<Span>, fault: impl Into<String>) {
        let line = span.map_or(0, |span| {
            let before = self.text.as_bytes().iter().take(span.start);
            before.filter(|byte| **byte == b'\n').count() + 1
        });
        // A fault stays one line even if it quotes a text of several lines.
        self.found.insert((line, fault.into().replace(['\r', '\n'], " ")));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn into_complaint(self) -> Complaint {
        let path = self.path.display();
        let lines = self.found.into_iter().map(|(line, fault)| match line {
            0 => format!("{path}: {fault}"),
            _ => format!("{path}:{line}: {fault}"),
        });
        Complaint(lines.collect())
    }
}

/// The text of the file at `path`.
pub(super) fn read(path: &Path) -> Result<String, Complaint> {
    let whole = |fault: String| Complaint(vec![format!("{}: {fault}", path.display())]);
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(LEN_MAX + 1).read_to_end(&mut bytes));
    opened.map_err(|error| whole(format!("it cannot be read ({error}): set CONTAINER_CONFIG to a file that can")))?;
    if bytes.len() as u64 > LEN_MAX {
        return Err(whole(format!("it is longer than {LEN_MAX} bytes: make it shorter")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid_len = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid_len].iter().filter(|byte| **byte == b'\n').count() + 1;
        Complaint(vec![format!("{}:{line}: this is no UTF-8: save the file in UTF-8", path.display())])
    })
}
