//! Texts of the log on a terminal. Clients choose them, so they may hold line breaks, escape sequences, and marks that turn the
//! direction of writing.

/// Characters that `escape_debug` would escape too, and that are shown as they are.
const QUOTES: [char; 3] = ['"', '\'', '\\'];

/// The text on one line, with its control characters and invisible characters written as in `\u{1b}`.
pub(crate) fn one_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for piece in text.split_inclusive(QUOTES) {
        let unquoted = piece.strip_suffix(QUOTES).unwrap_or(piece);
        shown.extend(unquoted.escape_debug());
        shown.push_str(&piece[unquoted.len()..]);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_visible_characters_is_shown() {
        assert_eq!(one_line("é \"a\\b\" مرحبا 🚲"), "é \"a\\b\" مرحبا 🚲");
        assert_eq!(one_line("a\nb\r\t\u{1b}[2J\u{202e}\u{9b}"), r"a\nb\r\t\u{1b}[2J\u{202e}\u{9b}");
    }
}
