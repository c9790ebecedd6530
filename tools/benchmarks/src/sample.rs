//! Medians and how numbers are written.

/// The values of one figure, one per round.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub(crate) struct Samples(pub Vec<f64>);

impl Samples {
    /// The median: for an even count, the mean of the middle two values. 0 if there is no value.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => 0.0,
            len if len % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    /// The least and the greatest value, as text.
    pub fn range(&self) -> String {
        match self.0.len() {
            0 => "–".to_owned(),
            _ => {
                let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
                let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                format!("{}–{}", number(least), number(most))
            }
        }
    }

    /// Adds the value of one more round.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }
}

impl<const LEN: usize> From<[f64; LEN]> for Samples {
    fn from(values: [f64; LEN]) -> Self {
        Self(values.to_vec())
    }
}

/// A number with commas between thousands. From 100 on it has no decimals, below that three digits.
pub(crate) fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude < 100.0 && value.fract() != 0.0 {
        let decimals = if magnitude >= 10.0 {
            1
        } else if magnitude >= 1.0 {
            2
        } else {
            3
        };
        return format!("{value:.decimals$}");
    }
    let digits = format!("{:.0}", magnitude);
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_middle_two() {
        assert_eq!(Samples::from([3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Samples::from([4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert_eq!(Samples::default().median(), 0.0);
    }

    #[test]
    fn the_range_is_the_least_and_the_greatest() {
        assert_eq!(Samples::from([3.0, 1.0, 20_000.0]).range(), "1–20,000");
        assert_eq!(Samples::default().range(), "–");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(number(1_234_567.8), "1,234,568");
        assert_eq!(number(123.4), "123");
        assert_eq!(number(12.345), "12.3");
        assert_eq!(number(1.2345), "1.23");
        assert_eq!(number(0.1234), "0.123");
        assert_eq!(number(0.0), "0");
        assert_eq!(number(64.0), "64");
    }
}
