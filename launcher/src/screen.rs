//! Where everything is printed: lines with a name before them, and on a terminal a board that stays below them.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use anstyle::{AnsiColor, Style};
use console::Term;

use crate::board::Size;

const COLOURS: [AnsiColor; 6] =
    [AnsiColor::Cyan, AnsiColor::Yellow, AnsiColor::Green, AnsiColor::Magenta, AnsiColor::Blue, AnsiColor::BrightRed];

/// Terminals that know these words show what is between them at once, and the others pass over them.
const BEGIN: &str = "\x1b[?2026h";
const END: &str = "\x1b[?2026l";

/// What a terminal is taken for that does not tell its size.
const USUAL_SIZE: Size = Size { columns: 80, rows: 24 };

/// Writes lines with a name before them, aligned, in one colour a name where there are colours.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    width: usize,
    pub colours: bool,
    /// `None`: this is no terminal, or one that cannot move its cursor.
    screen: Option<Arc<Mutex<Screen>>>,
}

impl Console {
    /// For names of at most `width` characters.
    pub fn new(width: usize) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let wants_none = std::env::var_os("NO_COLOR").is_some_and(|word| !word.is_empty());
        let screen = (is_terminal && !is_dumb).then(Arc::default);
        Self { width, colours: is_terminal && !is_dumb && !wants_none, screen }
    }

    /// Whether a board can be shown.
    pub fn has_board(&self) -> bool {
        self.screen.is_some()
    }

    /// How large the terminal is now.
    pub fn size(&self) -> Size {
        match Term::stdout().size_checked() {
            Some((rows, columns)) if rows > 0 && columns > 0 => Size { columns: columns.into(), rows: rows.into() },
            _ => USUAL_SIZE,
        }
    }

    /// Prints a line of what has this index and this name.
    pub fn print(&self, index: usize, name: &str, line: &str) {
        let style = match self.colours {
            true => Style::new().fg_color(Some(COLOURS[index % COLOURS.len()].into())),
            false => Style::new(),
        };
        let line = format!("{style}{name:<width$} |{style:#} {line}\n", width = self.width);
        match &self.screen {
            Some(screen) => {
                let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
                write(&screen.with_line_above(&line, self.size().columns));
            }
            None => write(&line),
        }
    }

    /// Shows a board instead of the one before; no line of it may be wider than the terminal. Without any line: takes it
    /// away, and the cursor is where it was before.
    pub fn show(&self, board: Vec<String>) {
        if let Some(screen) = &self.screen {
            let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
            write(&screen.with_board(board, self.size().columns));
        }
    }
}

/// Takes the board away when it goes, however that comes about.
pub(crate) struct TakeAway(pub Console);

impl Drop for TakeAway {
    fn drop(&mut self) {
        self.0.show(Vec::new());
    }
}

/// All at once. Whoever reads may be gone; the processes go on all the same.
fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// What is on the screen: the board, and the cursor on the line below it.
#[derive(Debug, Default)]
struct Screen {
    board: Vec<String>,
}

impl Screen {
    /// What to write so that `line` stands above the board.
    fn with_line_above(&mut self, line: &str, columns: usize) -> String {
        if self.board.is_empty() {
            return line.to_owned();
        }
        format!("{BEGIN}{}{line}{}{END}", self.erase(columns), self.draw())
    }

    /// What to write so that `board` stands instead of the one before.
    fn with_board(&mut self, board: Vec<String>, columns: usize) -> String {
        if self.board.is_empty() && board.is_empty() {
            return String::new();
        }
        let erase = self.erase(columns);
        self.board = board;
        format!("{BEGIN}{erase}{}{END}", self.draw())
    }

    /// Goes up to the first line of the board, and clears all from there. A terminal that has become narrower since may
    /// have made two lines of one.
    fn erase(&self, columns: usize) -> String {
        let rows_of = |line: &String| console::measure_text_width(line).div_ceil(columns.max(1)).max(1);
        match self.board.iter().map(rows_of).sum::<usize>() {
            0 => String::new(),
            rows => format!("\r\x1b[{rows}A\x1b[J"),
        }
    }

    fn draw(&self) -> String {
        self.board.iter().map(|line| format!("{line}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_board_a_line_is_a_line() {
        let mut screen = Screen::default();
        assert_eq!(screen.with_line_above("api | up\n", 80), "api | up\n");
        assert_eq!(screen.with_board(Vec::new(), 80), "");
    }

    #[test]
    fn a_line_goes_above_the_board_and_the_board_goes_without_a_trace() {
        let mut screen = Screen::default();
        assert_eq!(screen.with_board(vec!["one".into(), "two".into()], 80), format!("{BEGIN}one\ntwo\n{END}"));
        let above = screen.with_line_above("api | up\n", 80);
        assert_eq!(above, format!("{BEGIN}\r\x1b[2A\x1b[Japi | up\none\ntwo\n{END}"));
        assert_eq!(screen.with_board(Vec::new(), 80), format!("{BEGIN}\r\x1b[2A\x1b[J{END}"));
        assert_eq!(screen.with_line_above("api | up\n", 80), "api | up\n");
    }

    #[test]
    fn a_terminal_that_became_narrower_has_more_rows_to_clear() {
        let mut screen = Screen::default();
        screen.with_board(vec!["\x1b[1mfour\x1b[0m".into(), String::new(), "123456789".into()], 80);
        assert!(screen.with_board(Vec::new(), 4).contains("\x1b[5A"), "one, one and three");
    }
}
