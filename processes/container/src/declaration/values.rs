//! Single values: variables are filled in, and names, times and sizes are checked. A value with a fault is `None`, and its fault
//! is added. No complaint quotes the value of a variable, because it may be a secret.

use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use toml::Spanned;

use super::complaint::{Faults, Span};

/// The longest name, as in the columns of `units` and `unit_parts`.
const NAME_LEN_MAX: usize = 100;

/// The machine that the declaration is for.
pub(super) struct Outside<'a> {
    /// The value of an environment variable.
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    /// Why a folder cannot be used. `None`: it can.
    pub(super) refuse_folder: &'a dyn Fn(&Path) -> Option<String>,
}

/// The variables, and the faults that were found.
pub(super) struct Variables<'a, 'b> {
    pub(super) outside: &'a Outside<'a>,
    pub(super) faults: &'a mut Faults<'b>,
}

impl Variables<'_, '_> {
    /// Adds a fault of the value at `span`.
    pub(super) fn refuse<T>(&mut self, span: Span, fault: impl Into<String>) -> Option<T> {
        self.faults.add(Some(span), fault);
        None
    }

    /// The text, with the value of the variable in place of each `${NAME}`.
    pub(super) fn filled(&mut self, text: &Spanned<String>) -> Option<String> {
        let (mut filled, mut rest) = (String::new(), text.get_ref().as_str());
        while let Some((before, after)) = rest.split_once("${") {
            let named = after.split_once('}').filter(|(name, _)| is_variable(name));
            let Some((name, after)) = named else {
                let fault = "${ is not followed by the name of a variable and }: write it as in ${CONTAINER_DATA}";
                return self.refuse(text.span(), fault);
            };
            filled = filled + before + &self.variable(name, text.span())?;
            rest = after;
        }
        Some(filled + rest)
    }

    /// The value of the variable that `text` names.
    pub(super) fn named(&mut self, key: &str, text: &Spanned<String>) -> Option<String> {
        let name = text.get_ref();
        if is_variable(name) {
            self.variable(name, text.span())
        } else {
            // The text may be a secret in the wrong place.
            let fault = format!("`{key}` is the name of an environment variable: give a name such as NOTICES_SECRET");
            self.refuse(text.span(), fault)
        }
    }

    fn variable(&mut self, name: &str, span: Span) -> Option<String> {
        let value = (self.outside.env)(name).filter(|value| !value.is_empty());
        value.or_else(|| self.refuse(span, format!("the variable {name} is not set: set it in the environment")))
    }

    /// A name of a resource or a destination. It stands in paths, keys and metrics.
    pub(super) fn name(&mut self, key: &str, name: &Spanned<String>) -> Option<String> {
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
        };
        if is_name(name.get_ref()) && name.get_ref().len() <= NAME_LEN_MAX {
            return Some(name.get_ref().clone());
        }
        let fault = format!(
            "{key} {:?} is no name: give at most {NAME_LEN_MAX} lower-case letters, digits, - and _, a letter first",
            name.get_ref()
        );
        self.refuse(name.span(), fault)
    }

    /// A text that the documents or the bodies of clients have, such as the name of a field.
    pub(super) fn word(&mut self, key: &str, word: &Spanned<String>) -> Option<String> {
        let (text, len) = (word.get_ref(), word.get_ref().len());
        if (1..=NAME_LEN_MAX).contains(&len) && !text.contains(|c: char| c.is_control() || c == '"') {
            return Some(text.clone());
        }
        let fault = format!("`{key}` has {len} bytes: give 1 to {NAME_LEN_MAX}, without quotes and control characters");
        self.refuse(word.span(), fault)
    }

    /// A time such as `5s`, at most `max`.
    pub(super) fn time(&mut self, key: &str, text: &Spanned<String>, max: Duration) -> Option<Duration> {
        let filled = self.filled(text)?;
        let time = humantime::parse_duration(&filled).ok().filter(|time| !time.is_zero() && *time <= max);
        let fault = || format!("`{key}` is no time up to {}: give a time such as 5s", humantime::format_duration(max));
        time.or_else(|| self.refuse(text.span(), fault()))
    }

    /// A size in bytes such as `10MiB`, within `limits`.
    pub(super) fn size(&mut self, key: &str, text: &Spanned<String>, limits: (u64, u64)) -> Option<u64> {
        let (min, max) = limits;
        let filled = self.filled(text)?;
        let size = filled.parse().ok().map(|ByteSize(size)| size).filter(|size| (min..=max).contains(size));
        let fault = || {
            let (min, max) = (ByteSize(min), ByteSize(max));
            format!("`{key}` is no size from {min} to {max}: give a size such as 10MiB")
        };
        size.or_else(|| self.refuse(text.span(), fault()))
    }
}

/// Whether a shell can set a variable of this name.
fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
