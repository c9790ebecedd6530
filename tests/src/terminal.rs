//! A terminal for tests, which shows a program's output as a person sees it.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::{PATIENCE, python_program};

/// A command on a terminal of its own, emulated by pyte. The terminal hangs up when the test ends.
pub struct Terminal {
    _child: Child,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

/// The content of the screen.
pub struct Look {
    /// Every row, without trailing blanks.
    pub lines: Vec<String>,
    /// The number of lines that have scrolled off the top of the screen.
    pub above_count: usize,
    /// The lines that have scrolled off. Empty until the command has ended.
    pub above: Vec<String>,
    /// Row and column of the cursor, counted from 0.
    pub cursor: (usize, usize),
    /// Whether the cursor is hidden.
    pub is_cursor_hidden: bool,
    /// The number of escape characters so far.
    pub escape_count: u64,
    /// The exit status, after [`Terminal::ended`].
    pub status: Option<i64>,
}

impl Terminal {
    /// Starts a command on a terminal of this size, with the arguments and the environment of `command`.
    pub fn start(rows: u16, columns: u16, command: &Command) -> Self {
        let command = command.as_std();
        let mut terminal = Command::new(python_program("python"));
        terminal.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/terminal.py"));
        terminal.args([rows.to_string(), columns.to_string()]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => terminal.env(name, value),
                None => terminal.env_remove(name),
            };
        }
        let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let requests = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { _child: child, requests, answers }
    }

    /// Returns the content of the screen.
    pub async fn look(&mut self) -> Look {
        self.ask(json!({ "do": "look" })).await
    }

    /// Resizes the terminal.
    pub async fn resize(&mut self, rows: u16, columns: u16) {
        self.ask(json!({ "do": "resize", "rows": rows, "columns": columns })).await;
    }

    /// Types `text`.
    pub async fn type_keys(&mut self, text: &str) {
        self.ask(json!({ "do": "type", "text": text })).await;
    }

    /// Waits until the command ends.
    pub async fn ended(&mut self) -> Look {
        self.ask(json!({ "do": "wait" })).await
    }

    /// Waits until `condition` holds for the screen, and returns the screen.
    pub async fn wait_until(&mut self, what: &str, condition: impl Fn(&Look) -> bool) -> Look {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let look = self.look().await;
            if condition(&look) {
                return look;
            }
            assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what}:\n{}", look.lines.join("\n"));
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn ask(&mut self, request: Value) -> Look {
        self.requests.write_all(format!("{request}\n").as_bytes()).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, self.answers.next_line()).await;
        let answer = answer.expect("the terminal answers").unwrap().expect("the terminal lives");
        let look: Value = serde_json::from_str(&answer).unwrap();
        let texts = |name: &str| {
            look[name].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let number = |name: &str| look[name].as_u64().unwrap() as usize;
        Look {
            lines: texts("lines"),
            above_count: number("above_count"),
            above: texts("above"),
            cursor: (number("row"), number("column")),
            is_cursor_hidden: look["is_cursor_hidden"].as_bool().unwrap(),
            escape_count: look["escapes"].as_u64().unwrap(),
            status: look["status"].as_i64(),
        }
    }
}
