//! `.env`: the settings of this machine, one per line. A variable that is set already wins. All programs of `bin/` get their
//! settings from here, so that they read one form.

use std::path::Path;

use anyhow::{Context, Result, anyhow};

/// Sets the variables of a file, if it is there. Call it before the first thread starts.
///
/// # Errors
/// The file cannot be read, or a line is no setting. The error has the number of the line, and not its text, which may be
/// a secret.
pub fn load_env_file(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let text = plain(&text);
    check(&text).map_err(|complaint| anyhow!("{}: {complaint}", path.display()))?;
    dotenvy::from_read(text.as_bytes()).with_context(|| format!("setting the variables of {}", path.display()))
}

/// The text without the marks that editors of Windows leave.
fn plain(text: &str) -> String {
    text.trim_start_matches('\u{feff}').replace("\r\n", "\n")
}

fn check(text: &str) -> Result<(), String> {
    match dotenvy::from_read_iter(text.as_bytes()).find_map(Result::err) {
        None => Ok(()),
        Some(dotenvy::Error::LineParse(line, _)) => {
            // The whole line, or only its value.
            let first = line.lines().next().unwrap_or_default().trim();
            let number = text.lines().position(|other| other.contains(first)).map_or(0, |index| index + 1);
            Err(format!(
                "line {number} is no setting: give NAME=value, and quote a value that has spaces or quotes: NAME='a value'"
            ))
        }
        Some(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        dotenvy::from_read_iter(plain(text).as_bytes()).map(Result::unwrap).collect()
    }

    #[test]
    fn a_value_is_read_in_every_usual_form() {
        for (text, value) in [
            ("A_NAME=a\n", "a"),
            ("A_NAME=a\r\nANOTHER=b\r\n", "a"),
            ("\u{feff}A_NAME=a", "a"),
            ("A_NAME=\"a b\"\r\n", "a b"),
            ("A_NAME='a b'", "a b"),
            ("export A_NAME=a", "a"),
            ("  A_NAME = a  ", "a"),
            ("A_NAME=a # a comment", "a"),
            ("A_NAME='a' # a comment", "a"),
            ("A_NAME=a#b", "a#b"),
            ("A_NAME='pa$$w\\ord'", "pa$$w\\ord"),
            ("A_NAME=\"a \\\"b\\\"\"", "a \"b\""),
            ("A_NAME=\"one\ntwo\"", "one\ntwo"),
            ("A_NAME=\"one\r\ntwo\"", "one\ntwo"),
            (
                "A_NAME=postgres://u:p%20w@h:5432/d?sslmode=require&x=y",
                "postgres://u:p%20w@h:5432/d?sslmode=require&x=y",
            ),
            ("A_NAME=", ""),
            ("# a comment\n\nA_NAME=a", "a"),
        ] {
            assert_eq!(pairs(text)[0], ("A_NAME".to_owned(), value.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_without_its_text() {
        for bad in ["# first\nA=b\nTHE_KEY=sk secret\n", "A=b\n\nTHE KEY=secret", "A=b\r\nB=c\r\nTHE_KEY='secret\r\n"] {
            let complaint = check(&plain(bad)).unwrap_err();
            assert!(complaint.starts_with("line 3 is no setting") && !complaint.contains("secret"), "{complaint}");
        }
    }
}
