//! The progress of a run: a bar on a terminal, otherwise one line per step.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// The progress of a run.
pub(crate) struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
}

impl Progress {
    /// A bar without a case.
    pub fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = if is_terminal { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{elapsed} {prefix} {bar:24} {pos}/{len} {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        if is_terminal {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Self { bar, is_terminal }
    }

    /// A case begins.
    pub fn begin(&self, case: &str) {
        self.bar.set_prefix(case.to_owned());
        self.bar.set_length(0);
        self.bar.set_position(0);
    }

    /// Sets the number of steps of the case.
    pub fn expect(&self, steps: u32) {
        self.bar.set_length(u64::from(steps));
    }

    /// The next step begins.
    pub fn step(&self, what: &str) {
        self.bar.inc(1);
        self.bar.set_message(what.to_owned());
        if !self.is_terminal {
            eprintln!("{}: {what}", self.bar.prefix());
        }
    }

    /// Removes the bar.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
