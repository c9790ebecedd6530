//! The board: SQL's count and sum, and each consumer's progress, in columns.
//!
//! ```text
//! ------------------------------------------------------------------------------------------------
//!            rides     total m  checkpoint  lag  rides/s  duplicates  healed  crashes  dead letters
//! SQL           43  19,808.811          51           1.2
//! consumer0     43  19,808.811          51    0      1.2           4       0        3             0
//! CONVERGED   every total is SQL's own, to the millimetre        up 2m 13s, Ctrl-C stops everything
//! ```
//!
//! A narrow terminal gets fewer columns, and a low one fewer lines.

use std::collections::VecDeque;
use std::time::Duration;

use crate::totals::{ConsumerTotal, Totals};
use anstyle::{AnsiColor, Style};

/// The time over which rides per second are counted.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Lines above the board, left to the output of the processes.
const ROWS_ABOVE: usize = 4;

/// The title of each column, and its rank: on a narrow terminal the column with the highest rank goes first. Rank 0 stays.
const COLUMNS: [(&str, u8); 10] = [
    ("", 0),
    ("rides", 5),
    ("total m", 0),
    ("checkpoint", 2),
    ("lag", 0),
    ("rides/s", 4),
    ("duplicates", 6),
    ("healed", 8),
    ("crashes", 7),
    ("dead letters", 3),
];

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub columns: usize,
    pub rows: usize,
}

/// The last responses of the api, each with its time since the start.
#[derive(Debug, Default)]
pub(crate) struct Board {
    samples: VecDeque<(Duration, Totals)>,
    complaint: Option<String>,
}

#[derive(Debug, Clone)]
struct Cell {
    text: String,
    style: Style,
}

fn cell(text: impl ToString, style: Style) -> Cell {
    Cell { text: text.to_string(), style }
}

fn coloured(colour: AnsiColor) -> Style {
    Style::new().fg_color(Some(colour.into()))
}

impl Board {
    /// Notes a response of the api, and its time since the start.
    pub fn note(&mut self, at: Duration, totals: Totals) {
        self.complaint = None;
        // One sample older than the window is kept, so that the rate covers the whole window.
        while self.samples.get(1).is_some_and(|(second, _)| at.saturating_sub(*second) >= RATE_WINDOW) {
            self.samples.pop_front();
        }
        self.samples.push_back((at, totals));
    }

    /// Notes that the api did not answer, and why.
    pub fn complain(&mut self, why: String) {
        self.complaint = Some(why);
    }

    /// The last response.
    pub fn totals(&self) -> Option<&Totals> {
        self.samples.back().map(|(_, totals)| totals)
    }

    /// The lines of the board. None is wider than the terminal, and all fit on it.
    pub fn render(&self, now: Duration, size: Size, colours: bool) -> Vec<String> {
        // Some terminals begin a new line when a line is exactly as wide as they are.
        let columns = size.columns.saturating_sub(1);
        let status = line(&self.status(now, columns), columns, colours);
        let rows_max = size.rows.saturating_sub(ROWS_ABOVE);
        let Some(totals) = self.totals() else { return vec![status] };
        // Rule, titles, SQL, status, and the number of consumers that are not shown.
        let shown_count = match totals.consumers.len() {
            count if count + 4 <= rows_max => count,
            _ if rows_max < 6 => return vec![status],
            _ => rows_max - 5,
        };
        let mut lines = vec![line(&[cell("-".repeat(columns), Style::new().dimmed())], columns, colours)];
        let table = self.table(totals, shown_count);
        lines.extend(aligned(&table, columns).iter().map(|cells| line(cells, columns, colours)));
        match totals.consumers.len() - shown_count {
            0 => {}
            count => lines.push(line(&[cell(format!("and {count} more"), Style::new().dimmed())], columns, colours)),
        }
        lines.push(status);
        lines
    }

    fn table(&self, totals: &Totals, shown_count: usize) -> Vec<Vec<Cell>> {
        let bold = Style::new().bold();
        let titles = COLUMNS.map(|(title, _)| cell(title, Style::new().dimmed())).to_vec();
        let sql = totals.sql;
        let rate = self.rate(|totals| Some(totals.sql.ride_count));
        let mut of_sql = vec![
            cell("SQL", bold),
            cell(grouped(sql.ride_count), bold),
            cell(metres(sql.total_distance_mm), bold),
            cell(totals.head, bold),
            cell("", bold),
            cell(rate, bold),
        ];
        of_sql.resize(COLUMNS.len(), cell("", bold));
        let mut rows = vec![titles, of_sql];
        rows.extend(totals.consumers.iter().take(shown_count).map(|consumer| self.of_consumer(totals, consumer)));
        rows
    }

    fn of_consumer(&self, totals: &Totals, consumer: &ConsumerTotal) -> Vec<Cell> {
        let plain = Style::new();
        let is_equal = consumer.total_distance_mm == totals.sql.total_distance_mm;
        let equal = coloured(if is_equal { AnsiColor::Green } else { AnsiColor::Yellow });
        let if_any = |count: i64, colour| cell(count, if count == 0 { plain } else { coloured(colour) });
        let of_same = |totals: &Totals| {
            totals.consumers.iter().find(|other| other.name == consumer.name).map(|other| other.ride_count)
        };
        vec![
            cell(&consumer.name, plain),
            cell(grouped(consumer.ride_count), equal),
            cell(metres(consumer.total_distance_mm), equal),
            cell(consumer.last_offset, plain),
            if_any(consumer.lag, AnsiColor::Yellow),
            cell(self.rate(of_same), plain),
            cell(consumer.duplicate_count, plain),
            cell(consumer.healed_count, plain),
            cell(consumer.crash_count, plain),
            if_any(consumer.dead_letter_count, AnsiColor::Red),
        ]
    }

    /// The growth of a count per second.
    fn rate(&self, count: impl Fn(&Totals) -> Option<i64>) -> String {
        let (Some((first_at, first)), Some((last_at, last))) = (self.samples.front(), self.samples.back()) else {
            return String::new();
        };
        match (count(first), count(last), last_at.saturating_sub(*first_at).as_secs_f64()) {
            (Some(first), Some(last), seconds) if seconds > 0.0 => format!("{:.1}", (last - first) as f64 / seconds),
            _ => String::new(),
        }
    }

    /// The status line. It ends with the running time where there is room.
    fn status(&self, now: Duration, columns: usize) -> Vec<Cell> {
        let (word, colour, detail) = match (&self.complaint, self.totals()) {
            (Some(why), _) => ("NO ANSWER", AnsiColor::Red, format!("from the api: {why}")),
            (None, None) => ("STARTING", AnsiColor::Yellow, "waiting for the api".to_owned()),
            (None, Some(totals)) if totals.converged => {
                ("CONVERGED", AnsiColor::Green, "every total is SQL's own, to the millimetre".to_owned())
            }
            (None, Some(totals)) => ("CATCHING UP", AnsiColor::Yellow, what_lacks(totals)),
        };
        let mut cells = vec![cell(word, coloured(colour).bold()), cell(format!("   {detail}"), Style::new())];
        let end = format!("up {}, Ctrl-C stops everything", spoken(now));
        let used: usize = cells.iter().map(|cell| cell.text.chars().count()).sum();
        if let Some(room) = columns.checked_sub(used + end.chars().count() + 3) {
            cells.push(cell(format!("   {}{end}", " ".repeat(room)), Style::new().dimmed()));
        }
        cells
    }
}

fn what_lacks(totals: &Totals) -> String {
    let count = totals.consumers.len();
    let behind_count = totals.consumers.iter().filter(|consumer| consumer.lag > 0).count();
    if let Some(partial) = totals.consumers.iter().find(|consumer| !consumer.missing_partitions.is_empty()) {
        let numbers: Vec<String> = partial.missing_partitions.iter().map(i32::to_string).collect();
        return format!("{} is not registered in partition {}", partial.name, numbers.join(", "));
    }
    match (count, behind_count) {
        (0, _) => "no consumer has begun".to_owned(),
        (_, 0) if totals.consumers.iter().any(|consumer| consumer.dead_letter_count > 0) => {
            "dead letters are missing from a total".to_owned()
        }
        (_, 0) => "rides wait for their place in the log".to_owned(),
        _ => format!("{behind_count} of {count} consumers are behind"),
    }
}

/// Aligns the first column left and the others right, with two spaces between, and leaves out columns that have no room.
fn aligned(rows: &[Vec<Cell>], columns: usize) -> Vec<Vec<Cell>> {
    let width = |column: usize| rows.iter().map(|row| row[column].text.chars().count()).max().unwrap_or(0);
    let mut shown: Vec<usize> = (0..COLUMNS.len()).collect();
    while shown.iter().map(|column| width(*column) + 2).sum::<usize>() > columns + 2 {
        let Some(last) = shown.iter().copied().max_by_key(|column| COLUMNS[*column].1) else { break };
        if COLUMNS[last].1 == 0 {
            break;
        }
        shown.retain(|column| *column != last);
    }
    let padded = |row: &Vec<Cell>, column: usize| {
        let (Cell { text, style }, width) = (row[column].clone(), width(column));
        let text = if column == 0 { format!("{text:<width$}") } else { format!("  {text:>width$}") };
        Cell { text, style }
    };
    rows.iter().map(|row| shown.iter().map(|column| padded(row, *column)).collect()).collect()
}

/// Cuts a line at the width of the terminal.
fn line(cells: &[Cell], columns: usize, colours: bool) -> String {
    let (mut text, mut room) = (String::new(), columns);
    for cell in cells {
        let shown: String = cell.text.chars().take(room).collect();
        room -= shown.chars().count();
        let style = if colours { cell.style } else { Style::new() };
        text += &format!("{style}{shown}{style:#}");
    }
    text
}

/// `1,234,567`
fn grouped(number: i64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn metres(millimetres: i64) -> String {
    format!("{}.{:03}", grouped(millimetres / 1000), millimetres % 1000)
}

/// `2h 3m`, `2m 13s`, `13s`
fn spoken(time: Duration) -> String {
    match (time.as_secs() / 3600, time.as_secs() / 60 % 60, time.as_secs() % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (hours, minutes, _) => format!("{hours}h {minutes}m"),
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
