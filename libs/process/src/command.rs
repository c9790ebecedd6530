//! Commands in messages that tell a person what to run. Users: consumers, and the reaper and the doctor for their messages
//! about consumers.

use std::borrow::Cow;

/// This program with these arguments, as a person types them into a shell. The program is named as it was started: a message
/// of a program that embeds a library names that program.
pub fn command(args: &[&str]) -> String {
    let program = std::env::args_os().next().unwrap_or_default();
    let words = std::iter::once(program.to_string_lossy()).chain(args.iter().map(|arg| Cow::Borrowed(*arg)));
    words.map(|word| quoted(&word).into_owned()).collect::<Vec<_>>().join(" ")
}

/// A word of a command, in quotes if a shell would not take it as it is.
pub fn quoted(word: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        Cow::Borrowed(word)
    } else {
        Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_each_word_as_it_was() {
        assert_eq!(quoted("--copy-from"), "--copy-from");
        assert_eq!(quoted("my consumer"), "'my consumer'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
        assert!(command(&["a b", "--unregister"]).ends_with(" 'a b' --unregister"));
    }
}
