//! Looking at `GET /totals` again and again: a board on a terminal, and elsewhere a line every few seconds.

use std::time::{Duration, Instant};

use common::shutdown::CancellationToken;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::board::Board;
use crate::screen::{Console, FRAME, TakeAway};
use crate::summary;
use crate::totals::Totals;

/// Seconds between two looks: for people who watch, and for lines in a file.
const BOARD_EVERY_S: u64 = 2;
const LINE_EVERY_S: u64 = 5;

/// How long the api may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Shows how the consumers converge, until `stop`. Then the board is gone, and its figures are a line.
pub(crate) async fn watch(
    api_port: u16,
    every_s: Option<u64>,
    index: usize,
    console: Console,
    stop: CancellationToken,
) {
    let url = format!("http://127.0.0.1:{api_port}/totals");
    let client = reqwest::Client::builder().timeout(ANSWER_WAIT).build().unwrap_or_default();
    let usual = if console.has_board() { BOARD_EVERY_S } else { LINE_EVERY_S };
    let mut ticks = tokio::time::interval(Duration::from_secs(every_s.unwrap_or(usual)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // An error means that signals cannot be caught; then the board is as wide as it was until it is drawn again.
    let mut resized = signal(SignalKind::window_change()).ok();
    let (mut board, started_at) = (Board::default(), Instant::now());
    let taken_away = TakeAway(console.clone());
    let frames = console.has_board().then(|| tokio::spawn(show_lines(console.clone())));
    // The first tick comes at once: nobody answers yet, and only a board has something to show.
    ticks.tick().await;
    loop {
        if console.has_board() {
            console.show(board.render(started_at.elapsed(), console.size(), console.colours));
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = change(&mut resized) => {}
            answer = async { ticks.tick().await; Totals::ask(&client, &url).await } => match answer {
                Ok(totals) => {
                    if !console.has_board() {
                        console.print(index, "summary", &summary::line(&totals));
                    }
                    board.note(started_at.elapsed(), totals);
                }
                Err(error) if !console.has_board() => {
                    console.print(index, "summary", &format!("the api does not answer: {error}"));
                }
                // Until the first answer it is only slow to start.
                Err(error) if board.totals().is_some() => board.complain(error.to_string()),
                Err(_) => {}
            }
        }
    }
    // The last lines are shown with it.
    drop(taken_away);
    if let Some(frames) = frames {
        frames.abort();
    }
    if let Some(totals) = board.totals().filter(|_| console.has_board()) {
        console.print(index, "summary", &summary::line(totals));
    }
}

/// Shows what the processes say, for ever.
async fn show_lines(console: Console) {
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        frames.tick().await;
        console.show_lines();
    }
}

/// Returns when the terminal has another size.
async fn change(resized: &mut Option<Signal>) {
    match resized {
        Some(resized) => {
            resized.recv().await;
        }
        None => std::future::pending().await,
    }
}
