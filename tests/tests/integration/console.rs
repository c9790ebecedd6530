//! `bin/up` on a terminal, as a person sees it.

use tests::{Look, Terminal};

use crate::launcher::UpFolder;

/// The rows of the board, from the rule to the status line. The screen must show exactly one board.
fn board(look: &Look) -> &[String] {
    let is_rule = |line: &&String| line.starts_with("-----");
    let rules = look.lines.iter().filter(is_rule).count();
    assert_eq!(rules, 1, "one board and no remains of another:\n{}", look.lines.join("\n"));
    let first = look.lines.iter().position(|line| is_rule(&line)).unwrap();
    &look.lines[first..look.cursor.0]
}

/// Whether the screen shows a whole board of this width that reports convergence.
fn has_board(look: &Look, columns: usize) -> bool {
    let rule = "-".repeat(columns - 1);
    let (row, column) = look.cursor;
    column == 0 && row >= 6 && look.lines[row - 6] == rule && look.lines[row - 1].starts_with("CONVERGED")
}

#[tokio::test]
async fn up_keeps_a_board_below_the_lines_and_leaves_a_clean_screen() {
    // Few rides, because the emulator of the terminal is slow.
    let folder = UpFolder::with_rate(5).await;
    let mut command = folder.up_command(&[]);
    command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
    let mut terminal = Terminal::start(30, 120, &command);
    let look = terminal.wait_until("everything has converged", |look| has_board(look, 120)).await;
    let rows = board(&look);
    let words = |row: &str| row.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let titles = "rides total m checkpoint lag rides/s duplicates healed crashes dead letters";
    assert_eq!(words(&rows[1]).join(" "), titles);
    let names: Vec<String> = rows[2..5].iter().map(|row| words(row)[0].clone()).collect();
    assert_eq!(names, ["SQL", "consumer0", "consumer1"]);
    // Each consumer has SQL's count and sum.
    assert!(rows[3..5].iter().all(|row| words(row)[1..3] == words(&rows[2])[1..3]), "{rows:#?}");
    assert!(rows[5].starts_with("CONVERGED") && rows[5].ends_with("Ctrl-C stops everything"), "{rows:#?}");
    assert_eq!((rows.len(), look.cursor), (6, (look.cursor.0, 0)));
    assert!(!look.is_cursor_hidden);

    // Lines of the log appear above the board and scroll away. After a change of the window's size the board is drawn anew.
    let scrolled = look.above_count + 40;
    terminal.wait_until("lines have scrolled away", |look| look.above_count > scrolled).await;
    terminal.resize(30, 60).await;
    let look = terminal.wait_until("it is narrow", |look| has_board(look, 60)).await;
    let narrow = board(&look);
    assert!(narrow[1].contains("total m") && !narrow[1].contains("healed"), "{narrow:#?}");
    terminal.resize(30, 120).await;
    let look = terminal.wait_until("it is wide again", |look| has_board(look, 120)).await;
    assert_eq!(board(&look).len(), 6);

    terminal.type_keys("\u{3}").await;
    let look = terminal.ended().await;
    assert_eq!(look.status, Some(0));
    let all: Vec<&String> = look.above.iter().chain(&look.lines).filter(|line| !line.is_empty()).collect();
    assert_eq!(*all[all.len() - 1], "everything has stopped");
    assert!(all.iter().all(|line| !line.starts_with("-----") && !line.starts_with("SQL ")), "{:#?}", look.lines);
    // The last values of the board stay on the screen as one line.
    assert!(all.iter().any(|line| line.starts_with("summary") && line.contains("| sql ")), "{:#?}", look.lines);
    assert_eq!(look.cursor.1, 0);
    assert!(!look.is_cursor_hidden);
}

#[tokio::test]
async fn up_writes_plain_lines_where_the_cursor_cannot_be_moved() {
    let folder = UpFolder::with_rate(5).await;
    let mut command = folder.up_command(&[]);
    command.env("TERM", "dumb");
    let mut terminal = Terminal::start(30, 250, &command);
    let is_line = |line: &String| line.starts_with("summary   | sql ") && line.ends_with("| CONVERGED");
    let converged = |look: &Look| look.lines.iter().any(is_line);
    terminal.wait_until("a line says that everything has converged", converged).await;
    terminal.type_keys("\u{3}").await;
    let look = terminal.ended().await;
    assert_eq!((look.status, look.escape_count), (Some(0), 0));
}
