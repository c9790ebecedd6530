//! Polls `GET /totals`, and shows a board on a terminal, or a line every few seconds elsewhere.

use std::time::{Duration, Instant};

use common::shutdown::CancellationToken;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::board::Board;
use crate::screen::{Console, FRAME, TakeAway};
use crate::summary;
use crate::totals::Totals;

/// Seconds between two requests: for the board, and for lines.
const BOARD_EVERY_S: u64 = 2;
const LINE_EVERY_S: u64 = 5;

/// The longest wait for a response of the api.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Shows how the consumers converge until `stop`. Then it removes the board and prints its figures as a line.
pub(crate) async fn watch(
    api_port: u16,
    every_s: Option<u64>,
    index: usize,
    console: Console,
    stop: CancellationToken,
) {
    let url = format!("http://127.0.0.1:{api_port}/totals");
    let client = reqwest::Client::builder().timeout(ANSWER_WAIT).no_proxy().build().unwrap_or_default();
    let usual = if console.has_board() { BOARD_EVERY_S } else { LINE_EVERY_S };
    let mut ticks = tokio::time::interval(Duration::from_secs(every_s.unwrap_or(usual)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // An error means that signals cannot be caught; then the board follows a new width only at its next update.
    let mut resized = signal(SignalKind::window_change()).ok();
    let (mut board, started_at, mut unanswered_count) = (Board::default(), Instant::now(), 0_u32);
    let taken_away = TakeAway(console.clone());
    let frames = console.has_board().then(|| tokio::spawn(show_lines(console.clone())));
    // The first tick comes at once. The api does not answer yet, and only a board has something to show.
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
                    unanswered_count = 0;
                    board.note(started_at.elapsed(), totals);
                }
                Err(error) if !console.has_board() => {
                    unanswered_count += 1;
                    // The first time, and then less and less often.
                    if unanswered_count.is_power_of_two() {
                        let line = format!("the api does not answer, {unanswered_count} times in a row: {error}");
                        console.print(index, "summary", &line.replace(", 1 times in a row", ""));
                    }
                }
                // Until the first response the api is still starting.
                Err(error) if board.totals().is_some() => board.complain(error.to_string()),
                Err(_) => {}
            }
        }
    }
    // Dropping it also shows the last lines.
    drop(taken_away);
    if let Some(frames) = frames {
        frames.abort();
    }
    if let Some(totals) = board.totals().filter(|_| console.has_board()) {
        console.print(index, "summary", &summary::line(totals));
    }
}

/// Shows the output of the processes, for ever.
async fn show_lines(console: Console) {
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        frames.tick().await;
        console.show_lines();
    }
}

/// Returns when the size of the terminal has changed.
async fn change(resized: &mut Option<Signal>) {
    match resized {
        Some(resized) => {
            resized.recv().await;
        }
        None => std::future::pending().await,
    }
}
