//! Where everything is printed: lines with a name before them, and on a terminal a board that stays below them.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use console::Term;

use crate::board::Size;

const COLOURS: [AnsiColor; 6] =
    [AnsiColor::Cyan, AnsiColor::Yellow, AnsiColor::Green, AnsiColor::Magenta, AnsiColor::Blue, AnsiColor::BrightRed];

/// Terminals that know these words show what is between them at once, and the others pass over them.
const BEGIN: &str = "\x1b[?2026h";
const END: &str = "\x1b[?2026l";

/// How often what is said appears above the board. A terminal is slower than ten processes that all speak at once.
pub(crate) const FRAME: Duration = Duration::from_millis(50);

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
        match self.screen() {
            Some(mut screen) => write(&screen.with_line(&line)),
            None => write(&line),
        }
    }

    /// Shows a board instead of the one before; no line of it may be wider than the terminal. Without any line: takes it
    /// away, and the cursor is where it was before.
    pub fn show(&self, board: Vec<String>) {
        if let Some(mut screen) = self.screen() {
            write(&screen.with_board(board, self.size().columns));
        }
    }

    /// Shows what was printed since it was last called. To be called every [`FRAME`], as long as there is a board.
    pub fn show_lines(&self) {
        if let Some(mut screen) = self.screen() {
            write(&screen.with_lines(self.size().columns));
        }
    }

    fn screen(&self) -> Option<MutexGuard<'_, Screen>> {
        self.screen.as_ref().map(|screen| screen.lock().unwrap_or_else(PoisonError::into_inner))
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

/// What is on the screen: the board, and the cursor on the line below it. And the lines that are to stand above it.
#[derive(Debug, Default)]
struct Screen {
    board: Vec<String>,
    lines: String,
}

impl Screen {
    /// What to write for a line: with a board nothing yet.
    fn with_line(&mut self, line: &str) -> String {
        if self.board.is_empty() {
            return line.to_owned();
        }
        self.lines.push_str(line);
        String::new()
    }

    /// What to write so that all lines stand above the board.
    fn with_lines(&mut self, columns: usize) -> String {
        if self.lines.is_empty() {
            return String::new();
        }
        let board = self.board.clone();
        self.with_board(board, columns)
    }

    /// What to write so that `board` stands instead of the one before, below all lines.
    fn with_board(&mut self, board: Vec<String>, columns: usize) -> String {
        if self.board.is_empty() && board.is_empty() {
            return String::new();
        }
        let (erase, lines) = (self.erase(columns), std::mem::take(&mut self.lines));
        self.board = board;
        format!("{BEGIN}{erase}{lines}{}{END}", self.draw())
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
        assert_eq!(screen.with_line("api | up\n"), "api | up\n");
        assert_eq!((screen.with_lines(80), screen.with_board(Vec::new(), 80)), (String::new(), String::new()));
    }

    #[test]
    fn lines_go_above_the_board_together_and_the_board_goes_without_a_trace() {
        let mut screen = Screen::default();
        assert_eq!(screen.with_board(vec!["one".into(), "two".into()], 80), format!("{BEGIN}one\ntwo\n{END}"));
        assert_eq!(screen.with_line("api | up\n") + &screen.with_line("api | down\n"), "", "not each by itself");
        let erase = "\r\x1b[2A\x1b[J";
        assert_eq!(screen.with_lines(80), format!("{BEGIN}{erase}api | up\napi | down\none\ntwo\n{END}"));
        assert_eq!(screen.with_lines(80), "");
        screen.with_line("api | last words\n");
        assert_eq!(screen.with_board(Vec::new(), 80), format!("{BEGIN}{erase}api | last words\n{END}"));
        assert_eq!(screen.with_line("api | up\n"), "api | up\n");
    }

    #[test]
    fn a_terminal_that_became_narrower_has_more_rows_to_clear() {
        let mut screen = Screen::default();
        screen.with_board(vec!["\x1b[1mfour\x1b[0m".into(), String::new(), "123456789".into()], 80);
        assert!(screen.with_board(Vec::new(), 4).contains("\x1b[5A"), "one, one and three");
    }
}
