//! The Procfile: one process per line, `name: command`. Foreman and similar runners read the same file.

use anyhow::{Result, ensure};

/// A process to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, shown before each line of its output.
    pub name: String,
    /// The command line, for a shell.
    pub command: String,
}

/// Reads a Procfile. Empty lines and lines that begin with `#` are passed over.
///
/// # Errors
/// A line is not `name: command`, or a name occurs twice.
pub fn parse_procfile(text: &str) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, command) = line.split_once(':').unwrap_or(("", ""));
        let (name, command) = (name.trim(), command.trim());
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        ensure!(is_name && !command.is_empty(), "line {} of the Procfile is not `name: command`: {line}", index + 1);
        ensure!(entries.iter().all(|entry| entry.name != name), "the Procfile has two processes named {name}");
        entries.push(Entry { name: name.to_owned(), command: command.to_owned() });
    }
    ensure!(!entries.is_empty(), "the Procfile names no process");
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_process() {
        let entries = parse_procfile("# all of it\napi: bin/api\n\nconsumer0: bin/consumer c:0 \n").unwrap();
        let of = |name: &str, command: &str| Entry { name: name.into(), command: command.into() };
        assert_eq!(entries, [of("api", "bin/api"), of("consumer0", "bin/consumer c:0")]);
    }

    #[test]
    fn a_line_that_is_no_process_is_named() {
        for (text, complaint) in [
            ("api bin/api", "line 1 of the Procfile is not `name: command`: api bin/api"),
            ("api:", "line 1 of the Procfile is not `name: command`: api:"),
            ("a: b\na: c", "the Procfile has two processes named a"),
            ("# nothing", "the Procfile names no process"),
        ] {
            assert_eq!(parse_procfile(text).unwrap_err().to_string(), complaint);
        }
    }
}
