//! The output: lines with a name before them, and on a terminal a board that stays below the lines.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use console::Term;

use crate::board::Size;

const COLOURS: [AnsiColor; 6] =
    [AnsiColor::Cyan, AnsiColor::Yellow, AnsiColor::Green, AnsiColor::Magenta, AnsiColor::Blue, AnsiColor::BrightRed];

/// A terminal that knows these sequences shows the text between them at once; other terminals ignore them.
const BEGIN: &str = "\x1b[?2026h";
const END: &str = "\x1b[?2026l";

/// The pause between two updates of the lines above the board: a terminal is slower than ten processes that print at once.
pub(crate) const FRAME: Duration = Duration::from_millis(50);

/// The assumed size of a terminal that does not tell its size.
const USUAL_SIZE: Size = Size { columns: 80, rows: 24 };

/// Writes lines with a name before them, aligned, with one colour per name.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    width: usize,
    pub colours: bool,
    /// `None`: the output is no terminal, or the terminal cannot move its cursor.
    screen: Option<Arc<Mutex<Screen>>>,
}

impl Console {
    /// A console for names of at most `width` characters.
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

    /// The present size of the terminal.
    pub fn size(&self) -> Size {
        match Term::stdout().size_checked() {
            Some((rows, columns)) if rows > 0 && columns > 0 => Size { columns: columns.into(), rows: rows.into() },
            _ => USUAL_SIZE,
        }
    }

    /// Prints a line of the process with this index and name.
    pub fn print(&self, index: usize, name: &str, line: &str) {
        let colour = self.colours.then(|| COLOURS[index % COLOURS.len()].into());
        let style = Style::new().fg_color(colour);
        let line = format!("{style}{name:<width$} |{style:#} {line}\n", width = self.width);
        match self.screen() {
            Some(mut screen) => write(&screen.with_line(&line)),
            None => write(&line),
        }
    }

    /// Replaces the board. No line may be wider than the terminal. An empty board removes it and puts the cursor back.
    pub fn show(&self, board: Vec<String>) {
        if let Some(mut screen) = self.screen() {
            write(&screen.with_board(board, self.size().columns));
        }
    }

    /// Shows the lines that were printed since the last call. The caller calls it every [`FRAME`] while there is a board.
    pub fn show_lines(&self) {
        if let Some(mut screen) = self.screen() {
            write(&screen.with_lines(self.size().columns));
        }
    }

    fn screen(&self) -> Option<MutexGuard<'_, Screen>> {
        self.screen.as_ref().map(|screen| screen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Removes the board when it is dropped.
pub(crate) struct TakeAway(pub Console);

impl Drop for TakeAway {
    fn drop(&mut self) {
        self.0.show(Vec::new());
    }
}

/// Prints a line to standard output, where no board is shown yet or any more. If the reader is gone, the line is lost.
pub(crate) fn say(line: &str) {
    write(&format!("{line}\n"));
}

/// Prints a line to standard error. If the terminal is gone, the line is lost: a panic here would leave processes behind.
pub fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes everything at once. An error is ignored: if the reader is gone, the processes still go on.
fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// The content of the screen: the board, with the cursor on the line below it, and the lines that wait to appear above it.
#[derive(Debug, Default)]
struct Screen {
    board: Vec<String>,
    lines: String,
}

impl Screen {
    /// The text to write for a line: none yet, if there is a board.
    fn with_line(&mut self, line: &str) -> String {
        if self.board.is_empty() {
            return line.to_owned();
        }
        self.lines.push_str(line);
        String::new()
    }

    /// The text that puts all lines above the board.
    fn with_lines(&mut self, columns: usize) -> String {
        if self.lines.is_empty() {
            return String::new();
        }
        let board = self.board.clone();
        self.with_board(board, columns)
    }

    /// The text that replaces the board by `board`, below all lines.
    fn with_board(&mut self, board: Vec<String>, columns: usize) -> String {
        if self.board.is_empty() && board.is_empty() {
            return String::new();
        }
        let (erase, lines) = (self.erase(columns), std::mem::take(&mut self.lines));
        self.board = board;
        format!("{BEGIN}{erase}{lines}{}{END}", self.draw())
    }

    /// The text that moves up to the first line of the board and clears the screen from there. A terminal that has become narrower
    /// may show one line of the board as two.
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
