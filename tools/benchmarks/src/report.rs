//! The report: every figure beside its limit, on the screen, as Markdown and as JSON.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Zoned;
use serde::Serialize;

use crate::bench::Bench;
use crate::machine::{Surroundings, commit};
use crate::sample::{Samples, number};

/// The target of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wanted {
    /// At least this part of the limit.
    RatioAtLeast(f64),
    /// At most so many times the limit.
    RatioAtMost(f64),
    /// At most this value.
    AtMost(f64),
    /// At least this value.
    AtLeast(f64),
}

/// One figure.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Row {
    figure: String,
    samples: Samples,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<(String, Samples)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wanted: Option<Wanted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<String>,
}

impl Row {
    /// A figure, named with its unit.
    pub fn new(figure: &str, samples: &Samples) -> Self {
        Self { figure: figure.to_owned(), samples: samples.clone(), ..Self::default() }
    }

    /// A case that could not be finished.
    pub fn failed(why: &str) -> Self {
        Self { figure: format!("FAILED: {why}"), failed: Some(why.to_owned()), ..Self::default() }
    }

    /// A case that this machine cannot measure.
    pub fn left_out(why: &str) -> Self {
        Self { figure: why.to_owned(), left_out: Some(why.to_owned()), ..Self::default() }
    }

    /// Adds the limit, which was measured in the same rounds.
    pub fn beside(mut self, limit: &str, samples: &Samples) -> Self {
        self.limit = Some((limit.to_owned(), samples.clone()));
        self
    }

    /// Adds the target.
    pub fn wanted(mut self, wanted: Wanted) -> Self {
        self.wanted = Some(wanted);
        self
    }

    fn ratio(&self) -> Option<f64> {
        let limit = self.limit.as_ref()?.1.median();
        (limit > 0.0 && !self.samples.0.is_empty()).then(|| self.samples.median() / limit)
    }

    /// `≥ 4: ok`, `≤ 10: over`; nothing if nothing is wanted.
    fn verdict(&self) -> String {
        let say = |sign: &str, wanted: f64, good: bool| {
            let word = match (good, sign) {
                (true, _) => "ok",
                (false, "≥") => "below",
                (false, _) => "over",
            };
            format!("{sign} {wanted}: {word}")
        };
        match (self.wanted, self.ratio()) {
            (Some(Wanted::RatioAtLeast(wanted)), Some(ratio)) => say("≥", wanted, ratio >= wanted),
            (Some(Wanted::RatioAtMost(wanted)), Some(ratio)) => say("≤", wanted, ratio <= wanted),
            (Some(Wanted::AtMost(wanted)), _) if !self.samples.0.is_empty() => {
                say("≤", wanted, self.samples.median() <= wanted)
            }
            (Some(Wanted::AtLeast(wanted)), _) if !self.samples.0.is_empty() => {
                say("≥", wanted, self.samples.median() >= wanted)
            }
            (Some(_), _) => "not measured".to_owned(),
            (None, _) => String::new(),
        }
    }

    fn cells(&self) -> [String; 7] {
        let limit = self.limit.as_ref();
        let measured = !self.samples.0.is_empty();
        let when_measured = |text: String| if measured { text } else { String::new() };
        [
            self.figure.clone(),
            when_measured(number(self.samples.median())),
            when_measured(self.samples.range()),
            when_measured(self.samples.0.len().to_string()),
            limit.map_or_else(String::new, |(name, samples)| format!("{name}: {}", number(samples.median()))),
            self.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            self.verdict(),
        ]
    }
}

/// The figures of a case, with remarks.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Figures {
    rows: Vec<Row>,
    remarks: Vec<String>,
    /// Preformatted text, for example a histogram.
    drawings: Vec<String>,
}

impl Figures {
    /// Figures without remarks.
    pub fn of(rows: Vec<Row>) -> Self {
        Self { rows, ..Self::default() }
    }

    /// A sentence below the table.
    pub fn remark(mut self, remark: impl Into<String>) -> Self {
        self.remarks.push(remark.into());
        self
    }

    /// A drawing below the table.
    pub fn drawing(mut self, drawing: String) -> Self {
        self.drawings.push(drawing);
        self
    }
}

/// The results of a run.
#[derive(Serialize)]
pub(crate) struct Report {
    commit: String,
    date: Zoned,
    surroundings: Surroundings,
    cases: Vec<(String, Figures)>,
}

impl Report {
    /// A report without figures, with the machine and the versions.
    pub async fn new(bench: &Bench) -> Result<Self> {
        let surroundings = Surroundings::look(bench).await?;
        Ok(Self { commit: commit().await, date: Zoned::now(), surroundings, cases: Vec::new() })
    }

    /// Adds the figures of a case.
    pub fn add(&mut self, case: &str, figures: Figures) {
        self.cases.push((case.to_owned(), figures));
    }

    /// Whether no case failed.
    pub fn succeeded(&self) -> bool {
        self.cases.iter().flat_map(|(_, figures)| &figures.rows).all(|row| row.failed.is_none())
    }

    /// The whole report, aligned so that it can be read as it is.
    pub fn markdown(&self) -> String {
        let headings = ["case", "figure", "median", "min–max", "n", "limit (median)", "ratio", "wanted"];
        let mut table = vec![headings.map(str::to_owned).to_vec()];
        for (case, figures) in &self.cases {
            for row in &figures.rows {
                table.push(std::iter::once(case.clone()).chain(row.cells()).collect());
            }
        }
        let mut text = format!("# Commit {}, {}\n\n", self.commit, self.date.strftime("%Y-%m-%d %H:%M %Z"));
        for (name, value) in self.surroundings.lines() {
            text.push_str(&format!("- {name}: {value}\n"));
        }
        text.push('\n');
        text.push_str(&aligned(&table));
        for (case, figures) in &self.cases {
            for remark in &figures.remarks {
                text.push_str(&format!("\n{case}: {remark}\n"));
            }
            for drawing in &figures.drawings {
                text.push_str(&format!("\n```text\n{}\n```\n", drawing.trim_end()));
            }
        }
        text
    }

    /// Writes `<folder>/<date>-<commit>.md` and `.json`. Returns the path without an ending.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let name = self.file_stem();
        let path = folder.join(&name);
        let json = serde_json::to_string_pretty(self).context("writing JSON")?;
        for (ending, text) in [("md", self.markdown()), ("json", json)] {
            let file = folder.join(format!("{name}.{ending}"));
            std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(path)
    }

    fn file_stem(&self) -> String {
        // Two runs of one commit on one day are two results.
        format!("{}-{}", self.date.strftime("%Y-%m-%d-%H%M"), self.commit)
    }
}

/// A Markdown table whose columns line up; the first row has the headings. Numbers stand to the right.
fn aligned(table: &[Vec<String>]) -> String {
    let is_number = |column: usize| [2, 3, 4, 6].contains(&column);
    let columns = table.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|at| table.iter().map(|row| row[at].chars().count()).max().unwrap_or(0).max(3)).collect();
    let mut text = String::new();
    for (index, row) in table.iter().enumerate() {
        for (at, cell) in row.iter().enumerate() {
            let fill = " ".repeat(widths[at] - cell.chars().count());
            text.push_str(&if is_number(at) { format!("| {fill}{cell} ") } else { format!("| {cell}{fill} ") });
        }
        text.push_str("|\n");
        if index == 0 {
            for (at, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width - usize::from(is_number(at)));
                text.push_str(&format!("| {dashes}{} ", if is_number(at) { ":" } else { "" }));
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_medians_and_judged() {
        let row = Row::new("rides/s", &[30.0, 10.0, 20.0].into()).beside("pgbench", &[5.0].into());
        assert_eq!(row.clone().wanted(Wanted::RatioAtLeast(4.0)).verdict(), "≥ 4: ok");
        assert_eq!(row.clone().wanted(Wanted::RatioAtLeast(4.5)).verdict(), "≥ 4.5: below");
        assert_eq!(row.clone().wanted(Wanted::RatioAtMost(1.5)).verdict(), "≤ 1.5: over");
        assert_eq!(row.clone().wanted(Wanted::AtMost(20.0)).verdict(), "≤ 20: ok");
        assert_eq!(row.clone().wanted(Wanted::AtLeast(20.5)).verdict(), "≥ 20.5: below");
        assert_eq!(row.cells()[5], "4.00");
        assert_eq!(Row::new("x", &Samples::default()).wanted(Wanted::AtMost(1.0)).verdict(), "not measured");
    }

    #[test]
    fn the_columns_line_up() {
        let table =
            [["case", "figure", "median"], ["api", "rides/s", "1,234"]].map(|row| row.map(str::to_owned).to_vec());
        let expected = "| case | figure  | median |\n| ---- | ------- | -----: |\n| api  | rides/s |  1,234 |\n";
        assert_eq!(aligned(&table), expected);
    }
}
