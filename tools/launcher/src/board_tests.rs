//! The board on a wide, a narrow and a low terminal.

use super::*;
use crate::totals::Sum;

fn consumer(name: &str, ride_count: i64, lag: i64) -> ConsumerTotal {
    ConsumerTotal {
        name: name.into(),
        missing_partitions: Vec::new(),
        ride_count,
        total_distance_mm: ride_count * 1_000_001,
        last_offset: ride_count,
        lag,
        duplicate_count: 12,
        healed_count: 0,
        crash_count: 3,
        dead_letter_count: 0,
    }
}

fn totals(ride_count: i64, consumers: Vec<ConsumerTotal>) -> Totals {
    let converged = consumers.iter().all(|consumer| consumer.lag == 0);
    let sql = Sum { ride_count, total_distance_mm: ride_count * 1_000_001 };
    Totals { sql, head: ride_count, consumers, converged }
}

fn board() -> Board {
    let mut board = Board::default();
    board.note(Duration::from_secs(1), totals(1000, vec![consumer("consumer0", 1000, 0), consumer("c1", 900, 100)]));
    board.note(Duration::from_secs(5), totals(1234, vec![consumer("consumer0", 1234, 0), consumer("c1", 1000, 234)]));
    board
}

fn rendered(board: &Board, columns: usize, rows: usize, colours: bool) -> Vec<String> {
    board.render(Duration::from_secs(133), Size { columns, rows }, colours)
}

#[test]
fn on_a_wide_terminal_everything_is_aligned() {
    let lines = rendered(&board(), 111, 24, false);
    let rule = "-".repeat(110);
    let expected = [
        rule.as_str(),
        "           rides        total m  checkpoint  lag  rides/s  duplicates  healed  crashes  dead letters",
        "SQL        1,234  1,234,001.234        1234          58.5                                           ",
        "consumer0  1,234  1,234,001.234        1234    0     58.5          12       0        3             0",
        "c1         1,000  1,000,001.000        1000  234     25.0          12       0        3             0",
        "CATCHING UP   1 of 2 consumers are behind                                 up 2m 13s, Ctrl-C stops everything",
    ];
    assert_eq!(lines[..5], expected[..5]);
    assert_eq!(lines[5].split_whitespace().collect::<Vec<_>>(), expected[5].split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines[5].chars().count(), 110, "to the right edge");
}

#[test]
fn no_line_is_wider_than_the_terminal_whatever_its_size() {
    let mut complaining = board();
    complaining.complain("connection refused, and so on".repeat(5));
    for board in [Board::default(), board(), complaining] {
        for columns in 0..150 {
            for rows in 0..30 {
                let (plain, coloured) = (rendered(&board, columns, rows, false), rendered(&board, columns, rows, true));
                assert!(plain.len() <= rows.saturating_sub(ROWS_ABOVE).max(1), "{columns}x{rows}: {plain:#?}");
                assert!(plain.iter().all(|line| line.chars().count() < columns.max(1)), "{columns}: {plain:#?}");
                assert!(!plain.concat().contains('\x1b'), "colours are off");
                let stripped = coloured.iter().map(|line| console::strip_ansi_codes(line).into_owned());
                assert!(stripped.eq(plain), "colours take no room");
            }
        }
    }
}

#[test]
fn on_a_narrow_terminal_the_total_and_the_lag_stay() {
    let lines = rendered(&board(), 45, 24, false);
    assert_eq!(lines[1], "                 total m  checkpoint  lag");
    assert_eq!(lines[4], "c1         1,000,001.000        1000  234");
    let lines = rendered(&board(), 32, 24, false);
    assert_eq!(lines[1], "                 total m  lag");
}

#[test]
fn on_a_low_terminal_some_consumers_are_counted_and_at_last_one_line_stays() {
    let many = (0..20).map(|n| consumer(&format!("consumer{n}"), 7, 0)).collect();
    let mut board = Board::default();
    board.note(Duration::ZERO, totals(7, many));
    let lines = rendered(&board, 100, 14, false);
    assert_eq!(lines.len(), 10);
    assert_eq!(lines[8], "and 15 more");
    assert!(lines[9].starts_with("CONVERGED"), "{lines:?}");
    assert_eq!(rendered(&board, 100, 9, false).len(), 1);
}

#[test]
fn colours_say_who_is_behind() {
    let lines = rendered(&board(), 111, 24, true);
    let (green, yellow) = (coloured(AnsiColor::Green), coloured(AnsiColor::Yellow));
    assert!(lines[3].contains(&format!("{green}  1,234,001.234{green:#}")), "{:?}", lines[3]);
    assert!(lines[4].contains(&format!("{yellow}  234{yellow:#}")), "{:?}", lines[4]);
}

#[test]
fn the_status_says_what_is_waited_for() {
    let starts = |board: &Board, words: &str| {
        let lines = rendered(board, 111, 24, false);
        assert!(lines.last().unwrap().starts_with(words), "{lines:#?}");
    };
    let mut board = Board::default();
    starts(&board, "STARTING   waiting for the api");
    board.note(Duration::ZERO, totals(7, vec![consumer("c", 7, 0)]));
    starts(&board, "CONVERGED   every total");
    board.complain("connection refused".into());
    starts(&board, "NO ANSWER   from the api: connection refused");
    let with_dead_letter = ConsumerTotal { dead_letter_count: 1, ..consumer("c", 6, 0) };
    board.note(Duration::ZERO, Totals { converged: false, ..totals(7, vec![with_dead_letter]) });
    starts(&board, "CATCHING UP   dead letters are missing");
    board.note(Duration::ZERO, Totals { converged: false, ..totals(7, vec![]) });
    starts(&board, "CATCHING UP   no consumer has begun");
}

#[test]
fn rides_a_second_are_those_of_the_last_ten_seconds() {
    let mut board = Board::default();
    for second in 0..=100 {
        let ride_count = if second < 50 { second * 9 } else { 441 + (second - 49) };
        board.note(Duration::from_secs(second), totals(ride_count as i64, vec![]));
    }
    assert_eq!(board.rate(|totals| Some(totals.sql.ride_count)), "1.0");
    assert!(board.samples.len() <= 12, "{}", board.samples.len());
}

#[test]
fn times_and_numbers_are_spoken() {
    for (seconds, words) in [(0, "0s"), (59, "59s"), (60, "1m 0s"), (7384, "2h 3m")] {
        assert_eq!(spoken(Duration::from_secs(seconds)), words);
    }
    for (number, words) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
        assert_eq!(grouped(number), words);
    }
    assert_eq!(metres(19_808_011), "19,808.011");
}

#[test]
fn a_consumer_that_lacks_partitions_is_named() {
    let partial = ConsumerTotal { missing_partitions: vec![1, 5], ..consumer("b", 3, 0) };
    let words = what_lacks(&totals(6, vec![consumer("a", 6, 0), partial]));
    assert_eq!(words, "b is not registered in partition 1, 5");
}
